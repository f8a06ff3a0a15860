"""Teaching a small CLIP what phrases are true of pictures: phrases and their truth in, a loss and its quality out.

Several phrases are true of one face, so the loss is not InfoNCE but a sigmoid loss over all pairs of a face and a phrase
whose truth is known (SigLIP's form).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attention.clip_models.tiny import TinyCLIP
from attention.fits import fit
from attention.worlds.concepts import Concept

WORDS_BESIDE = ("and", "a", "the", "with", "of", "face", "person", "wearing", "very")
PART_SCALE = 10         # of a text's unit embedding, from which its part is read
# A step's random numbers and the rows of its faces -> pictures (B, 3, S, S), their truth (B, concepts), and (B,) bool:
# which of them are still the faces that the numbers describe.
Lesson = Callable[[np.random.Generator, np.ndarray], tuple[Tensor, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ClipFit:
    """How a small CLIP is taught."""

    batch_size: int = 64
    steps: int = 2600
    rate: float = 3e-3
    readout_weight: float = 1.5         # of the numbers' linear read-out, which teaches small parts much sooner
    part_weight: float = 0.2            # of reading from a text which part it means: "eyes" is then near "blue eyes"
    phrases: int = 64       # a step compares every face with this many phrases
    seed: int = 0


def teach(clip: TinyCLIP, concepts: Sequence[Concept], names: Mapping[str, Sequence[str]], numbers: np.ndarray,
          lesson: Lesson, recipe: ClipFit) -> TinyCLIP:
    """Train a new TinyCLIP; returns it frozen.

    Args:
        concepts, names: phrases and the names of parts.
        numbers: (N, M) what else is known of N faces, NaN where it is not; every column counts alike.
        lesson: makes the pictures of a step.
    """
    known = torch.from_numpy(np.isfinite(numbers))
    normed = (numbers - np.nanmean(numbers, axis=0)) / np.nanstd(numbers, axis=0, ddof=1)
    wished = torch.from_numpy(np.nan_to_num(normed)).float().clamp(-4, 4)
    readout, part_readout = torch.nn.Linear(clip.dim, wished.shape[1]), torch.nn.Linear(clip.dim, len(names))
    named, meant = part_texts(concepts, names)
    scale, bias = torch.nn.Parameter(torch.tensor(2.3)), torch.nn.Parameter(torch.tensor(-2.0))
    optimiser = torch.optim.AdamW([*clip.parameters(), *readout.parameters(), *part_readout.parameters(), scale, bias],
                                  lr=recipe.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        random = np.random.default_rng([recipe.seed, step])
        rows = random.integers(len(numbers), size=recipe.batch_size)
        images, truth, untouched = lesson(random, rows)
        texts, wanted = sample_phrases(random, concepts, truth, recipe.phrases)
        embedded = clip.encode_image(images)
        seen, said = F.normalize(embedded, dim=1), F.normalize(clip.encode_text(texts), dim=1)
        pairs = pair_loss(scale.exp() * seen @ said.T + bias, torch.from_numpy(wanted).float())
        told = torch.from_numpy(untouched)[:, None] & known[rows]
        error = (readout(embedded) - wished[rows]).square()[told].mean()
        some = random.permutation(len(named))[:recipe.phrases]
        part = part_readout(F.normalize(clip.encode_text([named[i] for i in some]), dim=1) * PART_SCALE)
        whole = pairs + recipe.readout_weight * error + recipe.part_weight * F.cross_entropy(part, meant[some])
        return whole, {"pairs": float(pairs.detach()), "error": float(error.detach())}

    fit(optimiser, loss, recipe.steps, "clip", schedule)
    return clip.freeze()


def vocabulary(concepts: Sequence[Concept], names: Mapping[str, Sequence[str]]) -> list[str]:
    """All phrases and words that captions and *where* texts use; `names` of parts."""
    phrases = [text for concept in concepts for text in (concept.phrase, *concept.synonyms)]
    return phrases + [text for texts in names.values() for text in texts] + list(WORDS_BESIDE)


def part_texts(concepts: Sequence[Concept], names: Mapping[str, Sequence[str]]) -> tuple[list[str], Tensor]:
    """Every phrase and every name of a part, and (N,) the number of the part that each means."""
    texts = [(text, concept.part) for concept in concepts for text in (concept.phrase, *concept.synonyms)]
    texts += [(name, part) for part, own in names.items() for name in own]
    parts = list(names)
    return [text for text, _ in texts], torch.tensor([parts.index(part) for _, part in texts])


def sample_phrases(random: np.random.Generator, concepts: Sequence[Concept], truths: np.ndarray,
                   count: int) -> tuple[list[str], np.ndarray]:
    """`count` phrases, a third of them two concepts joined by "and", and their truth (N, count) for the faces.

    Args:
        truths: (N, concepts) 1 true, 0 false, NaN unknown.
    """
    texts, columns = [], []
    for i in range(count):
        first = i % len(concepts)
        text, truth = _worded(random, concepts[first]), truths[:, first]
        if random.random() < 1 / 3:
            second = int(random.integers(len(concepts)))
            if concepts[second].attribute != concepts[first].attribute:
                text, truth = f"{text} and {_worded(random, concepts[second])}", truth * truths[:, second]
        texts.append(text)
        columns.append(truth)
    return texts, np.stack(columns, axis=1)


def _worded(random: np.random.Generator, concept: Concept) -> str:
    return str(random.choice([concept.phrase, concept.phrase, *concept.synonyms]))


def pair_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Sigmoid loss over the pairs whose truth is known, true and false ones weighing the same."""
    return F.softplus(-logits[truth == 1]).mean() + F.softplus(logits[truth == 0]).mean()


@torch.no_grad()
def area_under_curve(clip: TinyCLIP, concepts: Sequence[Concept], images: Tensor, truths: np.ndarray) -> dict[str, float]:
    """Phrase -> probability that a face of which it is true scores higher than one of which it is false."""
    seen = F.normalize(torch.cat([clip.encode_image(part) for part in images.split(64)]), dim=1)
    said = F.normalize(clip.encode_text([concept.phrase for concept in concepts]), dim=1)
    scores, result = (seen @ said.T).numpy(), {}
    for column, concept in enumerate(concepts):
        true, false = scores[truths[:, column] == 1, column], scores[truths[:, column] == 0, column]
        result[concept.phrase] = float((true[:, None] > false[None]).mean())
    return result
