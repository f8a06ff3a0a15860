"""What can be said of real-looking faces: phrases, their parts, other words; measures.py says when one is true.

docs/faces.md says which were tried and dropped.
"""

from attention.worlds import concepts
from attention.worlds.concepts import Concept, Sayings

COLOURS = ("black", "brown", "blonde", "red", "grey")
CONCEPTS = (
    *(Concept(f"{colour} hair", "hair", "hair_colour") for colour in COLOURS),
    Concept("pale skin", "skin", "skin_tone", ("light skin",)),
    Concept("tanned skin", "skin", "skin_tone", ("dark skin",)),
    Concept("rosy cheeks", "cheeks", "rosy_cheeks", ("red cheeks", "blushing")),
    Concept("beard", "jaw", "beard", ("a beard", "a bearded chin")),
    Concept("red lipstick", "lips", "lipstick", ("red lips",)),
    Concept("pink lipstick", "lips", "lipstick", ("pink lips", "pink lipsticks")),
    Concept("pale lips", "lips", "lipstick", ("no lipstick",)),
    Concept("smiling", "mouth", "smile", ("a smile", "a happy smile")),
    Concept("serious", "mouth", "smile", ("a serious mouth", "not smiling")),
    Concept("mouth open", "mouth", "mouth_open", ("mouth slightly open", "an open mouth")),
    Concept("mouth closed", "mouth", "mouth_open", ("a closed mouth",)),
    Concept("big eyes", "eyes", "eye_opening", ("large eyes", "wide eyes")),
    Concept("narrow eyes", "eyes", "eye_opening", ("small eyes",)),
    Concept("dark eyebrows", "brows", "brow_darkness"),
    Concept("light eyebrows", "brows", "brow_darkness"),
    *(Concept(f"{colour} background", "background", "background_colour") for colour in ("dark", "bright", "grey", "blue")),
)
BY_PHRASE = {concept.phrase: concept for concept in CONCEPTS}
PROMPTS = tuple(concept.phrase for concept in CONCEPTS)
PART_NAMES = {"hair": ("hair", "the hair"), "skin": ("skin", "the skin", "the face"), "cheeks": ("cheeks", "the cheeks"),
              "jaw": ("chin", "the chin", "the jaw"), "lips": ("lips", "the lips"), "mouth": ("mouth", "the mouth"),
              "eyes": ("eyes", "the eyes"), "brows": ("eyebrows", "the eyebrows"),
              "background": ("background", "the background")}
OTHER_WORDS = {
    **{word: others for word, others in concepts.OTHER_WORDS.items()
       if word in ("hair", "eyes", "eyebrows", "cheeks", "lips", "skin", "grey", "blonde", "red", "black", "tanned",
                   "big", "wide", "small", "blonde hair", "brown hair", "red hair", "grey hair", "pale skin",
                   "tanned skin", "rosy cheeks", "smiling", "mouth closed", "beard", "no hair", "no beard")},
    "background": ("backdrop",),
    "dark": ("gloomy",),
    "bright background": ("white background", "light background"),
    "grey background": ("studio background", "plain background"),
    "serious": ("neutral", "stern", "solemn"),
    "mouth open": ("open lips", "parted lips"),
}
# How thick brows are is not known, only how dark.
NEAREST = {"moustache": "beard", "mustache": "beard", "night background": "dark background",
           "bushy eyebrows": "dark eyebrows", "thick eyebrows": "dark eyebrows", "thin eyebrows": "light eyebrows",
           **dict.fromkeys(("frowning", "frown", "sad", "angry"), "serious")}
OTHER_COLOURS = frozenset(("orange", "yellow", "auburn", "turquoise", "gold", "purple", "violet", "pink", "amber", "teal",
                           "beige", "hazel", "green"))
SAYINGS = Sayings(CONCEPTS, PART_NAMES, OTHER_WORDS, NEAREST, OTHER_COLOURS)


def where_texts(prompt: str) -> tuple[str, ...]:
    """The names of a prompt's part, and other prompts of the same part; any other text names its place itself."""
    return concepts.texts_of_place(prompt, BY_PHRASE, PROMPTS, PART_NAMES)
