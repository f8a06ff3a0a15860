"""Faces that were found in a photo, and the squares of it that an edit would see: shown before anything is edited."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from attention.editing.photo import all_landmarks
from attention.errors import UserError
from attention.inversion.frame import Frame

LINE = 0.006                # width of a square's line in longer sides of the photo
NUMBER = 0.05               # height of its number in the same
CHOSEN, OTHER = (255, 210, 0), (255, 255, 255)
UNDER = (0, 0, 0)           # below lines and numbers, so that they are seen on any photo


@dataclass(frozen=True)
class Found:
    """Faces of a photo.

    Attributes:
        photo: file of the upload.
        picture: file of what is shown, with the squares drawn in.
        plain: file of the same without them.
        frames: in pixels of the picture, from the largest face to the smallest; None of a face that cannot be framed.
        chosen: number of one of them.
    """

    photo: str
    picture: str
    plain: str
    frames: tuple[Frame | None, ...]
    chosen: int

    @property
    def files(self) -> tuple[str, ...]:
        return self.photo, self.picture, self.plain

    def at(self, x: float, y: float) -> int:
        """The number of the smallest square in which a place of the picture lies; the chosen one's where none does."""
        inside = [number for number, frame in enumerate(self.frames) if frame is not None and frame.holds(x, y)]
        return min(inside, key=lambda number: self.frames[number].half, default=self.chosen)    # type: ignore[union-attr]

    def choosing(self, number: int, picture: str) -> "Found":
        return replace(self, chosen=number, picture=picture)


def frames_of(photo: Image.Image, detect: Callable[[np.ndarray], list | None],
              frame: Callable[[np.ndarray], Frame]) -> list[Frame | None]:
    """The square of every face of a photo, from the largest face to the smallest; None of one seen from the side.

    Raises:
        UserError: there is no face, or none that can be framed.
    """
    framed: list[Frame | None] = []
    for landmarks in all_landmarks(photo, detect):
        try:
            framed.append(frame(landmarks))
        except UserError as error:
            reason = error
            framed.append(None)
    if not any(framed):
        raise reason
    return framed


def marked(picture: Image.Image, frames: Sequence[Frame | None], chosen: int) -> Image.Image:
    """A picture with the squares of its faces drawn in, numbered where there are several."""
    shown = picture.copy()
    draw, side = ImageDraw.Draw(shown), max(picture.size)
    width = max(2, round(LINE * side))
    for number, frame in enumerate(frames):
        if frame is None:
            continue
        corners = [tuple(frame.center + across * frame.right + down * frame.down)
                   for across, down in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]
        for colour, more in ((UNDER, 2), (CHOSEN if number == chosen else OTHER, 0)):
            draw.line(corners, fill=colour, width=width + more, joint="curve")
        if len(frames) > 1:
            draw.text(tuple(frame.center.tolist()), str(number), fill=CHOSEN if number == chosen else OTHER, anchor="mm",
                      font_size=max(14, round(NUMBER * side)), stroke_width=width // 2, stroke_fill=UNDER)
    return shown
