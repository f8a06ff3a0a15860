"""Which of several processes this one is, as torchrun tells it in the environment."""

import os
import re
from socket import gethostname
from typing import Any, TypeVar

from attention.errors import UserError

Rows = TypeVar("Rows", bound=Any)

# What a launcher tells of a process: variable -> the least that it can be.
NUMBERS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0}
RUN_ID = "where2edit"       # by which a process knows that training/distributed.py began it, and not torchrun
MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")        # without these, processes cannot find each other


def rank() -> int:
    """This process's number, from 0; 0 also outside torchrun."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes train together; 1 outside torchrun."""
    return _number("WORLD_SIZE", 1)


def launched() -> bool:
    """Whether torchrun, or `start`, began this process."""
    return "WORLD_SIZE" in os.environ and all(name in os.environ for name in MEETING)


def restarts() -> int:
    """How often torchrun has started this process again after a failure (--max_restarts)."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def group_of_processes() -> str:
    """What the processes of one launcher have in common, also after it has started them again."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', 'none')} {gethostname()} {os.getppid()}"


def local_rank() -> int:
    """This process's number on its own machine: the GPU that it takes."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """How many of the processes are on this machine."""
    return _number("LOCAL_WORLD_SIZE", world_size())


def check_environment() -> None:
    """Refuse an environment in which no processes could work together: what a cluster or another program left there.

    Raises:
        UserError: names the variables, what is wrong with them, and the way out.
    """
    said = {name: os.environ[name] for name in (*NUMBERS, *MEETING) if name in os.environ}
    left = f"unset {' '.join(name for name in said if name in NUMBERS)} if they are left over from another program"
    for name, least in NUMBERS.items():
        if name in said and not (re.fullmatch("[0-9]{1,9}", said[name]) and int(said[name]) >= least):
            raise UserError(f"the environment says {name}={said[name][:40]!r}, expected a whole number of at least "
                            f"{least}; {left}, or start several processes with torchrun")
    shown = " and ".join(f"{name}={said[name]}" for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in said)
    if max(rank(), local_rank()) >= world_size():
        raise UserError(f"the environment says {shown}, but processes count from 0 to WORLD_SIZE - 1 (one process if it is "
                        f"not set); {left}, or start several processes with torchrun")
    absent = [name for name in MEETING if name not in said]
    if world_size() > 1 and absent:
        raise UserError(f"the environment says {shown}, but lacks {' and '.join(absent)}, so {world_size()} processes "
                        f"cannot find each other; {left}, or start them with torchrun")


def own_rows(rows: Rows) -> Rows:
    """The part of a batch (a list, an array or a tensor), of all processes together, that belongs to this process."""
    count = len(rows) // world_size()
    part: Rows = rows[rank() * count:(rank() + 1) * count]
    return part


def _number(name: str, otherwise: int) -> int:
    """A variable's number; what `check_environment` refuses counts as not there, so that --help works everywhere."""
    try:
        return max(int(os.environ[name]), NUMBERS[name])
    except (KeyError, ValueError):
        return otherwise
