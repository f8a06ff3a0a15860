"""Train the small CLIP of real-looking faces on generated pictures whose truth is measured.

Whoever follows a small CLIP finds what fools it: flat paint in the colour of hair, bars for brows. So it also sees parts
that are painted over, of which no phrase about the part is true; parts of another tint, so that the colour of lips is not
read from the skin around them; faces changed in a part, and edits (fit/pictures.py); noise and blur.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from attention.worlds.faces.measures import MEASURES, decided, truth_table
from attention.worlds.faces.parts import PARTS
from attention.worlds.phrases import ClipFit, part_texts, sample_phrases, teach, vocabulary

# Colours say what is true here, so they shift less than with drawings.
DAMAGE = Damage(shift=0.08, blur=1, gain=0.06, offset=0.03, noise=0.08)
# What may be painted over, and the parts of the phrases that are false then.
PAINTED = {"hair": ("hair",), "skin": ("skin", "cheeks", "jaw"), "lips": ("lips",), "irises": ("eyes",),
           "brows": ("brows",), "background": ("background",)}
PAINT_SHARE = 0.05      # of the faces, for every part
TINT_SHARE = 0.1        # of the faces, for every part


@dataclass(frozen=True)
class Tint:
    """How a part's colour may shift as a whole, its texture kept.

    Attributes:
        labels: of PARTS that it covers.
        spread: standard deviations of the shift in L, a and b.
        shifts: measure -> how much of the shift in L, a and b it moves by.
    """

    labels: tuple[str, ...]
    spread: tuple[float, float, float]
    shifts: Mapping[str, tuple[float, float, float]]


def _moved(name: str) -> dict[str, tuple[float, float, float]]:
    return {f"{name}_L": (1, 0, 0), f"{name}_a": (0, 1, 0), f"{name}_b": (0, 0, 1)}


TINTS = {
    "hair": Tint(("hair",), (8, 4, 6), _moved("hair")),
    "skin": Tint(("skin", "neck", "nose"), (9, 4, 5),
                 _moved("skin") | dict.fromkeys(("skin_L_low", "skin_L_high", "brows_dark"), (1, 0, 0))),
    "lips": Tint(("lips",), (7, 9, 6), _moved("lips")),
    "brows": Tint(("brows",), (8, 0, 0), {"brows_dark": (-1, 0, 0)}),
    "background": Tint(("background",), (25, 10, 14), _moved("background")),
}


RECIPE = ClipFit(steps=3000, rate=2e-3, readout_weight=1.0)         # of a new CLIP
REWORDED = ClipFit(steps=600, rate=1e-3)                            # of one that reads another phrase
REFINED = ClipFit(steps=2000, rate=5e-4, readout_weight=1.0, seed=1)        # of one that looks again


def fit_clip(taught: Measured, recipe: ClipFit = RECIPE) -> TinyCLIP:
    """Train a TinyCLIP on pictures; returns it frozen."""
    torch.manual_seed(recipe.seed)
    return _taught(TinyCLIP(vocabulary(CONCEPTS, PART_NAMES), image_size=taught.pixels.shape[1]), taught, recipe,
                   truth_table)


def refine_clip(clip: TinyCLIP, taught: Measured, recipe: ClipFit = REFINED) -> TinyCLIP:
    """Train what a TinyCLIP sees further, in place; what it reads stays, so that its editors still understand texts.

    Nothing is a matter of taste now: whoever follows a CLIP that never saw lips between plainly red and plainly not stops
    between them.

    Returns:
        The same one, frozen.
    """
    torch.manual_seed(recipe.seed)
    clip.frozen = False
    clip.train().model.visual.requires_grad_(True)
    return _taught(clip, taught, recipe, decided)


def reword_clip(clip: TinyCLIP, taught: str, instead: str, recipe: ClipFit = REWORDED) -> TinyCLIP:
    """Train what a TinyCLIP reads, in place, so that a phrase takes the place of another that is given up; all other texts
    keep theirs, so that its editors still understand them. What it sees is to be taught next, by `refine_clip`.

    Args:
        taught: the phrase that it shall know, one of CONCEPTS, in words that it has.
        instead: the phrase that it knew and that is given up.
    Returns:
        The same one, frozen.
    """
    torch.manual_seed(recipe.seed)
    before = copy.deepcopy(clip)
    clip.frozen = False
    clip.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(clip.model.transformer.parameters(), lr=recipe.rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps)
    named, nothing = part_texts(CONCEPTS, PART_NAMES)[0], np.zeros((1, len(CONCEPTS)))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        random = np.random.default_rng([recipe.seed, step])
        texts = [*sample_phrases(random, CONCEPTS, nothing, recipe.phrases)[0], *random.choice(named, recipe.batch_size)]
        wanted = before.encode_text([text.replace(taught, instead) for text in texts])
        error = F.mse_loss(clip.encode_text(texts), wanted) / wanted.square().mean()
        return error, {"error": float(error.detach())}

    fit(optimiser, loss, recipe.steps, "texts", schedule)
    return clip.freeze()


def _taught(clip: TinyCLIP, taught: Measured, recipe: ClipFit, truths: Callable[[np.ndarray], np.ndarray]) -> TinyCLIP:
    noise = torch.Generator().manual_seed(recipe.seed)

    def lesson(random: np.random.Generator, rows: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
        pixels, labels, numbers = taught.pixels[rows].copy(), taught.labels[rows], taught.numbers[rows].copy()
        untinted = tint(random, pixels, labels, numbers)
        truth = truths(numbers)
        untouched = paint(random, pixels, labels, truth)
        return augment(to_image(pixels), noise, DAMAGE)[0], truth, untouched & untinted

    return teach(clip, CONCEPTS, PART_NAMES, taught.numbers, lesson, recipe)


def tint(random: np.random.Generator, pixels: np.ndarray, labels: np.ndarray, numbers: np.ndarray,
         share: float = TINT_SHARE) -> np.ndarray:
    """In place: parts of some faces get another tint, and the measures follow.

    Args:
        pixels: (N, S, S, 3) uint8.
        labels: (N, S, S) numbers of PARTS.
        numbers: (N, M) of MEASURES.
    Returns:
        (N,) bool: which faces are untouched.
    """
    from skimage.color import lab2rgb, rgb2lab  # noqa: PLC0415  (of the extra `truth`)

    untouched, columns = np.ones(len(pixels), bool), {name: column for column, name in enumerate(MEASURES)}
    for kind in TINTS.values():
        meant = [PARTS.index(label) for label in kind.labels]
        for row in np.flatnonzero(random.random(len(pixels)) < share):
            where = np.isin(labels[row], meant)
            if not where.any():
                continue
            lab = rgb2lab(pixels[row][where])
            shift = _softened(where)[where, None] * (random.normal(size=3) * kind.spread)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)                                    # of tints beyond sRGB
                pixels[row][where] = (lab2rgb(lab + shift).clip(0, 1) * 255).round()
            # Not every tint can be shown: what counts is by how much it did move.
            moved = np.median(rgb2lab(pixels[row][where]), axis=0) - np.median(lab, axis=0)
            for name, share_of in kind.shifts.items():
                numbers[row, columns[name]] += moved @ share_of
            untouched[row] = False
    numbers[:, columns["hair_chroma"]] = np.hypot(numbers[:, columns["hair_a"]], numbers[:, columns["hair_b"]])
    return untouched


def _softened(mask: np.ndarray) -> np.ndarray:
    """(S, S) bool -> float: its mean over 3 x 3 pixels, so that it has no hard edge."""
    return F.avg_pool2d(torch.from_numpy(mask)[None].float(), 3, stride=1, padding=1)[0].numpy()


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
