"""The encoder of real-looking faces, taught by generated ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attention.devices import autocast
from attention.generator import Generator, sample_z
from attention.images import Damage, to_pixels
from attention.worlds.faces.fit.pictures import PHOTOS, read_arrays
from attention.worlds.tower import EncoderFit, TowerEncoder, fit_tower

SHARD = 1000            # faces
AT_ONCE = 8
TRUNCATION = (0.6, 1.0)         # of the faces: photos are as far from the mean as any
# Photos are framed by landmarks that are off by a little, softer than what is generated, and of other light.
DAMAGE = Damage(shift=0.03, blur=2, coarse=0.4, coarsest=0.4, gain=0.06, offset=0.04, noise=0.06)
RECIPE = EncoderFit(width=48)


@dataclass(frozen=True)
class Photos:
    """N generated faces: pictures (N, S, S, 3) uint8 and their w (N, style_dim) float32."""

    pixels: np.ndarray
    w: np.ndarray


@torch.no_grad()
def make_photos(generator: Generator, number: int) -> Photos:
    """SHARD seeded faces."""
    z, random = sample_z(SHARD, generator.style_dim, 20_000 + number), np.random.default_rng([9, number])
    truncation = torch.from_numpy(random.uniform(*TRUNCATION, (SHARD, 1))).float()
    mean = generator.mapping(z[:1], 0.0)
    w, pixels = mean + truncation * (generator.mapping(z) - mean), []
    for part in w.split(AT_ONCE):
        with autocast("bf16", part.device):
            pixels.append(to_pixels(generator.picture(generator.styles(part)).float()))
    return Photos(np.concatenate(pixels), w.numpy())


def photos(folder: Path, numbers: Iterable[int]) -> tuple[np.ndarray, Tensor]:
    """Pictures (N, S, S, 3) uint8 and w (N, style_dim) of shards."""
    pixels, latents = zip(*(read_arrays(folder / f"{PHOTOS}{number:04d}.npz", ("pixels", "w")) for number in numbers),
                          strict=True)
    return np.concatenate(pixels), torch.from_numpy(np.concatenate(latents))


def fit_encoder(generator: Generator, pictures: np.ndarray, w: Tensor, recipe: EncoderFit = RECIPE) -> TowerEncoder:
    """Train on generated faces, made as unlike generated ones as photos may be."""
    return fit_tower(generator, pictures, w, DAMAGE, recipe)
