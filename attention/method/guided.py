"""Maps that follow the edges of a picture: a guided filter (He et al. 2013, section 3.4)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.generator import window_means

CELL = 4                    # pixels of a mask's cell's side, in which the filter is computed
LEAST = 1e-3                # weight of what has none


@dataclass(frozen=True)
class GuidedFilter:
    """A picture, and what a guided filter knows of it before it has maps.

    Attributes:
        picture: (B, 3, R, R) in [-1, 1].
        small: (B, 3, s, s) in [0, 1], CELL pixels for a cell.
        weight: (B, 1, s, s), by which pixels count in a window; None if all count the same.
        mean: of its windows.
        inverse: (B, s, s, 3, 3), of the covariance of their colours.
        window: pixels of `small`, an odd number.
    """

    picture: Tensor
    small: Tensor
    weight: Tensor | None
    mean: Tensor
    inverse: Tensor
    window: int

    @classmethod
    def of(cls, picture: Tensor, cells: int, window: int, flat: float, weight: Tensor | None = None) -> "GuidedFilter":
        """A filter by a picture (B, 3, R, R), for masks of so many cells a side.

        Args:
            flat: variance of colours in [0, 1], below which a map is the same for all of them.
            weight: (B or 1, 1, R, R) in [0, 1], by which pixels count.
        """
        with torch.autocast(picture.device.type, enabled=False):
            side = min(CELL * cells, picture.shape[-1])
            small = (F.adaptive_avg_pool2d(picture.float(), side) + 1) / 2
            weight = None if weight is None else F.adaptive_avg_pool2d(weight, side) + LEAST
            mean = means(small, window, weight)
            products = means((small[:, :, None] * small[:, None]).flatten(1, 2), window, weight).unflatten(1, (3, 3))
            covariance = (products - mean[:, :, None] * mean[:, None]).permute(0, 3, 4, 1, 2)  # (B, s, s, 3, 3)
            inverse = torch.linalg.inv(covariance + flat * torch.eye(3, device=small.device))
        return cls(picture, small, weight, mean, inverse, window)

    def __call__(self, maps: Tensor) -> Tensor:
        """Maps (B, C, s, s), in every window a line in the picture's colours: (B, C, R, R).

        The lines are found at the small side and applied at the whole one (He and Sun 2015).
        """
        with torch.autocast(maps.device.type, enabled=False):
            mean = means(maps, self.window, self.weight)                                                # (B, C, s, s)
            products = means((self.small[:, :, None] * maps[:, None]).flatten(1, 2), self.window, self.weight)
            together = products.unflatten(1, (3, -1)) - self.mean[:, :, None] * mean[:, None]           # (B, 3, C, s, s)
            slope = (self.inverse @ together.permute(0, 3, 4, 1, 2)).permute(0, 3, 4, 1, 2)
            offset = mean - (slope * self.mean[:, :, None]).sum(dim=1)
            lines = means(torch.cat([slope.flatten(1, 2), offset], dim=1), self.window, self.weight)    # (B, 4 C, s, s)
            side = self.picture.shape[-1]
            *slopes, result = (F.interpolate(line, size=side, mode="bilinear") for line in lines.chunk(4, dim=1))
            for colour, slope in zip((self.picture.float() + 1).split(1, dim=1), slopes, strict=True):
                result = torch.addcmul(result, colour, slope, value=0.5)                                # (B, C, R, R)
            return result


def means(maps: Tensor, window: int, weight: Tensor | None) -> Tensor:
    """Means of maps (B, C, s, s) in a window round each pixel, in which pixels count by a weight (B, 1, s, s)."""
    if weight is None:
        return window_means(maps, window)
    return window_means(maps * weight, window) / window_means(weight, window)
