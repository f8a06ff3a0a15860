"""Shared helpers: arrays of the published program, and the comparison that their tolerances are stated for."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import attention
from attention.editing.desk import Desk
from attention.editing.folder import ServerFolder
from attention.memory import keep_memory

keep_memory()           # as every command does

# Files that take longest, in the order of their time. They begin first, so that no process waits long for the last one.
LONG = ("web_page", "published_commands", "benchmarks", "faces", "entry_points", "survival", "runs", "training",
        "installed", "extending", "compare", "baselines", "evaluate_real", "triton", "tour")

GOLDEN, FORMATS = (Path(__file__).parent / name for name in ("golden", "formats"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of LONG first."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """golden("generator_32") gives the arrays of golden/generator_32.npz as tensors (texts stay arrays)."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: torch.tensor(array) if array.dtype.kind in "fiub" else array for key, array in arrays.items()}

    return load


def published_tensors(name: str) -> dict[str, dict]:
    """Name -> "shape", "dtype" and, of a mapper, "used_in_forward", of every tensor of formats/NAME.json."""
    tensors: dict[str, dict] = json.loads((FORMATS / f"{name}.json").read_text())
    return tensors


def assert_close_to_max(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Require equal shapes and a largest error of at most `tolerance` times the largest expected value."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).detach().double()
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    error, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert error <= tolerance * largest, f"error {error:.2e} for a maximum of {largest:.2e}, allowed {tolerance:.0e}"


@pytest.fixture(scope="module")
def editor():
    """The shipped editor of drawn faces."""
    return attention.load_editor("drawn", device="cpu")


@pytest.fixture(scope="module")
def desk(editor):
    """A web page's desk with that editor."""
    with ServerFolder() as folder:
        yield Desk(editor, folder)


def square(side: int = 64, start: int = 20, end: int = 36) -> np.ndarray:
    """A mask (side, side) uint8 that is white from row and column `start` to `end`."""
    mask = np.zeros((side, side), np.uint8)
    mask[start:end, start:end] = 255
    return mask


class Calls:
    """How often modules have run: a hook on each counts."""

    def __init__(self, **modules):
        self.counts = dict.fromkeys(modules, 0)
        self.hooks = [module.register_forward_pre_hook(partial(self.count, name)) for name, module in modules.items()]

    def count(self, name, *arguments):
        self.counts[name] += 1

    def __enter__(self):
        return self.counts

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
