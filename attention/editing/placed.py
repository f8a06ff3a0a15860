"""A photo with the square of it that is edited: what the generator made goes back into it here."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from attention.editing.colours import Tone, from_srgb, to_srgb
from attention.inversion.frame import Frame

SOLID = 0.25                # of a mask, from which on a photo takes over what the generator made
GLANCE = 64                 # pixels of the square's side, by which a photo is seen to have one tone alone
FADE = 0.06                 # of the square's side, over which an edit of a photo fades out at its edges


class Placed(NamedTuple):
    """A photo and its square."""

    picture: Image.Image
    frame: Frame

    @property
    def tone(self) -> Tone | None:
        """The tone of the square, in the photo's own numbers, if it has but one: its edits shall have it too."""
        return Tone.of(self.frame.crop(self.picture, GLANCE))

    @property
    def goes_on(self) -> bool:
        """Whether there is more of the photo beyond the square."""
        return self.frame.box(self.picture.size) != (0, 0, *self.picture.size)

    def square(self, side: int) -> np.ndarray:
        """(side, side, 3) uint8 in sRGB of what the square shows."""
        return to_srgb(self.frame.crop(self.picture, side), self.picture)

    def of_side(self, side: int) -> "Placed":
        """The same photo, shrunk until its square has about this side; itself, if it is no larger."""
        shrink = 2 * self.frame.half / side
        if shrink <= 1:
            return self
        size = [max(1, round(length / shrink)) for length in self.picture.size]
        small = self.picture.resize(size, Image.Resampling.BOX)
        small.info = dict(self.picture.info)
        return Placed(small, self.frame.scaled(small.width / self.picture.width))

    def put_back(self, before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> Image.Image:
        """The photo with an edit of its square; see `Frame.put_back`.

        Args:
            before, after: (R, R, 3) uint8 in sRGB, what the generator makes without and with the edit.
            mask: (R, R) in [0, 1], what the generator blended by.
        """
        first, second = from_srgb(before, self.picture), from_srgb(after, self.picture)
        if (tone := self.tone) is not None:                     # else eyes that shall grow would also turn blue
            first, second = tone(first), tone(second)
        return self.frame.put_back(self.picture, first, second, share_of(mask))

    def mask_of(self, mask: np.ndarray) -> Image.Image:
        """(R, R) in [0, 1] of the square -> a grey picture of the photo's size: how much of an edit a pixel takes over."""
        black, share = np.zeros((*mask.shape, 3), np.uint8), share_of(mask)
        return self.frame.put_back(Image.new("RGB", self.picture.size), black, black + np.uint8(255), share).convert("L")


def share_of(mask: np.ndarray) -> np.ndarray:
    """(R, R) in [0, 1] that a generator blended by -> how much of what it made a photo takes over."""
    # By the same mask once more, lips at half of it would get a quarter.
    return (mask / SOLID).clip(max=1) * fading(len(mask))


def fading(side: int) -> np.ndarray:
    """(side, side) 1 inside, falling to 0 at the edges within FADE: a change that goes on past the square has no edge."""
    ramp = np.minimum(1, (np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / (FADE * side))
    return np.outer(ramp, ramp).astype(np.float32)
