"""The truth about generated faces, measured: parts by features and mesh, attributes by colours and distances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attention.files.published import SHIPPED_FACES
from attention.images import to_pixels
from attention.inversion.identity import SAME_PERSON, Recogniser
from attention.worlds.concepts import Concept
from attention.worlds.faces.concepts import BY_PHRASE, CONCEPTS, PART_NAMES
from attention.worlds.faces.measures import held, measure, share_reached, truth_table
from attention.worlds.faces.mesh import FaceMesh
from attention.worlds.faces.parts import PARTS, Face, Segments, grown
from attention.worlds.truth import Faces, Seen
from attention.worlds.world import World

AT_ONCE = 8
# A prompt's part is what a perfect edit would change: shapes need room around them, in distances between the eyes.
ROOM = {"mouth": 0.25, "eyes": 0.12, "brows": 0.08, "lips": 0.03, "hair": 0.03, "cheeks": 0.1, "jaw": 0.05}
LARGE = ("hair", "background")      # parts that can be half changed, with a median of the new colour
MOST = 0.7                          # of a large part, that must have been reached
MEANT = {"mouth": ("lips", "mouth")}        # the parts of `Face.parts` that a concept's part is made of


@dataclass(frozen=True)
class SeenFaces:
    """Numbers (N, M) that were measured in N faces; who they are takes longer, and is found out when it is asked."""

    numbers: np.ndarray
    faces: Sequence[Face]
    recogniser: Recogniser

    @cached_property
    def identities(self) -> np.ndarray:
        """(N, 128)."""
        return np.array([self.recogniser(face.pixels, face.mesh.points) for face in self.faces])

    def holds(self) -> np.ndarray:
        return held(self.numbers).T

    def distance(self, other: Seen) -> np.ndarray:
        """The recogniser's."""
        assert isinstance(other, SeenFaces)
        return np.linalg.norm(self.identities - other.identities, axis=1)

    def same_face(self, other: Seen) -> np.ndarray:
        """The recogniser takes it for the same person."""
        return self.distance(other) < SAME_PERSON


@dataclass(frozen=True)
class Eyes:
    """What looks at pictures: a mesh of faces and a recogniser of persons."""

    mesh: FaceMesh
    recogniser: Recogniser

    def see(self, pixels: np.ndarray, segments: Sequence[np.ndarray]) -> SeenFaces:
        """Pictures (N, S, S, 3) uint8 and the segments of each."""
        faces = [Face.of(picture, self.mesh(picture), own) for picture, own in zip(pixels, segments, strict=True)]
        return SeenFaces(np.array([list(measure(face).values()) for face in faces]), faces, self.recogniser)


@dataclass(frozen=True)
class GeneratedFaces:
    """N faces as they were generated; see `worlds.truth.Faces`."""

    seen: SeenFaces

    @property
    def shown(self) -> Sequence[Face]:
        return self.seen.faces

    def __len__(self) -> int:
        return len(self.shown)

    def take(self, rows: slice | list[int]) -> "GeneratedFaces":
        shown = [self.shown[row] for row in np.arange(len(self))[rows]]
        return GeneratedFaces(SeenFaces(self.seen.numbers[rows], shown, self.seen.recogniser))

    def states(self) -> np.ndarray:
        return truth_table(self.seen.numbers).T

    def part(self, prompt: str) -> Tensor:
        return torch.from_numpy(np.stack([meant(face, BY_PHRASE[prompt].part) for face in self.shown]))

    def labels(self) -> np.ndarray:
        return np.stack([face.labels() for face in self.shown])

    def shows(self, prompt: str, images: Tensor) -> np.ndarray:
        """Colours of hair and background must have reached MOST of them; of all else, `read` measures pixels already."""
        part = BY_PHRASE[prompt].part
        if part not in LARGE:
            return np.ones(len(self), bool)
        edits = zip(self.shown, self.seen.numbers, to_pixels(images), strict=True)
        return np.array([not share_reached(prompt, part, *edit) < MOST for edit in edits])

    def lost(self, prompt: str, part: Tensor, before: Tensor, after: Tensor) -> np.ndarray:
        return np.zeros((len(CONCEPTS), len(self)), bool)


class FacesTruth:
    """See `worlds.truth.Truth`.

    Raises:
        UserError: the extra `truth`, the networks of the mesh, or the shipped segments are missing.
    """

    attributes: Sequence[Concept] = CONCEPTS
    parts: Sequence[str] = PARTS
    matched_parts: Sequence[str] = ("hair", "skin", "eyes", "brows", "nose", "lips", "clothes", "background")
    accuracies: Mapping[str, float] = {}

    def __init__(self, world: World):
        self.world = world
        self.segments = Segments(SHIPPED_FACES / "segments.safetensors", world.device)
        self.eyes = Eyes(FaceMesh(), Recogniser())

    @torch.no_grad()
    def faces(self, z: Tensor) -> GeneratedFaces:
        """Made by the generator in the pictures of its world's size."""
        made = [self._made(w) for w in self.world.w_from_z(z).split(AT_ONCE)]
        return GeneratedFaces(self.eyes.see(np.concatenate([pixels for pixels, _ in made]),
                                            [labels for _, segments in made for labels in segments]))

    @torch.no_grad()
    def photos(self, images: Tensor, w: Tensor) -> GeneratedFaces:
        """Framed photos (N, 3, R, R) in [-1, 1], their hair and background by the features of their latents (N, ...)."""
        return GeneratedFaces(self.eyes.see(to_pixels(images), list(self._made(w)[1])))

    def _made(self, w: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and segments of generated faces."""
        generator = self.world.generator
        image, features = generator.synthesis(generator.styles(w))
        assert image is not None                                                                # synthesis stops nowhere
        return to_pixels(image), self.segments(features[self.segments.layer]).cpu().numpy()

    def read(self, images: Tensor, faces: Faces) -> SeenFaces:
        """Hair, clothes and background are looked for where they were before, all else where the mesh finds it now."""
        assert isinstance(faces, GeneratedFaces)
        return self.eyes.see(to_pixels(images), [face.segments for face in faces.shown])

    def part_name(self, prompt: str) -> str:
        return PART_NAMES[BY_PHRASE[prompt].part][0]


def meant(face: Face, part: str) -> np.ndarray:
    """(S, S) bool: what an edit of a part may change."""
    mask = np.logical_or.reduce([face.parts[name] for name in MEANT.get(part, (part,))])
    return grown(mask, round(ROOM.get(part, 0) * face.between_eyes))
