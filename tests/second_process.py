"""What each of several processes does in test_survival.py and test_training.py; those that import no more begin soon."""

import os
import signal
import time

import torch
from tiny import LinearCLIP, tiny_editor, tiny_world

from attention.config import TrainConfig
from attention.errors import UserError
from attention.processes import own_rows, rank, world_size
from attention.training import distributed
from attention.training.step import Draw, Learner, gradients

PROMPTS = 8
SETTINGS = TrainConfig(temperature=0.1, relative=True, lambda_area=0.3, batch_size=PROMPTS)


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
    os.environ[distributed.TIMEOUT] = "5"
    with distributed.group(torch.device("cpu")):
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.any_process(0)


def tiny_step(views="plain", **settings):
    """An editor that learns in a world with a linear CLIP, and a draw of PROMPTS prompts halfway through the run."""
    editor = tiny_editor()
    random = torch.Generator().manual_seed(1)
    source = editor.source(torch.randn(1, 16, generator=random))
    target, where = (torch.randn(PROMPTS, 8, generator=random) for _ in range(2))
    world = tiny_world(editor.generator, LinearCLIP(torch.randn(3 * 8 * 8, 8, generator=random), 8), views)
    others = torch.randn(2, 8, generator=random)
    return (Learner.of(SETTINGS.replaced(**settings), world, editor),
            Draw(0.5, source, target, where, others, range(PROMPTS)))


def joint_gradient(folder):
    """One step's gradients of the tiny editor, all prompts together; in a group, each process takes its own rows."""
    with distributed.group(torch.device("cpu")):
        learner, draw = tiny_step()
        own = Draw(draw.t, draw.source, own_rows(draw.target), own_rows(draw.where), draw.others, own_rows(draw.seeds))
        gradients(learner, own)
        found = {name: value.grad for name, value in learner.editor.named_parameters()}
        torch.save(found, f"{folder}/{world_size()}_{rank()}.pt")
