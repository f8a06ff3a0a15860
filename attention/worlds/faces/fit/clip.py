"""Train the small CLIP of real-looking faces on generated pictures whose truth is measured.

Whoever follows a small CLIP finds what fools it: flat paint in the colour of hair, bars for brows. So it also sees parts
that are painted over, of which no phrase about the part is true; faces changed in a part (fit/pictures.py); noise and blur.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attention.clip_models.tiny import TinyCLIP
from attention.images import Damage, augment, to_image
from attention.worlds.faces.concepts import CONCEPTS, PART_NAMES
from attention.worlds.faces.fit.pictures import Measured
from attention.worlds.faces.measures import truth_table
from attention.worlds.faces.parts import PARTS
from attention.worlds.phrases import ClipFit, teach, vocabulary

# Colours say what is true here, so they shift less than with drawings.
DAMAGE = Damage(shift=0.08, blur=1, gain=0.06, offset=0.03, noise=0.08)
# What may be painted over, and the parts of the phrases that are false then.
PAINTED = {"hair": ("hair",), "skin": ("skin", "cheeks", "jaw"), "lips": ("lips",), "irises": ("eyes",),
           "brows": ("brows",), "background": ("background",)}
PAINT_SHARE = 0.05      # of the faces, for every part


RECIPE = ClipFit(steps=3000, rate=2e-3, readout_weight=1.0)         # of the shipped CLIP


def fit_clip(taught: Measured, recipe: ClipFit = RECIPE) -> TinyCLIP:
    """Train a TinyCLIP on pictures; returns it frozen."""
    torch.manual_seed(recipe.seed)
    clip = TinyCLIP(vocabulary(CONCEPTS, PART_NAMES), image_size=taught.pixels.shape[1])
    truths, noise = truth_table(taught.numbers), torch.Generator().manual_seed(recipe.seed)

    def lesson(random: np.random.Generator, rows: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
        pixels, truth = taught.pixels[rows].copy(), truths[rows].copy()
        untouched = paint(random, pixels, taught.labels[rows], truth)
        return augment(to_image(pixels), noise, DAMAGE)[0], truth, untouched

    return teach(clip, CONCEPTS, PART_NAMES, taught.numbers, lesson, recipe)


def paint(random: np.random.Generator, pixels: np.ndarray, labels: np.ndarray, truths: np.ndarray,
          share: float = PAINT_SHARE) -> np.ndarray:
    """In place: some faces get a part painted over in one colour, more or less, and no phrase about it is true any more.

    Args:
        pixels: (N, S, S, 3) uint8.
        labels: (N, S, S) numbers of PARTS.
        truths: (N, concepts).
    Returns:
        (N,) bool: which faces are untouched.
    """
    untouched = np.ones(len(pixels), bool)
    for part, meant in PAINTED.items():
        columns = np.flatnonzero([concept.part in meant for concept in CONCEPTS])
        for row in np.flatnonzero(random.random(len(pixels)) < share):
            mask = labels[row] == PARTS.index(part)
            if not mask.any():
                continue
            colour, opacity = paint_colour(random, pixels[row][mask]), random.uniform(0.6, 1)
            pixels[row][mask] = (1 - opacity) * pixels[row][mask] + opacity * colour
            truths[row, columns] = 0
            untouched[row] = False
    return untouched


def paint_colour(random: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """(3,) any colour, or the part's own mean made darker or lighter: grey and brown fool sooner than green."""
    if random.random() < 0.3:
        return random.uniform(0, 255, 3)
    colour: np.ndarray = pixels.mean(axis=0) * random.uniform(0.1, 2) + random.uniform(-40, 40, 3)
    return colour.clip(0, 255)


def joined(parts: Sequence[Measured]) -> Measured:
    """Several sets of pictures as one."""
    return Measured(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("pixels", "labels", "numbers")))
