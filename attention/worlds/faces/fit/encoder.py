"""The encoder of real-looking faces, taught by generated ones."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attention.generator import Generator
from attention.images import Damage
from attention.worlds.faces.fit.pictures import unchanged
from attention.worlds.tower import EncoderFit, TowerEncoder, fit_tower

# Photos are framed by landmarks that are off by a little, softer than what is generated, and of other light.
DAMAGE = Damage(shift=0.03, blur=2, coarse=0.4, coarsest=0.4, gain=0.06, offset=0.04, noise=0.06)
RECIPE = EncoderFit(width=48)


def faces_of(generator: Generator, folder: Path, numbers: Iterable[int]) -> tuple[np.ndarray, Tensor]:
    """Pictures (N, S, S, 3) uint8 and w (N, style_dim) of the unchanged faces of shards."""
    pictures, latents = zip(*(unchanged(generator, folder, number) for number in numbers), strict=True)
    return np.concatenate(pictures), torch.cat(latents)


def fit_encoder(generator: Generator, folder: Path, numbers: Iterable[int], recipe: EncoderFit = RECIPE) -> TowerEncoder:
    """Train on the unchanged faces of shards, made as unlike generated ones as photos may be."""
    return fit_tower(generator, *faces_of(generator, folder, numbers), DAMAGE, recipe)
