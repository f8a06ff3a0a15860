"""When a phrase is true of a drawn face, and how to make it true; captions of drawn faces."""

from dataclasses import dataclass, replace

import numpy as np

from attention.worlds import concepts
from attention.worlds.drawn.faces import EYE_COLOURS, HAIR_COLOURS, LIP_COLOURS, FaceParams

OPTIONS = {"hair_colour": tuple(HAIR_COLOURS), "eye_colour": tuple(EYE_COLOURS), "lipstick": tuple(LIP_COLOURS)}
PRESENCES = ("rosy_cheeks", "beard", "earrings", "glasses")         # drawn as opacity
# A category is named when its weight is above the first number and denied below the second.
CATEGORY_TRUE, CATEGORY_FALSE = 0.65, 0.25
# Phrases about the lower end of a value; the others speak of its upper end.
LOW = {"short hair", "pale skin", "narrow eyes", "thin eyebrows", "narrow nose", "frowning", "mouth closed", "small ears",
       "a narrow face", "a short face"}
TANNED = 0.85               # of the skin tone: darker skin is dark by birth, not by the sun


@dataclass(frozen=True)
class Concept(concepts.Concept):
    """A phrase about the field `attribute` of FaceParams, and its truth: an option's weight, or a value beyond a bound.

    `target` is the field's value when the concept is made true; `part` is a name that Drawing.mask knows.
    """

    target: float = 1.0
    true_beyond: float = 0.62
    false_before: float = 0.45
    option: str | None = None

    def truth(self, params: FaceParams) -> np.ndarray:
        """(N,) 1 where the phrase is true, 0 where it is false, NaN where it is a matter of taste."""
        values = getattr(params, self.attribute)
        if self.option is not None:
            values = values[:, OPTIONS[self.attribute].index(self.option)]
            return np.where(values > CATEGORY_TRUE, 1.0, np.where(values < CATEGORY_FALSE, 0.0, np.nan))
        sign = 1 if self.true_beyond >= self.false_before else -1
        return np.where(sign * values > sign * self.true_beyond, 1.0,
                        np.where(sign * values < sign * self.false_before, 0.0, np.nan))

    def seen_in(self, params: FaceParams) -> np.ndarray:
        """(N,) bool: the option's weight is the largest, or the value is beyond the middle of the two bounds."""
        values = getattr(params, self.attribute)
        if self.option is not None:
            return values.argmax(axis=1) == OPTIONS[self.attribute].index(self.option)
        middle = (self.true_beyond + self.false_before) / 2
        return values > middle if self.true_beyond >= self.false_before else values < middle

    def apply(self, params: FaceParams) -> FaceParams:
        """The same faces with this concept made true; where it already is more so, the field stays."""
        values = getattr(params, self.attribute)
        if self.option is not None:
            target = np.zeros_like(values)
            target[:, OPTIONS[self.attribute].index(self.option)] = 1
        else:
            bound = np.maximum if self.true_beyond >= self.false_before else np.minimum
            target = bound(values, np.float32(self.target))
        return replace(params, **{self.attribute: target})


def _rule(said: concepts.Concept) -> dict:
    if said.attribute in OPTIONS:
        return {"option": said.phrase.split()[0]}                       # "grey hair"
    if said.attribute in PRESENCES:
        return {}
    if said.phrase in LOW:
        return {"target": 0.05, "true_beyond": 0.30, "false_before": 0.50}
    return {"target": TANNED if said.phrase == "tanned skin" else 0.95, "true_beyond": 0.70, "false_before": 0.50}


CONCEPTS = tuple(Concept(**vars(said), **_rule(said)) for said in concepts.CONCEPTS)
BY_PHRASE = {concept.phrase: concept for concept in CONCEPTS}


def truth_table(params: FaceParams) -> np.ndarray:
    """(N, len(CONCEPTS)) of Concept.truth."""
    return np.stack([concept.truth(params) for concept in CONCEPTS], axis=1)


def captions(params: FaceParams, seed: int, lines: int = 10) -> list[list[str]]:
    """`lines` sentences for each face in celeba-caption's manner: a few true phrases joined by commas and "and"."""
    random, truths = np.random.default_rng(seed), truth_table(params)
    result = []
    for truth in truths:
        true = np.flatnonzero(truth == 1)
        sentences = []
        for _ in range(lines):
            chosen = [CONCEPTS[i] for i in random.permutation(true)[:random.integers(1, 5)]]
            words = [concept.phrase if random.random() < 0.6 or not concept.synonyms
                     else str(random.choice(concept.synonyms)) for concept in chosen]
            sentences.append((", ".join(words[:-1]) + ", and " if len(words) > 1 else "") + "".join(words[-1:]) + ".")
        result.append(sentences)
    return result
