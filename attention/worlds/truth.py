"""What can be known of a world's faces beside how they look: what evaluation asks for.

`evaluation/` measures edits of any world by these; a world that has the truth implements them in its own folder.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from attention.worlds.concepts import Concept


class Faces(Protocol):
    """N generated faces of which the truth is known."""

    def __len__(self) -> int: ...

    def take(self, rows: slice | list[int]) -> "Faces":
        """Some of them, maybe several times."""
        ...

    def states(self) -> np.ndarray:
        """(attributes, N) 1 where an attribute is plainly so, 0 where it plainly is not, NaN between."""
        ...

    def part(self, prompt: str) -> Tensor:
        """(N, S, S) bool: the pixels that a prompt means, before the edit and after a perfect one."""
        ...

    def labels(self) -> np.ndarray:
        """(N, S, S) number of every pixel's part in `Truth.parts`."""
        ...

    def shows(self, prompt: str, images: Tensor) -> np.ndarray:
        """(N,) bool: whether edits (N, 3, R, R) in [-1, 1] look as the prompt says, where pixels can tell; else True."""
        ...

    def lost(self, prompt: str, part: Tensor, before: Tensor, after: Tensor) -> np.ndarray:
        """(attributes, N) bool: what is plainly so of the faces, and has suffered from an edit that means something else.

        Args:
            part: (N, S, S) bool of `part`, where an edit may change everything.
            before, after: (N, 3, R, R) in [-1, 1], the faces and their edits by the prompt.
        """
        ...


class Seen(Protocol):
    """What a reader sees in N pictures."""

    def holds(self) -> np.ndarray:
        """(attributes, N) bool: the attribute is seen."""
        ...

    def distance(self, other: "Seen") -> np.ndarray:
        """(N,) how far these faces are from those of another N pictures, in the world's own unit; 0: no difference."""
        ...

    def same_face(self, other: "Seen") -> np.ndarray:
        """(N,) bool: whether it is the same face as in another N pictures, whatever was edited."""
        ...


class Truth(Protocol):
    """What is really so of a world's faces, to judge edits by; no editor ever sees it.

    Attributes:
        attributes: what can be so of a face, in the order of `Faces.states` and `Seen.holds`.
        parts: names of the parts that `Faces.labels` numbers; those that regions should match.
        accuracies: by phrase, how well `read` reads pictures whose truth is exact; empty if that is not known.
    """

    @property
    def attributes(self) -> Sequence[Concept]: ...

    @property
    def parts(self) -> Sequence[str]: ...

    @property
    def matched_parts(self) -> Sequence[str]: ...

    @property
    def accuracies(self) -> Mapping[str, float]: ...

    def faces(self, z: Tensor) -> "Faces":
        """The faces that z (N, style_dim) makes."""
        ...

    def read(self, images: Tensor, faces: "Faces") -> Seen:
        """Look at pictures (N, 3, R, R) in [-1, 1] of these faces, edited or not."""
        ...

    def part_name(self, prompt: str) -> str:
        """How people call the part that a prompt means."""
        ...


def balanced_accuracy(attributes: Sequence[Concept], states: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """How well a reader reads, by phrase: the mean of the shares of plainly true and of plainly false faces read rightly.

    Args:
        states: (attributes, N) as `Faces.states`.
        held: (attributes, N) as `Seen.holds`.
    Returns:
        A phrase that lacks true or false faces is left out.
    """
    return {attribute.phrase: float((held[row][states[row] == 1].mean() + 1 - held[row][states[row] == 0].mean()) / 2)
            for row, attribute in enumerate(attributes) if {0.0, 1.0} <= set(states[row])}
