"""Shared helpers: arrays of the published program, and the comparison that their tolerances are stated for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attention.generator import StyleGAN2
from attention.method.editor import RegionEditor
from attention.method.regions import RegionClusters, fit_kmeans, region_points

SHARED = Path(__file__).resolve().parents[2] / "shared"         # beside the repository, no part of it


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """golden("generator_32") gives the arrays of ../shared/golden/generator_32.npz as tensors (texts stay arrays)."""

    def load(name: str) -> dict[str, Tensor]:
        path = SHARED / "golden" / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"{path} is not there: it holds what the published program computes, beside this repository")
        with np.load(path) as arrays:
            return {key: torch.tensor(array) if array.dtype.kind in "fiub" else array for key, array in arrays.items()}

    return load


def assert_close_to_max(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Require equal shapes and a largest error of at most `tolerance` times the largest expected value."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).detach().double()
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    error, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert error <= tolerance * largest, f"error {error:.2e} for a maximum of {largest:.2e}, allowed {tolerance:.0e}"


def tiny_editor():
    """An untrained editor on a 32 px generator of random weights: blends at the second 16 px convolution, K = 5."""
    torch.manual_seed(0)
    generator = StyleGAN2(32, style_dim=16, mapping_layers=2, channels={4: 16, 8: 16, 16: 16, 32: 8})
    generator.requires_grad_(False).eval()
    with torch.no_grad():
        features = generator.synthesis(generator.styles(torch.randn(4, 16)), until=6).features[6]
    regions = RegionClusters(fit_kmeans(region_points(features), 5, seed=0), layer=6, domain="tiny")
    return RegionEditor(generator, regions, layer=6, text_dim=8)
