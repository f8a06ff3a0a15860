"""Reading and writing files: safetensors and plain torch files, never anything that runs code."""

import os
from collections.abc import Callable
from pathlib import Path

import torch


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, then rename: a reader sees the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_torch_save(state: dict, path: Path) -> None:
    """torch.save that leaves the previous file whole if it is interrupted."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))
