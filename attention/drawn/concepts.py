"""What can be said of a drawn face: phrases, whether they are true, and how to make them true.

One table serves captions, the small CLIP's training, the attribute reader, the evaluation and the prompts of the
editor's training. A concept is a phrase about one field of FaceParams.
"""

from dataclasses import dataclass, replace

import numpy as np

from attention.drawn.faces import EYE_COLOURS, HAIR_COLOURS, LIP_COLOURS, FaceParams

OPTIONS = {"hair_colour": tuple(HAIR_COLOURS), "eye_colour": tuple(EYE_COLOURS), "lipstick": tuple(LIP_COLOURS)}
# A category is named when its weight is above the first number and denied below the second.
CATEGORY_TRUE, CATEGORY_FALSE = 0.65, 0.25


@dataclass(frozen=True)
class Concept:
    """A phrase, the field it speaks of, and the truth: an option's weight, or a value beyond a bound.

    `target` is the field's value when the concept is made true; `part` is the part of the face that the phrase means
    (a name that Drawing.mask knows).
    """

    phrase: str
    field: str
    part: str
    target: float = 1.0
    true_beyond: float = 0.62
    false_before: float = 0.45
    option: str | None = None
    synonyms: tuple[str, ...] = ()

    def truth(self, params: FaceParams) -> np.ndarray:
        """(N,) 1 where the phrase is true, 0 where it is false, NaN where it is a matter of taste."""
        values = getattr(params, self.field)
        if self.option is not None:
            values = values[:, OPTIONS[self.field].index(self.option)]
            return np.where(values > CATEGORY_TRUE, 1.0, np.where(values < CATEGORY_FALSE, 0.0, np.nan))
        sign = 1 if self.true_beyond >= self.false_before else -1
        return np.where(sign * values > sign * self.true_beyond, 1.0,
                        np.where(sign * values < sign * self.false_before, 0.0, np.nan))

    def apply(self, params: FaceParams) -> FaceParams:
        """The same faces with this concept made true; where it already is more so, the field stays."""
        values = getattr(params, self.field)
        if self.option is not None:
            target = np.zeros_like(values)
            target[:, OPTIONS[self.field].index(self.option)] = 1
        else:
            bound = np.maximum if self.true_beyond >= self.false_before else np.minimum
            target = bound(values, np.float32(self.target))
        return replace(params, **{self.field: target})


def _low(phrase: str, field: str, part: str, target: float = 0.05, synonyms: tuple[str, ...] = ()) -> Concept:
    return Concept(phrase, field, part, target, true_beyond=0.30, false_before=0.50, synonyms=synonyms)


def _high(phrase: str, field: str, part: str, target: float = 0.95, synonyms: tuple[str, ...] = ()) -> Concept:
    return Concept(phrase, field, part, target, true_beyond=0.70, false_before=0.50, synonyms=synonyms)


CONCEPTS = (
    *(Concept(f"{colour} hair", "hair_colour", "hair", option=colour) for colour in HAIR_COLOURS),
    _high("long hair", "hair_length", "hair"),
    _low("short hair", "hair_length", "hair"),
    _low("pale skin", "skin_tone", "skin", synonyms=("light skin",)),
    _high("tanned skin", "skin_tone", "skin", target=0.85, synonyms=("dark skin",)),
    Concept("rosy cheeks", "rosy_cheeks", "cheeks", synonyms=("red cheeks", "blushing")),
    *(Concept(f"{colour} eyes", "eye_colour", "eyes", option=colour) for colour in EYE_COLOURS),
    _low("narrow eyes", "eye_opening", "eyes", synonyms=("small eyes",)),
    _high("big eyes", "eye_opening", "eyes", synonyms=("large eyes", "wide eyes")),
    _high("bushy eyebrows", "brow_thickness", "brows", synonyms=("thick eyebrows",)),
    _low("thin eyebrows", "brow_thickness", "brows", synonyms=("narrow eyebrows",)),
    _high("big nose", "nose_width", "nose", synonyms=("large nose", "wide nose")),
    _low("narrow nose", "nose_width", "nose", synonyms=("small nose",)),
    Concept("red lipstick", "lipstick", "lips", option="red", synonyms=("red lips",)),
    Concept("pink lipstick", "lipstick", "lips", option="pink", synonyms=("pink lips", "pink lipsticks")),
    _high("smiling", "smile", "lips", synonyms=("a smile", "a happy smile")),
    _low("frowning", "smile", "lips", synonyms=("a sad mouth",)),
    _high("mouth slightly open", "mouth_open", "mouth", synonyms=("an open mouth",)),
    _low("mouth closed", "mouth_open", "mouth", synonyms=("a closed mouth",)),
    Concept("beard", "beard", "jaw", synonyms=("a beard", "a bearded chin")),
    Concept("earrings", "earrings", "earrings", synonyms=("wearing earrings", "wearing a pair of earrings")),
    _high("large ears", "ear_size", "ears", synonyms=("big ears",)),
    _low("small ears", "ear_size", "ears"),
    Concept("glasses", "glasses", "glasses", synonyms=("wearing glasses", "eyeglasses")),
    _high("a wide face", "face_width", "skin"),
    _low("a narrow face", "face_width", "skin"),
    _high("a long face", "face_height", "skin"),
    _low("a short face", "face_height", "skin"),
)
BY_PHRASE = {concept.phrase: concept for concept in CONCEPTS}

# The evaluation's fixed list: what a user would type. Face shape cannot be edited in place and is left out.
EDIT_PROMPTS = tuple(concept.phrase for concept in CONCEPTS if concept.field not in ("face_width", "face_height")
                     and concept.phrase not in ("frowning", "mouth closed", "small ears", "green eyes", "pink hair",
                                                "blue hair"))
# How people name the part of an edit: the *where* texts.
PART_NAMES = {"hair": ("hair", "the hair"), "skin": ("skin", "the skin", "the face"), "cheeks": ("cheeks", "the cheeks"),
              "eyes": ("eyes", "the eyes"), "brows": ("eyebrows", "the eyebrows"), "nose": ("nose", "the nose"),
              "lips": ("lips", "the lips"), "mouth": ("mouth", "the mouth"), "jaw": ("chin", "the chin", "the jaw"),
              "earrings": ("earlobes", "the earlobes"), "ears": ("ears", "the ears"),
              "glasses": ("around the eyes", "the eye area")}


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
