"""Shared helpers: arrays of the published program, and the comparison that their tolerances are stated for."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import attention
from attention.editing.desk import Desk
from attention.editing.folder import ServerFolder
from attention.generator import Generator, StyleGAN2
from attention.images import area_resize
from attention.method.editor import RegionEditor
from attention.method.regions import RegionClusters, fit_kmeans, region_points
from attention.worlds.base import Part, WorldEntry
from attention.worlds.world import World

GOLDEN, FORMATS = (Path(__file__).parent / name for name in ("golden", "formats"))


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


def tiny_editor():
    """An untrained editor on a 32 px generator of random weights: blends at the second 16 px convolution, K = 5."""
    torch.manual_seed(0)
    generator = StyleGAN2(32, style_dim=16, mapping_layers=2, channels={4: 16, 8: 16, 16: 16, 32: 8})
    generator.requires_grad_(False).eval()
    with torch.no_grad():
        features = generator.synthesis(generator.styles(torch.randn(4, 16)), until=6).features[6]
    regions = RegionClusters(fit_kmeans(region_points(features), 5, seed=0), layer=6, domain="tiny")
    return RegionEditor(generator, regions, layer=6, text_dim=8)


class LinearCLIP:
    """Average-pooled pixels times a fixed matrix, in CLIP's place; it reads no texts."""

    def __init__(self, matrix: Tensor, side: int, factor: float = 1.0):
        self.matrix, self.side, self.factor, self.dim = matrix, side, factor, matrix.shape[1]

    def encode_image(self, images: Tensor) -> Tensor:
        return area_resize(images, self.side).flatten(1) @ self.matrix * self.factor


def tiny_world(generator: Generator, clip: LinearCLIP | None = None, views: str = "plain",
               perceptual: Callable[[Tensor], Tensor] = lambda images: images) -> World:
    """A world around a generator, its parts given."""
    entry = WorldEntry("tiny", Path("none"), ("a",), Part("tiny", "none"), truncation=1.0, views=views)
    return World(entry, generator, "", torch.device("cpu"), clip=clip, perceptual=perceptual)
