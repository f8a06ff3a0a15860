"""The labels of CelebAMask-HQ: which pixels of an aligned picture are hair, skin, nose, and so on.

The data set keeps one black-and-white file a part, CelebAMask-HQ-mask-anno/0/00003_hair.png and so on for picture 3, of
512 px for pictures of 1024 px; a folder holds 2,000 pictures. A part that a picture lacks has no file.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from attention.errors import UserError
from attention.files.pictures import read_picture
from attention.worlds.concepts import CONCEPTS, PART_NAMES

FOLDER = "CelebAMask-HQ-mask-anno"
PICTURES_PER_FOLDER = 2000
# A part's place in this list is its label. Files of parts overlap: the one further down is in front.
PARTS = ("background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip",
         "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")
# The prompts whose attention the published program held against labels, and the parts that it counted for each.
PUBLISHED_PARTS = {"rosy cheeks": ("skin",), "big nose": ("nose",), "brown eyes": ("l_eye", "r_eye"),
                   "bushy eyebrows": ("l_brow", "r_brow"), "large ears": ("l_ear", "r_ear"),
                   "mouths are slightly open": ("mouth",), "pink lipsticks": ("u_lip", "l_lip"), "blonde hair": ("hair",)}
PUBLISHED_PROMPTS = tuple(PUBLISHED_PARTS)
# Which labels a part of our concepts is. There is none for cheeks and jaw, which are skin, and what is worn on ears or
# around eyes is looked for there. A closed mouth has no inside, so a mouth is its lips too.
LABELS_OF_PART = {"hair": ("hair",), "skin": ("skin",), "cheeks": ("skin",), "jaw": ("skin",), "nose": ("nose",),
                  "eyes": ("l_eye", "r_eye"), "brows": ("l_brow", "r_brow"), "ears": ("l_ear", "r_ear"),
                  "mouth": ("mouth", "u_lip", "l_lip"), "lips": ("u_lip", "l_lip"),
                  "earrings": ("l_ear", "r_ear", "ear_r"), "glasses": ("eye_g", "l_eye", "r_eye")}
PART_OF_TEXT = {text: concept.part for concept in CONCEPTS for text in (concept.phrase, *concept.synonyms)}
PART_OF_TEXT |= {name: part for part, names in PART_NAMES.items() for name in names} | {"mouths are slightly open": "mouth"}


def labels_of(text: str) -> tuple[int, ...] | None:
    """The labels of the part that a text speaks of; None for a text that the tables do not know."""
    part = PART_OF_TEXT.get(text.strip().lower())
    return None if part is None else tuple(PARTS.index(name) for name in LABELS_OF_PART[part])


def published_labels(prompt: str) -> tuple[int, ...]:
    """The labels that the published program counted for one of PUBLISHED_PROMPTS."""
    return tuple(PARTS.index(name) for name in PUBLISHED_PARTS[prompt])


class CelebAMask:
    """A folder in the layout of CelebAMask-HQ.

    Args:
        root: CelebAMask-HQ-mask-anno, or the folder that holds it.
    Raises:
        UserError: it is no such folder.
    """

    def __init__(self, root: Path):
        self.root = root / FOLDER if (root / FOLDER).is_dir() else root
        if not (self.root / "0").is_dir():
            raise UserError(f"--masks {root} has no folder {FOLDER}/0, expected the layout of CelebAMask-HQ: "
                            f"{FOLDER}/0/00000_hair.png; give the folder that holds {FOLDER}")

    def files(self, picture: str) -> dict[int, Path]:
        """Label -> file of the parts of a picture, whose name without its ending is its number; none if it is not."""
        if not picture.isdecimal():
            return {}
        folder, number = self.root / str(int(picture) // PICTURES_PER_FOLDER), int(picture)
        paths = {label: folder / f"{number:05d}_{part}.png" for label, part in enumerate(PARTS) if label}
        return {label: path for label, path in paths.items() if path.is_file()}

    def check(self, pictures: Iterable[str]) -> None:
        """Raise UserError unless every picture (a name without its ending) has labels."""
        names = list(pictures)
        unknown = [name for name in names if not self.files(name)]
        if unknown:
            raise UserError(f"{self.root} has no labels for {len(unknown)} of {len(names)} pictures (the first is "
                            f"{unknown[0]!r}); a picture is named by its number, 3.jpg for 0/00003_hair.png, so give the "
                            "labels of these pictures, or leave out --masks")

    def labels(self, picture: str) -> np.ndarray:
        """(H, W) uint8 label of every pixel of a picture, 0 where no part is.

        Raises:
            UserError: there are none, a file is broken, or the files are not square and of one size.
        """
        self.check([picture])
        found = np.zeros((0, 0), np.uint8)
        for label, path in self.files(picture).items():
            part = _read(path)
            found = found if len(found) else np.zeros([len(part)] * 2, np.uint8)
            if part.shape != found.shape:
                raise UserError(f"{path} has {part.shape[1]} x {part.shape[0]} pixels, but labels of this picture must "
                                f"have {len(found)} x {len(found)}, square like the picture; get its files again")
            found[part] = label
        return found


def _read(path: Path) -> np.ndarray:
    """(H, W) bool of a black-and-white file."""
    try:
        return np.asarray(read_picture(path, "a mask").convert("L")) > 127
    except UserError as error:
        raise UserError(f"{error}; get it again, or leave out --masks") from error
