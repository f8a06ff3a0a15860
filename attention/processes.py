"""Which of several processes this one is, as torchrun tells it in the environment."""

import os
from typing import Any, TypeVar

Rows = TypeVar("Rows", bound=Any)


def rank() -> int:
    """This process's number, from 0; 0 also outside torchrun."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together; 1 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched() -> bool:
    """Whether torchrun, or `start`, began this process."""
    return "WORLD_SIZE" in os.environ


def restarts() -> int:
    """How often torchrun has started this process again after a failure (--max_restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def local_rank() -> int:
    """This process's number on its own machine: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", 0))


def own_rows(rows: Rows) -> Rows:
    """The part of a batch (a list, an array or a tensor), of all processes together, that belongs to this process."""
    count = len(rows) // world_size()
    part: Rows = rows[rank() * count:(rank() + 1) * count]
    return part
