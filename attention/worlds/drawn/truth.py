"""The truth about generated drawn faces: z decides a face by a fixed rule, and the renderer knows its every pixel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attention.files.published import SHIPPED
from attention.images import area_resize, to_bytes, to_image
from attention.worlds.concepts import PART_NAMES
from attention.worlds.drawn.concepts import BY_PHRASE, CONCEPTS, OPTIONS, PRESENCES, Concept, truth_table
from attention.worlds.drawn.faces import PARTS, SIZE, FaceParams, draw_faces
from attention.worlds.drawn.reader import AttributeReader
from attention.worlds.truth import Faces, Seen

VISIBLE = 16            # of 255: a channel that differs by more is a visible difference
POSE_AND_SHAPE = ("position_x", "position_y", "face_width", "face_height")
# Of a field's range, at most a pixel of the picture. On 256 unedited generated faces 95 % of the reader's errors were below
# 0.12 to 0.14, by field; of drawings with the prompt made true it called 99.9 % the same face.
SAME_FACE = 0.15
# What is a matter of colour, so that pixels can tell it. A nose has the skin's colour, whatever its shape. Of all else the
# reader alone is the judge.
PAINTED = ("hair_colour", "eye_colour", "lipstick", "skin_tone", "rosy_cheeks")
MODELLED = ("nose_width",)
# Share of a part's pixels that must show what was asked for. Of 192 unedited generated faces 96 % reach it where a colour
# of hair, eyes or skin is plainly true, and 2 % where it is false; of lips, whose colours are mixtures, 67 % and 1 %.
MOST = 0.6
UNLIKE = 20.0           # of 441: how far a pixel of a nose may be from every drawn nose; unedited, 1 % of the pixels are
LOST = 0.15             # share of the pixels of what a face wears, beyond which it is damaged
STEPS = np.linspace(0.05, 0.95, 7, dtype=np.float32)            # of a value, over its range


@dataclass(frozen=True)
class DrawnFaces:
    """Faces by their numbers; see `worlds.truth.Faces`."""

    params: FaceParams

    def __len__(self) -> int:
        return len(self.params)

    def take(self, rows: slice | list[int]) -> "DrawnFaces":
        return DrawnFaces(self.params.take(rows))

    def states(self) -> np.ndarray:
        return truth_table(self.params).T

    def part(self, prompt: str) -> Tensor:
        return torch.from_numpy(true_part(self.params, BY_PHRASE[prompt]))

    def labels(self) -> np.ndarray:
        return draw_faces(self.params).labels

    def shows(self, prompt: str, images: Tensor) -> np.ndarray:
        """A colour that was asked for must be that of MOST of the part: a reader is content with the crown of a head."""
        concept = BY_PHRASE[prompt]
        if concept.attribute not in (*PAINTED, *MODELLED):
            return np.ones(len(self), bool)
        return self._looks(concept).share(concept, softened(images)) >= MOST

    def lost(self, prompt: str, part: Tensor, before: Tensor, after: Tensor) -> np.ndarray:
        """Of what a face wears (PRESENCES), where the prompt means none of it: LOST of its pixels show it no more."""
        states, outside = self.states(), ~part.numpy()
        lost, pictures = np.zeros(states.shape, bool), [softened(images) for images in (before, after)]
        for row, concept in enumerate(CONCEPTS):
            if concept.attribute in PRESENCES and concept.attribute != BY_PHRASE[prompt].attribute:
                was, is_now = (self._looks(concept).share(concept, seen, outside) for seen in pictures)
                lost[row] = (states[row] == 1) & (is_now < (1 - LOST) * was)
        return lost

    @cached_property
    def _drawn(self) -> dict[str, "Looks"]:
        """What was drawn already: many edits are held against the same drawings."""
        return {}

    def _looks(self, concept: Concept) -> "Looks":
        key = concept.phrase if concept.attribute in MODELLED else concept.attribute
        if key not in self._drawn:
            self._drawn[key] = Looks.of(self.params, concept)
        return self._drawn[key]


@dataclass(frozen=True)
class SeenFaces:
    """Numbers that the reader read; see `worlds.truth.Seen`."""

    params: FaceParams

    def holds(self) -> np.ndarray:
        return np.stack([concept.seen_in(self.params) for concept in CONCEPTS])

    def distance(self, other: Seen) -> np.ndarray:
        """The largest change of place, width and height of the face, in shares of their ranges."""
        if not isinstance(other, SeenFaces):
            raise TypeError(f"drawn faces compare with drawn faces, not with {type(other).__name__}")
        moved = [np.abs(getattr(other.params, name) - getattr(self.params, name)) for name in POSE_AND_SHAPE]
        largest: np.ndarray = np.max(np.stack(moved), axis=0)
        return largest

    def same_face(self, other: Seen) -> np.ndarray:
        """Place, width and height of the face are seen unchanged, each to SAME_FACE of its range.

        It also falls where the reader is misled by what no drawing has, such as hair of a glaring red.
        """
        return self.distance(other) <= SAME_FACE


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

    def read(self, images: Tensor, faces: Faces) -> SeenFaces:
        return SeenFaces(self.reader.read(images))

    def part_name(self, prompt: str) -> str:
        return PART_NAMES[BY_PHRASE[prompt].part][0]


def true_part(params: FaceParams, concept: Concept) -> np.ndarray:
    """(N, S, S) bool: the concept's part in the drawing and in the same drawing with the concept made true, joined
    with the pixels in which the two differ visibly."""
    before, after = draw_faces(params), draw_faces(concept.apply(params))
    differs = np.abs(before.images.astype(np.int16) - after.images).max(axis=3) > VISIBLE
    return before.mask(concept.part) | after.mask(concept.part) | differs


@dataclass(frozen=True)
class Looks:
    """How the pixels of a part look in every state of an attribute that decides them.

    Attributes:
        states: N faces each.
        where: faces, rows and columns of P pixels.
        colours: (states, P, 3) in [0, 255].
    """

    states: Sequence[FaceParams]
    where: tuple[np.ndarray, ...]
    colours: np.ndarray

    @classmethod
    def of(cls, params: FaceParams, concept: Concept) -> "Looks":
        states = states_of(params, concept.attribute)
        drawings = np.stack([draw_faces(state).images for state in states])                         # (C, N, S, S, 3)
        part = draw_faces(concept.apply(params)).mask(concept.part)
        if concept.attribute not in MODELLED:                       # the white of an eye is white whatever its colour
            part = part & ((drawings.max(axis=0) - drawings.min(axis=0)).max(axis=3) > VISIBLE)
        where = np.nonzero(part)
        return cls(states, where, np.stack([softened(to_image(drawing))[where] for drawing in drawings]))

    def share(self, concept: Concept, pictures: np.ndarray, within: np.ndarray | None = None) -> np.ndarray:
        """(N,) share of each face's pixels that show a concept; 1 without any.

        Args:
            pictures: (N, S, S, 3) of `softened`.
            within: (N, S, S) bool leaves the other pixels out.
        """
        distances = np.square(self.colours - pictures[self.where]).sum(axis=2)                         # (C, P)
        nearest = distances.argmin(axis=0)
        if concept.attribute in MODELLED:
            shown = distances.min(axis=0) <= UNLIKE**2
        else:
            shown = np.stack([concept.seen_in(state) for state in self.states])[nearest, self.where[0]]
        counted = np.ones(len(nearest), bool) if within is None else within[self.where]
        count = [np.bincount(self.where[0], weights, len(pictures)) for weights in (shown & counted, counted)]
        return np.where(count[1] > 0, count[0] / np.maximum(count[1], 1), 1.0)


def states_of(params: FaceParams, attribute: str) -> list[FaceParams]:
    """The faces in every state of an attribute: each option, there and not there, or STEPS of a value."""
    values = getattr(params, attribute)
    if attribute in OPTIONS:
        states = [np.tile(row, (len(values), 1)) for row in np.eye(values.shape[1], dtype=np.float32)]
    else:
        states = [np.full_like(values, step) for step in ((0, 1) if attribute in PRESENCES else STEPS)]
    return [replace(params, **{attribute: state}) for state in states]


def softened(images: Tensor) -> np.ndarray:
    """(N, 3, R, R) in [-1, 1] -> (N, S, S, 3) in [0, 255], the mean of 3 x 3 pixels: a generator's outlines are soft."""
    pixels = to_bytes(area_resize(images, SIZE)).float()
    return F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False).permute(0, 2, 3, 1).cpu().numpy()
