"""The parts of a face in a picture: what the generator's features say of hair and skin, and the mesh of all within a face.

Hair and skin are k-means clusters of the features of the 128 px block, named by hand: another layer and another seed than
an editor's regions, and twice their resolution. What else is a person's are clothes, what is nobody's is background.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from attention.errors import UserError
from attention.files.regions import regions_from_metadata
from attention.files.safetensors import read_safetensors
from attention.worlds.faces.mesh import Mesh

KIND, REMAKE = "where2edit segments", "python -m attention.worlds.faces.build --part segments"
SEGMENTS = ("other", "hair", "skin", "dark")            # dark: black hair, or black clothes below the chin
LEAST_SHARE = 0.1           # of the largest piece of hair, below which a piece is something else
# In the order of `labels`; a later one lies over an earlier one.
PARTS = ("background", "clothes", "hair", "skin", "neck", "nose", "brows", "eyes", "irises", "lips", "mouth")
# Outlines, in the mesh's numbers.
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
        136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)
BROWS = ((70, 63, 105, 66, 107, 55, 65, 52, 53, 46), (300, 293, 334, 296, 336, 285, 295, 282, 283, 276))
NOSE = (168, 122, 174, 198, 129, 64, 98, 97, 2, 326, 327, 294, 358, 420, 399, 351)
LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
MOUTH = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
CHEEKS, NOSE_BASE, CHIN, EYES = (50, 280), 2, 152, (33, 133, 362, 263)
EYELID = (*range(9), *reversed(range(9, 16)))       # lower lid from the outer corner, then the upper one back to it


class Segments:
    """Which of SEGMENTS every pixel of generated faces belongs to, by their features.

    Raises:
        UserError: the file is missing or broken.
    """

    def __init__(self, path: Path, device: torch.device):
        tensors, metadata = read_safetensors(path, KIND, REMAKE)
        self.regions = regions_from_metadata(tensors["centroids"], metadata, path, REMAKE).to(device)
        self.names = tensors["segments"].round().long().to(device)
        known = len(tensors["centroids"])
        if self.names.shape != (known,) or not 0 <= int(self.names.min()) <= int(self.names.max()) < len(SEGMENTS):
            raise UserError(f"{path} names other segments than {', '.join(SEGMENTS)}; make it again: {REMAKE}")

    @property
    def layer(self) -> int:
        return self.regions.layer

    def __call__(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) of `layer` -> (B, h, w) numbers of SEGMENTS."""
        return self.names[self.regions.assign(features)]


@dataclass(frozen=True)
class Face:
    """One picture of a face and where its parts lie: masks (S, S) bool by name.

    Attributes:
        pixels: (S, S, 3) uint8.
        between_eyes: the distance of the pupils' places, the unit of lengths, in pixels.
    """

    pixels: np.ndarray
    mesh: Mesh
    segments: np.ndarray
    parts: Mapping[str, np.ndarray]
    between_eyes: float

    @classmethod
    def of(cls, pixels: np.ndarray, mesh: Mesh, segments: np.ndarray) -> "Face":
        """Join what features and mesh say.

        Args:
            segments: (s, s) numbers of SEGMENTS.
        """
        side = len(pixels)
        large = np.asarray(Image.fromarray(segments.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST))
        points = mesh.points
        apart = float(np.linalg.norm(points[list(EYES[:2])].mean(0) - points[list(EYES[2:])].mean(0)))
        rows = np.arange(side)[:, None]
        oval, mouth = polygon(points[list(OVAL)], side), polygon(points[list(MOUTH)], side)
        lips = polygon(points[list(LIPS)], side) & ~mouth
        eyes = joined(polygon(lids[list(EYELID)], side) for lids in mesh.eyelids)
        circles = [(iris[0], float(np.linalg.norm(iris[1:] - iris[0], axis=1).mean())) for iris in mesh.irises]
        irises = eyes & joined(disk(centre, radius, side) for centre, radius in circles)
        brows = joined(polygon(points[list(brow)], side) for brow in BROWS)
        nose = polygon(points[list(NOSE)], side)
        below, person = rows > points[CHIN, 1], mesh.person > 0.5
        found = {name: large == number for number, name in enumerate(SEGMENTS)}
        hair = main_pieces((found["hair"] | (found["dark"] & ~below)) & person & ~(eyes | lips | mouth | nose))
        skin = ((found["skin"] & person) | oval) & ~hair
        cheeks = joined(disk(points[cheek], 0.22 * apart, side) for cheek in CHEEKS) & skin
        jaw = oval & (rows > points[NOSE_BASE, 1]) & ~(lips | mouth)
        parts = {"background": ~person & ~skin, "clothes": person & below & ~skin & ~hair, "hair": hair,
                 "skin": skin & ~(eyes | lips | mouth), "neck": skin & below & ~oval, "nose": nose, "brows": brows,
                 "eyes": eyes, "irises": irises, "lips": lips, "mouth": mouth, "cheeks": cheeks, "jaw": jaw, "oval": oval}
        return cls(pixels, mesh, segments, parts, apart)

    def labels(self) -> np.ndarray:
        """(S, S) numbers of PARTS."""
        labels = np.zeros(self.pixels.shape[:2], np.int64)
        for number, name in enumerate(PARTS):
            labels[self.parts[name]] = number
        return labels


def polygon(points: np.ndarray, side: int) -> np.ndarray:
    """(S, S) bool: the inside of an outline (N, 2) in pixels."""
    picture = Image.new("1", (side, side))
    ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.asarray(picture)


def disk(centre: np.ndarray, radius: float, side: int) -> np.ndarray:
    """(S, S) bool: pixels within a distance of a point."""
    y, x = np.mgrid[:side, :side]
    inside: np.ndarray = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    return inside


def grown(mask: np.ndarray, room: int) -> np.ndarray:
    """(S, S) bool: a mask and all pixels up to `room` beside it."""
    if room == 0:
        return mask
    reached: np.ndarray = F.max_pool2d(torch.from_numpy(mask)[None, None].float(), 2 * room + 1, stride=1,
                                       padding=room)[0, 0].numpy() > 0.5
    return reached


def main_pieces(mask: np.ndarray) -> np.ndarray:
    """A mask without its small pieces."""
    from skimage.measure import label  # noqa: PLC0415  (of the extra `truth`)

    pieces = label(mask, connectivity=1)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept: np.ndarray = (sizes >= LEAST_SHARE * sizes.max())[pieces] & mask
    return kept


def joined(masks: Iterable[np.ndarray]) -> np.ndarray:
    """The union of masks."""
    union: np.ndarray = np.logical_or.reduce(list(masks))
    return union
