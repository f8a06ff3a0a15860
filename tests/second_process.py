"""What a process of two does in tests/test_survival.py; processes that import no more than this begin soon."""

import os
import signal
import time

import torch

from attention.errors import UserError
from attention.processes import rank
from attention.training import distributed


def fail():
    if rank() == 1:
        raise UserError("only the second one knows")
    time.sleep(60)


def die():
    with distributed.group(torch.device("cpu")):
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.any_process(False)          # the first would wait here for the second


def stand_still():
    with distributed.group(torch.device("cpu")):
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.any_process(0)
