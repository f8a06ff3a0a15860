"""A photo with the square of it that is edited: what the generator made goes back into it here."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from attention.editing.colours import Tone, from_srgb, to_srgb
from attention.inversion.frame import Frame

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

    def put_back(self, before: np.ndarray, after: np.ndarray, share: np.ndarray,
                 anew: np.ndarray | None = None) -> Image.Image:
        """The photo with an edit of its square; see `Frame.put_back`.

        Args:
            before, after: (R, R, 3) uint8 in sRGB, what the generator makes without and with the edit.
            share: (R, R) in [0, 1], how much of what the generator made a pixel takes over.
            anew: the same of edits that keep no structure of what they lie on; None: there are none.
        """
        first, second = from_srgb(before, self.picture), from_srgb(after, self.picture)
        if (tone := self.tone) is not None:                     # else eyes that shall grow would also turn blue
            first, second = tone(first), tone(second)
        fading = self.fading(len(share))
        return self.frame.put_back(self.picture, first, second, share * fading, None if anew is None else anew * fading)

    def mask_of(self, share: np.ndarray) -> Image.Image:
        """(R, R) in [0, 1] of the square -> a grey picture of the photo's size: how much of an edit a pixel takes over."""
        black, whole = np.zeros((*share.shape, 3), np.uint8), share * self.fading(len(share))
        return self.frame.put_back(Image.new("RGB", self.picture.size), black, black + np.uint8(255), whole).convert("L")

    def fading(self, side: int) -> np.ndarray:
        """(side, side) float32: 1 inside, falling to 0 within FADE at the edges beyond which the photo goes on, so that a
        change that goes on past the square has no edge."""
        left, top, right, bottom = self.frame.open_edges(self.picture.size)
        ramp, flat = np.minimum(1, (np.arange(side) + 0.5) / (FADE * side)), np.ones(side)
        across = np.minimum(ramp if left else flat, ramp[::-1] if right else flat)
        down = np.minimum(ramp if top else flat, ramp[::-1] if bottom else flat)
        return np.outer(down, across).astype(np.float32)
