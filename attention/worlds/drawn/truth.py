"""The truth about generated drawn faces: z decides a face by a fixed rule, and the renderer knows its every pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attention.files.published import SHIPPED
from attention.worlds.concepts import PART_NAMES
from attention.worlds.drawn.concepts import BY_PHRASE, CONCEPTS, Concept, truth_table
from attention.worlds.drawn.faces import PARTS, FaceParams, draw_faces
from attention.worlds.drawn.reader import AttributeReader
from attention.worlds.truth import Seen

VISIBLE = 16            # of 255: a channel that differs by more is a visible difference
POSE_AND_SHAPE = ("position_x", "position_y", "face_width", "face_height")
# Of a field's range, at most a pixel of the picture. On 256 unedited generated faces 95 % of the reader's errors were below
# 0.12 to 0.14, by field; of drawings with the prompt made true it called 99.9 % the same face.
SAME_FACE = 0.15


@dataclass(frozen=True)
class DrawnFaces:
    """Faces by their numbers; see `worlds.truth.Faces`."""

    params: FaceParams

    def __len__(self) -> int:
        return len(self.params)

    def take(self, rows: slice) -> "DrawnFaces":
        return DrawnFaces(self.params.take(rows))

    def states(self) -> np.ndarray:
        return truth_table(self.params).T

    def part(self, prompt: str) -> Tensor:
        return torch.from_numpy(true_part(self.params, BY_PHRASE[prompt]))

    def labels(self) -> np.ndarray:
        return draw_faces(self.params).labels


@dataclass(frozen=True)
class SeenFaces:
    """Numbers that the reader read; see `worlds.truth.Seen`."""

    params: FaceParams

    def holds(self) -> np.ndarray:
        return np.stack([concept.seen_in(self.params) for concept in CONCEPTS])

    def same_face(self, other: Seen) -> np.ndarray:
        """Place, width and height of the face are seen unchanged, each to SAME_FACE of its range.

        It also falls where the reader is misled by what no drawing has, such as hair of a glaring red.
        """
        if not isinstance(other, SeenFaces):
            raise TypeError(f"drawn faces compare with drawn faces, not with {type(other).__name__}")
        moved = [np.abs(getattr(other.params, name) - getattr(self.params, name)) for name in POSE_AND_SHAPE]
        same: np.ndarray = np.all(np.stack(moved) <= SAME_FACE, axis=0)
        return same


class DrawnTruth:
    """See `worlds.truth.Truth`.

    Raises:
        UserError: the reader's file is missing or broken.
    """

    attributes: Sequence[Concept] = CONCEPTS
    parts: Sequence[str] = PARTS
    matched_parts: Sequence[str] = ("hair", "skin", "eyes", "brows", "nose", "lips", "cloth", "background")

    def __init__(self, device: torch.device):
        self.reader = AttributeReader.load(SHIPPED / "reader.safetensors").to(device)
        self.accuracies: Mapping[str, float] = self.reader.accuracies["drawings"]

    def faces(self, z: Tensor) -> DrawnFaces:
        return DrawnFaces(FaceParams.from_z(z.cpu().numpy()))

    def read(self, images: Tensor) -> SeenFaces:
        return SeenFaces(self.reader.read(images))

    def part_name(self, prompt: str) -> str:
        return PART_NAMES[BY_PHRASE[prompt].part][0]


def true_part(params: FaceParams, concept: Concept) -> np.ndarray:
    """(N, S, S) bool: the concept's part in the drawing and in the same drawing with the concept made true, joined
    with the pixels in which the two differ visibly."""
    before, after = draw_faces(params), draw_faces(concept.apply(params))
    differs = np.abs(before.images.astype(np.int16) - after.images).max(axis=3) > VISIBLE
    return before.mask(concept.part) | after.mask(concept.part) | differs
