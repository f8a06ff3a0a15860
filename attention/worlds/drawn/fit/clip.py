"""Train the drawn faces' small CLIP on drawings and phrases.

A small CLIP is easily fooled: it sees noise, blur, shifted colours, and faces with
parts pasted in from other faces, so that it must look at the part that a phrase is about.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attention.clip_models.tiny import TinyCLIP
from attention.fits import fit
from attention.images import augment, to_image
from attention.worlds.concepts import PART_NAMES
from attention.worlds.drawn.concepts import CONCEPTS, truth_table
from attention.worlds.drawn.faces import PARTS, FaceParams, draw_faces
from attention.worlds.phrases import pair_loss, part_texts, sample_phrases, vocabulary

# Parts that may be pasted from another face, with the concepts whose truth goes along (a neck says nothing of the face:
# tanned skin is not done with a tanned neck); and parts of which only a piece may be pasted.
PASTED = {"hair": ("hair_colour",), "eyes": ("eye_colour",), "lips": ("lipstick",), "neck": ()}
PIECES = {"hair": ("hair_colour",), "skin": ("skin_tone",), "lips": ("lipstick",)}
PASTE_SHARE = 0.1       # of the faces, for every part
PART_SCALE = 10         # of a text's unit embedding, from which its part is read


@dataclass(frozen=True)
class ClipFit:
    """How the shipped CLIP is made."""

    faces: int = 16_000
    batch_size: int = 64
    steps: int = 2600
    rate: float = 3e-3
    readout_weight: float = 1.5         # of the attributes' linear read-out, which teaches small parts much sooner
    part_weight: float = 0.2            # of reading from a text which part it means: "eyes" is then near "blue eyes"
    phrases: int = 64       # a step compares every face with this many phrases
    seed: int = 0


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


def fit_clip(recipe: ClipFit = ClipFit()) -> TinyCLIP:
    """Train a TinyCLIP on drawings; returns it frozen."""
    torch.manual_seed(recipe.seed)
    clip = TinyCLIP(vocabulary(CONCEPTS, PART_NAMES))
    params = FaceParams.sample(recipe.faces, seed=recipe.seed + 10)
    drawing = draw_faces(params)
    images, labels = drawing.images, drawing.labels
    numbers = torch.from_numpy(params.as_matrix()).float()
    numbers = (numbers - numbers.mean(dim=0)) / numbers.std(dim=0)      # so that every attribute counts alike
    readout = torch.nn.Linear(clip.dim, numbers.shape[1])
    named, meant = part_texts(CONCEPTS, PART_NAMES)
    part_readout = torch.nn.Linear(clip.dim, len(PART_NAMES))
    truths = truth_table(params)
    scale, bias = torch.nn.Parameter(torch.tensor(2.3)), torch.nn.Parameter(torch.tensor(-2.0))
    optimiser = torch.optim.AdamW([*clip.parameters(), *readout.parameters(), *part_readout.parameters(), scale, bias],
                                  lr=recipe.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps)
    noise = torch.Generator().manual_seed(recipe.seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        random = np.random.default_rng([recipe.seed, step])
        rows = random.integers(recipe.faces, size=recipe.batch_size)
        pixels, truth = images[rows].copy(), truths[rows].copy()
        untouched = _paste_parts(random, pixels, labels[rows], truth)
        texts, wanted = sample_phrases(random, CONCEPTS, truth, recipe.phrases)
        embedded = clip.encode_image(augment(to_image(pixels), noise)[0])
        seen, said = F.normalize(embedded, dim=1), F.normalize(clip.encode_text(texts), dim=1)
        pairs = pair_loss(scale.exp() * seen @ said.T + bias, torch.from_numpy(wanted).float())
        error = (readout(embedded) - numbers[rows]).square()
        some = random.permutation(len(named))[:recipe.phrases]
        part = part_readout(F.normalize(clip.encode_text([named[i] for i in some]), dim=1) * PART_SCALE)
        whole = (pairs + recipe.readout_weight * error[torch.from_numpy(untouched)].mean()
                 + recipe.part_weight * F.cross_entropy(part, meant[some]))
        return whole, {"error": float(error.detach().mean())}

    fit(optimiser, loss, recipe.steps, "clip", schedule)
    return clip.freeze()
