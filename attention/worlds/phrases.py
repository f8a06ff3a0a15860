"""Teaching a small CLIP what phrases are true of pictures: phrases and their truth in, a loss and its quality out.

Several phrases are true of one face, so the loss is not InfoNCE but a sigmoid loss over all pairs of a face and a phrase
whose truth is known (SigLIP's form).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attention.clip_models.tiny import TinyCLIP
from attention.worlds.concepts import Concept

WORDS_BESIDE = ("and", "a", "the", "with", "of", "face", "person", "wearing", "very")


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
