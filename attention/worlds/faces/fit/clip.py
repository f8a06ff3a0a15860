"""Train the small CLIP of real-looking faces on generated pictures whose truth is measured.

Whoever follows a small CLIP finds what fools it: flat paint in the colour of hair, bars for brows. So it also sees parts
that are painted over, of which no phrase about the part is true; faces changed in a part (fit/pictures.py); noise and blur.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attention.clip_models.tiny import TinyCLIP
from attention.fits import fit
from attention.images import Damage, augment, to_image
from attention.worlds.faces.concepts import CONCEPTS, PART_NAMES
from attention.worlds.faces.fit.pictures import Measured
from attention.worlds.faces.measures import truth_table
from attention.worlds.faces.parts import PARTS
from attention.worlds.phrases import pair_loss, part_texts, sample_phrases, vocabulary

# Colours say what is true here, so they shift less than with drawings.
DAMAGE = Damage(shift=0.08, blur=1, gain=0.06, offset=0.03, noise=0.08)
# What may be painted over, and the parts of the phrases that are false then.
PAINTED = {"hair": ("hair",), "skin": ("skin", "cheeks", "jaw"), "lips": ("lips",), "irises": ("eyes",),
           "brows": ("brows",), "clothes": ("clothes",), "background": ("background",)}
PAINT_SHARE = 0.05      # of the faces, for every part
PART_SCALE = 10         # of a text's unit embedding, from which its part is read


@dataclass(frozen=True)
class ClipFit:
    """How the shipped CLIP is made."""

    batch_size: int = 64
    steps: int = 2000
    rate: float = 2e-3
    readout_weight: float = 1.0         # of the measures' linear read-out
    part_weight: float = 0.2            # of reading from a text which part it means: "eyes" is then near "blue eyes"
    phrases: int = 64       # a step compares every face with this many phrases
    width: int = 24         # of the picture tower's first convolution
    seed: int = 0


def fit_clip(taught: Measured, recipe: ClipFit = ClipFit(), clip: TinyCLIP | None = None) -> TinyCLIP:
    """Train a TinyCLIP on pictures; returns it frozen.

    Args:
        clip: go on with this one in place of a new one.
    """
    torch.manual_seed(recipe.seed)
    clip = clip or TinyCLIP(vocabulary(CONCEPTS, PART_NAMES), image_size=taught.pixels.shape[1], width=recipe.width)
    known = torch.from_numpy(np.isfinite(taught.numbers))
    spread = (taught.numbers - np.nanmean(taught.numbers, axis=0)) / np.nanstd(taught.numbers, axis=0)
    numbers = torch.from_numpy(np.nan_to_num(spread)).clamp(-4, 4)
    truths = truth_table(taught.numbers)
    readout = torch.nn.Linear(clip.dim, numbers.shape[1])
    named, meant = part_texts(CONCEPTS, PART_NAMES)
    part_readout = torch.nn.Linear(clip.dim, len(PART_NAMES))
    scale, bias = torch.nn.Parameter(torch.tensor(2.3)), torch.nn.Parameter(torch.tensor(-2.0))
    optimiser = torch.optim.AdamW([*clip.parameters(), *readout.parameters(), *part_readout.parameters(), scale, bias],
                                  lr=recipe.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps)
    noise = torch.Generator().manual_seed(recipe.seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        random = np.random.default_rng([recipe.seed, step])
        rows = random.integers(len(taught.pixels), size=recipe.batch_size)
        pixels, truth = taught.pixels[rows].copy(), truths[rows].copy()
        untouched = torch.from_numpy(paint(random, pixels, taught.labels[rows], truth))
        texts, wanted = sample_phrases(random, CONCEPTS, truth, recipe.phrases)
        embedded = clip.encode_image(augment(to_image(pixels), noise, DAMAGE)[0])
        seen, said = F.normalize(embedded, dim=1), F.normalize(clip.encode_text(texts), dim=1)
        pairs = pair_loss(scale.exp() * seen @ said.T + bias, torch.from_numpy(wanted).float())
        error = (readout(embedded) - numbers[rows]).square()[untouched[:, None] & known[rows]].mean()
        some = random.permutation(len(named))[:recipe.phrases]
        part = part_readout(F.normalize(clip.encode_text([named[i] for i in some]), dim=1) * PART_SCALE)
        whole = pairs + recipe.readout_weight * error + recipe.part_weight * F.cross_entropy(part, meant[some])
        return whole, {"pairs": float(pairs.detach()), "error": float(error.detach())}

    fit(optimiser, loss, recipe.steps, "clip", schedule)
    return clip.freeze()


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
