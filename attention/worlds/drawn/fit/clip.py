"""Train the drawn faces' small CLIP on drawings and phrases.

A small CLIP is easily fooled: it sees noise, blur, shifted colours, and faces with parts pasted in from other faces, so
that it must look at the part that a phrase is about.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attention.clip_models.tiny import TinyCLIP
from attention.images import augment, to_image
from attention.worlds.concepts import PART_NAMES
from attention.worlds.drawn.concepts import CONCEPTS, truth_table
from attention.worlds.drawn.faces import PARTS, FaceParams, draw_faces
from attention.worlds.phrases import ClipFit, teach, vocabulary

# Parts that may be pasted from another face, with the concepts whose truth goes along (a neck says nothing of the face:
# tanned skin is not done with a tanned neck); and parts of which only a piece may be pasted.
PASTED = {"hair": ("hair_colour",), "eyes": ("eye_colour",), "lips": ("lipstick",), "neck": ()}
PIECES = {"hair": ("hair_colour",), "skin": ("skin_tone",), "lips": ("lipstick",)}
PASTE_SHARE = 0.1       # of the faces, for every part


@dataclass(frozen=True)
class DrawnClipFit(ClipFit):
    """How the shipped CLIP is made."""

    faces: int = 16_000


def _paste_parts(random: np.random.Generator, images: np.ndarray, labels: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """In place: some faces get the pixels of a part, or of a piece of it, from another face.

    A whole part brings its truth along. With a piece a phrase is true only if it is of both faces, so that an edit which
    stops halfway does not count. Returns (N,) which faces are untouched.
    """
    untouched = np.ones(len(images), bool)
    fields = np.array([concept.attribute for concept in CONCEPTS])
    for table, piece in ((PASTED, False), (PIECES, True)):
        for part, moved in table.items():
            columns = np.isin(fields, moved)
            chosen = np.flatnonzero(random.random(len(images)) < PASTE_SHARE)
            for target, source in zip(chosen, random.permutation(len(images))[:len(chosen)], strict=True):
                mask = labels[target] == PARTS.index(part)
                shared = mask & (labels[source] == PARTS.index(part))
                # Only where the part of the target is nearly covered does the phrase's truth move with the pixels.
                if shared.sum() <= 0.9 * mask.sum():
                    continue
                if piece:
                    shared &= _piece_of(random, mask)
                    truths[target, columns] *= truths[source, columns]
                else:
                    truths[target, columns] = truths[source, columns]
                images[target][shared] = images[source][shared]
                untouched[target] = False
    return untouched


def _piece_of(random: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """(S, S) bool: the side of a random line that holds 20 to 80 % of a part."""
    angle = random.uniform(0, 2 * np.pi)
    across = np.cos(angle) * np.arange(mask.shape[1]) + np.sin(angle) * np.arange(mask.shape[0])[:, None]
    return across > np.quantile(across[mask], random.uniform(0.2, 0.8))


def fit_clip(recipe: DrawnClipFit = DrawnClipFit()) -> TinyCLIP:
    """Train a TinyCLIP on drawings; returns it frozen."""
    torch.manual_seed(recipe.seed)
    clip = TinyCLIP(vocabulary(CONCEPTS, PART_NAMES))
    params = FaceParams.sample(recipe.faces, seed=recipe.seed + 10)
    drawing, truths = draw_faces(params), truth_table(params)
    noise = torch.Generator().manual_seed(recipe.seed)

    def lesson(random: np.random.Generator, rows: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
        pixels, truth = drawing.images[rows].copy(), truths[rows].copy()
        untouched = _paste_parts(random, pixels, drawing.labels[rows], truth)
        return augment(to_image(pixels), noise)[0], truth, untouched

    return teach(clip, CONCEPTS, PART_NAMES, params.as_matrix(), lesson, recipe)
