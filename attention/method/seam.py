"""Where an edit ends in the picture: a mask of a few dozen cells, made to follow the edges of what it lies on."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.generator import window_means
from attention.method.guided import CELL, GuidedFilter

WINDOW = 13                 # pixels of a filter's small picture: how near the mask's own edge the picture's is looked for
FLAT = 1e-4                 # variance of colours in [0, 1], below which there is no edge
SOLID = 0.25                # of a mask, from which on all of an edit is shown
NARROW = 9                  # cells: what is less wide is a narrow part, as lips and brows are, ...
WIDER = 2                   # ... and gets so many cells more, for convolutions past the blend draw much of it there
NOTHING, ALL = 0.02, 0.98   # rounding apart, none of an edit and all of it
DARK = 0.05                 # light in [0, 1] that is added before colours are compared, for those of the dark are noise
GRAIN = 3                   # of the pixels of a cell: over so many colours are means
ROUND = 12                  # of these pixels: so wide is what lies beside lips
ALIKE = 1e-4                # variance of colours in logarithms, below which they do not differ
APART = 2.0                 # squared standard deviations, by which lips must differ from what is beside them
FADE = 0.3                  # of the way from skin to lips, over which half of a fade goes
INNER = 0.6                 # of the most of a mask: from there on colours alone decide, ...
FARTHER = 1.0               # ... and where there is none of it, so much more of the way is asked for
SPARED = 0.01               # of a text that spares what is no lips, rounding apart


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
    wide = _most(-_most(-mask, NARROW), NARROW)
    return torch.maximum(mask, _most(mask - wide, 2 * WIDER + 1))


def grown(mask: Tensor, cells: Tensor) -> Tensor:
    """Masks (B or 1, 1, h, h) grown by (B, 1) cells, rounded, on every side."""
    for step in range(int(cells.max().round())):
        mask = torch.where(cells[..., None, None].round() > step, _most(mask, 3), mask)
    return mask


def _most(maps: Tensor, window: int) -> Tensor:
    """The most of maps in a window round each pixel, an odd number wide: of rows, then of columns, which costs less."""
    reach = window // 2
    return F.max_pool2d(F.max_pool2d(maps, (window, 1), 1, (reach, 0)), (1, window), 1, (0, reach))


def like_lips(picture: Tensor, mask: Tensor, least: Tensor) -> Tensor:
    """How much of an edit a pixel shows for having the colours of the lips that a mask covers, and not of what is beside
    them: teeth between lips show none, and skin round them.

    Colours are without lightness, log (R / G, B / G). Lips are the redder half of what the mask covers, for the rest of it
    may be teeth; what is beside them lies round the mask. Along the line on which the two differ most for their spread
    (Fisher 1936), what is beside them is at 0 and lips are at 1. Towards the mask's edge more of that way is asked for, so
    that no nostril is taken for lips. Where the two hardly differ, as in grey photos, the mask alone decides.

    Args:
        picture: (B, 3, R, R) in [-1, 1].
        mask: (B, 1, h, h) in [0, 1].
        least: (B, 1) where on that line half of an edit is shown, in the mask's middle; below SPARED all is shown.
    Returns:
        (B, 1, R, R) in [0, 1].
    """
    light = (picture.float().clamp(-1, 1) + 1) / 2 + DARK
    colours = (light[:, ::2] / light[:, 1:2]).log()                                                         # (B, 2, R, R)
    side = min(CELL * mask.shape[-1], picture.shape[-1])
    small = window_means(F.adaptive_avg_pool2d(colours, side), GRAIN)
    covered = F.interpolate(mask.float(), size=small.shape[-2:], mode="bilinear") > SOLID / 2               # (B, 1, s, s)
    round_it = (_most(covered.float(), 2 * ROUND + 1) > 0) & ~covered
    redness = small[:, :1]
    usual = torch.where(covered, redness, torch.nan).flatten(1).nanmedian(dim=1).values[:, None, None, None]
    skin, spread_of_skin = colours_of(small, round_it)                                          # (B, 2), (B, 2, 2)
    lips, spread = colours_of(small, covered & (redness >= usual))
    line = between(skin, spread_of_skin, lips, spread)                                                      # (B, 2)
    apart = ((lips - skin) * line).sum(dim=1, keepdim=True)                             # (B, 1) squared standard deviations
    alike, apart = (~(apart >= APART))[..., None, None], apart[..., None, None]         # NaN: the mask covers nothing
    along = ((colours - skin[..., None, None]) * line[..., None, None]).sum(dim=1, keepdim=True) / apart
    along = torch.where(alike, torch.ones_like(along), along)
    inside = (mask.float() / (INNER * mask.amax(dim=(2, 3), keepdim=True)).clamp(min=SPARED)).clamp(max=1)
    asked = least[..., None, None] + FARTHER * (1 - F.interpolate(inside, size=along.shape[-2:], mode="bilinear"))
    share = ((window_means(along, picture.shape[-1] // side * 2 + 1) - asked) / (2 * FADE) + 0.5).clamp(0, 1)
    return torch.where((least < SPARED)[..., None, None], torch.ones_like(share), share)


def colours_of(maps: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, C) and covariance (B, C, C) of maps (B, C, h, w) where (B, 1, h, w) is true; NaN if it nowhere is."""
    chosen, values = where.flatten(2).to(maps.dtype), maps.flatten(2)                   # (B, 1, s*s), (B, C, s*s)
    count = chosen.sum(dim=2)                                                           # (B, 1)
    mean = (values * chosen).sum(dim=2) / count
    apart = (values - mean[..., None]) * chosen
    return mean, apart @ apart.transpose(1, 2) / count[..., None]


def between(mean: Tensor, spread: Tensor, other: Tensor, other_spread: Tensor) -> Tensor:
    """(B, C): Fisher's discriminant, from means (B, C) and covariances (B, C, C) of two kinds of colours."""
    alike = ALIKE * torch.eye(mean.shape[-1], device=mean.device)
    return torch.linalg.solve((spread + other_spread) / 2 + alike, other - mean)
