"""What people say of a face: phrases, the part that each means, other words for it, and the names of parts.

One table for every world of faces. What makes a phrase true of a face is the world's own business (worlds/drawn/).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Concept:
    """A phrase that an edit can make true.

    Attributes:
        part: of the face, a key of PART_NAMES.
        attribute: what the phrase says something of; of one attribute only one phrase can be true at a time.
        synonyms: other words that mean the same.
    """

    phrase: str
    part: str
    attribute: str
    synonyms: tuple[str, ...] = ()


CONCEPTS = (
    *(Concept(f"{colour} hair", "hair", "hair_colour")
      for colour in ("black", "brown", "blonde", "red", "grey", "purple", "blue", "pink")),
    Concept("long hair", "hair", "hair_length"),
    Concept("short hair", "hair", "hair_length"),
    Concept("pale skin", "skin", "skin_tone", ("light skin",)),
    Concept("tanned skin", "skin", "skin_tone", ("dark skin",)),
    Concept("rosy cheeks", "cheeks", "rosy_cheeks", ("red cheeks", "blushing")),
    *(Concept(f"{colour} eyes", "eyes", "eye_colour") for colour in ("blue", "brown", "green")),
    Concept("narrow eyes", "eyes", "eye_opening", ("small eyes",)),
    Concept("big eyes", "eyes", "eye_opening", ("large eyes", "wide eyes")),
    Concept("bushy eyebrows", "brows", "brow_thickness", ("thick eyebrows",)),
    Concept("thin eyebrows", "brows", "brow_thickness", ("narrow eyebrows",)),
    Concept("big nose", "nose", "nose_width", ("large nose", "wide nose")),
    Concept("narrow nose", "nose", "nose_width", ("small nose",)),
    Concept("red lipstick", "lips", "lipstick", ("red lips",)),
    Concept("pink lipstick", "lips", "lipstick", ("pink lips", "pink lipsticks")),
    Concept("smiling", "lips", "smile", ("a smile", "a happy smile")),
    Concept("frowning", "lips", "smile", ("a sad mouth",)),
    Concept("mouth slightly open", "mouth", "mouth_open", ("an open mouth",)),
    Concept("mouth closed", "mouth", "mouth_open", ("a closed mouth",)),
    Concept("beard", "jaw", "beard", ("a beard", "a bearded chin")),
    Concept("earrings", "earrings", "earrings", ("wearing earrings", "wearing a pair of earrings")),
    Concept("large ears", "ears", "ear_size", ("big ears",)),
    Concept("small ears", "ears", "ear_size"),
    Concept("glasses", "glasses", "glasses", ("wearing glasses", "eyeglasses")),
    Concept("a wide face", "skin", "face_width"),
    Concept("a narrow face", "skin", "face_width"),
    Concept("a long face", "skin", "face_height"),
    Concept("a short face", "skin", "face_height"),
)
BY_PHRASE = {concept.phrase: concept for concept in CONCEPTS}
# What the small CLIP knows, a word or a whole phrase -> other words for it. Plurals, comparatives and such need no entry;
# "no ..." is what cannot be done.
OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "hair": ("haircut", "hairdo", "hairstyle"),
    "eyes": ("eye", "eyed", "iris", "irises"),
    "eyebrows": ("brow", "brows", "browed"),
    "cheeks": ("cheeked",),
    "lips": ("lipped",),
    "nose": ("nosed",),
    "skin": ("skinned", "complexion"),
    "grey": ("gray", "greying", "graying", "silver", "silvery"),
    "blonde": ("blond", "golden"),
    "red": ("ginger",),
    "purple": ("violet",),
    "black": ("jet black",),
    "tanned": ("tan", "suntanned", "sun tanned", "bronzed"),
    "big": ("bigger", "biggest", "fat", "huge"),
    "wide": ("broad",),
    "small": ("tiny", "little"),
    "thin": ("thinner", "thinnest"),
    "blonde hair": ("blonde", "fair hair"),
    "brown hair": ("brunette", "brunet"),
    "red hair": ("ginger", "redhead", "redheads", "redheaded"),
    "purple hair": ("purple",),
    "grey hair": ("grey",),
    "pale skin": ("pale", "pallid", "fair skin"),
    "tanned skin": ("tanned",),
    "rosy cheeks": ("rosy", "blush", "blushed", "flushed", "flushed cheeks", "pink cheeks"),
    "bushy eyebrows": ("bushy",),
    "smiling": ("smiles", "laughing", "laugh", "laughs", "happy", "cheerful", "grin", "grins", "grinning",
                "big smile", "wide smile", "broad smile"),
    "frowning": ("frown", "sad", "unhappy"),
    "mouth slightly open": ("open lips", "parted lips"),
    "mouth closed": ("mouth shut", "closed lips"),
    "beard": ("bearded", "goatee", "stubble", "facial hair", "unshaven"),
    "earrings": ("ear ring", "ear rings"),
    "glasses": ("spectacles", "specs", "eyewear"),
    "no hair": ("bald", "balding", "hairless"),
    "no beard": ("clean shaven", "cleanshaven", "shaved", "shaven", "shave", "shorter beard", "smaller beard",
                 "thinner beard"),
}
# What the small CLIP has nothing for -> the phrase that comes nearest, for a hint.
NEAREST = {"moustache": "beard", "mustache": "beard", "sunglasses": "glasses",
           "bald": "short hair", "balding": "short hair", "less hair": "short hair"}
# Colours that no phrase has: a text without its colour is not what was meant.
OTHER_COLOURS = frozenset(("white", "orange", "yellow", "auburn", "turquoise", "gold", "hazel", "amber", "teal", "beige"))

# What a user would type. The shape of a face cannot be edited in place and is left out.
EDIT_PROMPTS = tuple(concept.phrase for concept in CONCEPTS if concept.attribute not in ("face_width", "face_height")
                     and concept.phrase not in ("frowning", "mouth closed", "small ears", "green eyes", "pink hair",
                                                "blue hair"))
# How people name the part of an edit: the *where* texts.
PART_NAMES = {"hair": ("hair", "the hair"), "skin": ("skin", "the skin", "the face"), "cheeks": ("cheeks", "the cheeks"),
              "eyes": ("eyes", "the eyes"), "brows": ("eyebrows", "the eyebrows"), "nose": ("nose", "the nose"),
              "lips": ("lips", "the lips"), "mouth": ("mouth", "the mouth"), "jaw": ("chin", "the chin", "the jaw"),
              "earrings": ("earlobes", "the earlobes"), "ears": ("ears", "the ears"),
              "glasses": ("around the eyes", "the eye area")}


def where_texts(prompt: str) -> tuple[str, ...]:
    """The names of a prompt's part, and other prompts of the same part; any other text names its place itself."""
    return texts_of_place(prompt, BY_PHRASE, EDIT_PROMPTS, PART_NAMES)


def texts_of_place(prompt: str, known: Mapping[str, Concept], prompts: Sequence[str],
                   names: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """See `where_texts`, for a world of these phrases, prompts and names of parts."""
    if prompt not in known:
        return (prompt,)
    part = known[prompt].part
    others = tuple(other for other in prompts if known[other].part == part)
    # Half of the draws are to be names, however many prompts share the part.
    return names[part] * max(1, len(others) // len(names[part])) + others


@dataclass(frozen=True)
class Sayings:
    """What can be said of a world's pictures. A world whose CLIP reads any word needs none.

    Attributes:
        concepts: phrases; none where only the world's prompts are known.
        places: part -> its names, the *where* texts.
        other_words: known word or phrase -> other words for it.
        nearest: unknown word -> a phrase to hint at.
        other_colours: that no phrase has.
    """

    concepts: tuple[Concept, ...] = ()
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other_words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nearest: Mapping[str, str] = field(default_factory=dict)
    other_colours: frozenset[str] = frozenset()


FACES = Sayings(CONCEPTS, PART_NAMES, OTHER_WORDS, NEAREST, OTHER_COLOURS)
