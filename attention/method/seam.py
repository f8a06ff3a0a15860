"""Where an edit ends in the picture: a mask of a few dozen cells, made to follow the edges of what it lies on."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.generator import window_means

CELL = 4                    # pixels of a cell's side in which edges are looked for
WINDOW = 13                 # of these pixels: how near the mask's own edge the picture's is looked for
FLAT = 1e-4                 # variance of colours in [0, 1], below which there is no edge
SOLID = 0.25                # of a mask, from which on all of an edit is shown
NARROW = 9                  # cells: what is less wide is a narrow part, as lips and brows are, ...
WIDER = 2                   # ... and gets so many cells more, for convolutions past the blend draw much of it there
NOTHING, ALL = 0.02, 0.98   # rounding apart, none of an edit and all of it
REDDEST = 0.75              # quantile of a part's redness by which it is known: most of an open mouth is teeth
FADE = 0.15                 # of that redness, over which an edit fades round the least one that it asks for
FAINT = 0.03                # redness in [0, 1], below which a part has none, as in a grey photo
SPARED = 0.01               # of a text that asks for a redness, rounding apart


@dataclass(frozen=True)
class Edges:
    """A picture, and what a guided filter knows of it before it has a mask (He et al. 2013, section 3.4).

    Attributes:
        picture: (B, 3, R, R) in [-1, 1].
        small: (B, 3, s, s) in [0, 1], CELL pixels for a cell.
        mean: of its windows.
        inverse: (B, s, s, 3, 3), of the covariance of their colours.
        known: the last mask and its share, for a slider of strength moves no mask.
    """

    picture: Tensor
    small: Tensor
    mean: Tensor
    inverse: Tensor
    known: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, picture: Tensor, cells: int) -> "Edges":
        """Of a picture (B, 3, R, R), for masks of so many cells a side."""
        with torch.autocast(picture.device.type, enabled=False):
            small = (F.adaptive_avg_pool2d(picture.float(), min(CELL * cells, picture.shape[-1])) + 1) / 2
            mean = window_means(small, WINDOW)
            products = window_means((small[:, :, None] * small[:, None]).flatten(1, 2), WINDOW).unflatten(1, (3, 3))
            covariance = (products - mean[:, :, None] * mean[:, None]).permute(0, 3, 4, 1, 2)  # (B, s, s, 3, 3)
            inverse = torch.linalg.inv(covariance + FLAT * torch.eye(3, device=small.device))
        return cls(picture, small, mean, inverse)

    def share(self, mask: Tensor) -> Tensor:
        """How much of an edit by a mask (B, 1, h, h) in [0, 1] each pixel shows: (B, 1, R, R) in [0, 1].

        The filter is computed at the small side and applied at the whole one (He and Sun 2015).
        """
        of, share = self.known[0] if self.known else (None, None)           # read once: other threads put theirs there
        if of is None or share is None or not torch.equal(of, mask):
            share = self._share(mask)
            self.known[:] = [(mask, share)]
        return share

    def _share(self, mask: Tensor) -> Tensor:
        with torch.autocast(mask.device.type, enabled=False):
            wanted = widened((mask.float() / SOLID).clamp(max=1))
            wanted = F.interpolate(wanted, size=self.small.shape[-2:], mode="bilinear")
            mean = window_means(wanted, WINDOW)                                                         # (B, 1, s, s)
            together = window_means(self.small * wanted, WINDOW) - self.mean * mean                     # (B, 3, s, s)
            slope = (self.inverse @ together.permute(0, 2, 3, 1)[..., None])[..., 0].permute(0, 3, 1, 2)
            offset = mean - (slope * self.mean).sum(dim=1, keepdim=True)
            line = window_means(torch.cat([slope, offset], dim=1), WINDOW)                              # (B, 4, s, s)
            line = F.interpolate(line, size=self.picture.shape[-2:], mode="bilinear")
            share = ((self.picture.float() + 1) / 2 * line[:, :3]).sum(dim=1, keepdim=True) + line[:, 3:]
        return ((share - NOTHING) / (ALL - NOTHING)).clamp(0, 1)


def widened(mask: Tensor) -> Tensor:
    """Masks (B, 1, h, h), what is narrow in them widened: all that is not left when NARROW cells a side are asked for."""
    wide = _most(-_most(-mask, NARROW), NARROW)
    return torch.maximum(mask, _most(mask - wide, 2 * WIDER + 1))


def _most(maps: Tensor, window: int) -> Tensor:
    return F.max_pool2d(maps, window, 1, window // 2)


def as_red(picture: Tensor, mask: Tensor, least: Tensor) -> Tensor:
    """How much of an edit a pixel shows for being as red as the part that a mask covers: teeth between lips show none.

    Redness is R less the mean of G and B, and a part's that of its reddest quarter.

    Args:
        picture: (B, 3, R, R) in [-1, 1].
        mask: (B, 1, h, h) in [0, 1].
        least: (B, 1) of the part's redness that a pixel must have; below SPARED it need have none.
    Returns:
        (B, 1, R, R) in [0, 1].
    """
    redness = (picture[:, :1].float() - picture[:, 1:].float().mean(dim=1, keepdim=True)) / 2
    small = F.adaptive_avg_pool2d(redness, min(CELL * mask.shape[-1], redness.shape[-1]))                   # (B, 1, s, s)
    covered = F.interpolate(mask.float(), size=small.shape[-2:], mode="bilinear") > SOLID / 2
    part = torch.where(covered, small, torch.nan).flatten(1).nanquantile(REDDEST, dim=1)[:, None]           # (B, 1)
    free = (least < SPARED) | ~(part >= FAINT)                                          # NaN: the mask covers nothing
    smooth = window_means(redness, redness.shape[-1] // small.shape[-1] // 2 * 2 + 3)
    share = ((smooth / part[..., None, None] - least[..., None, None]) / (2 * FADE) + 0.5).clamp(0, 1)
    return torch.where(free[..., None, None], torch.ones_like(share), share)
