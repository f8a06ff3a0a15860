"""Where an edit ends in the picture: a mask of a few dozen cells, made to follow the edges of what it lies on."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.method.guided import GuidedFilter

WINDOW = 13                 # pixels of a filter's small picture: how near the mask's own edge the picture's is looked for
FLAT = 1e-4                 # variance of colours in [0, 1], below which there is no edge
SOLID = 0.25                # of a mask, from which on all of an edit is shown
NARROW = 9                  # cells: what is less wide is a narrow part, as lips and brows are, ...
WIDER = 2                   # ... and gets so many cells more, for convolutions past the blend draw much of it there
NOTHING, ALL = 0.02, 0.98   # rounding apart, none of an edit and all of it


@dataclass(frozen=True)
class Edges:
    """A picture's edges, for masks.

    Attributes:
        guided: a filter by the picture.
        known: the last mask and its share, for a slider of strength moves no mask.
    """

    guided: GuidedFilter
    known: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, picture: Tensor, cells: int) -> "Edges":
        """Of a picture (B, 3, R, R) in [-1, 1], for masks of so many cells a side."""
        return cls(GuidedFilter.of(picture, cells, WINDOW, FLAT))

    @property
    def picture(self) -> Tensor:
        return self.guided.picture

    def share(self, mask: Tensor) -> Tensor:
        """How much of an edit by a mask (B, 1, h, h) in [0, 1] each pixel shows: (B, 1, R, R) in [0, 1]."""
        of, share = self.known[0] if self.known else (None, None)           # read once: other threads put theirs there
        if of is None or share is None or not torch.equal(of, mask):
            wanted = widened((mask.float() / SOLID).clamp(max=1))
            wanted = F.interpolate(wanted, size=self.guided.small.shape[-2:], mode="bilinear")
            share = ((self.guided(wanted) - NOTHING) / (ALL - NOTHING)).clamp(0, 1)
            self.known[:] = [(mask, share)]
        return share


def widened(mask: Tensor) -> Tensor:
    """Masks (B, 1, h, h), what is narrow in them widened: all that is not left when NARROW cells a side are asked for."""
    wide = most(-most(-mask, NARROW), NARROW)
    return torch.maximum(mask, most(mask - wide, 2 * WIDER + 1))


def grown(mask: Tensor, cells: Tensor) -> Tensor:
    """Masks (B or 1, 1, h, h) grown by (B, 1) cells, rounded, on every side."""
    for step in range(int(cells.max().round())):
        mask = torch.where(cells[..., None, None].round() > step, most(mask, 3), mask)
    return mask


def most(maps: Tensor, window: int) -> Tensor:
    """The most of maps in a window round each pixel, an odd number wide: of rows, then of columns, which costs less."""
    reach = window // 2
    return F.max_pool2d(F.max_pool2d(maps, (window, 1), 1, (reach, 0)), (1, window), 1, (0, reach))
