"""What an edit keeps of the fine structure of the picture under it: hair that got another colour has the strands it had."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.method.guided import GuidedFilter, means

WINDOW = 25                 # pixels of a filter's small picture: over so many a change of colours is one line
FLAT = 1e-2                 # variance of colours in [0, 1], below which a change is the same for all of them
SMOOTH = 1e-4               # variance of colours in [-1, 1], below which there is no structure
KEPT = 0.01                 # of a text that keeps structure, rounding apart


def with_structure(image: Tensor, under: Tensor, shown: Tensor, cells: int, kept: Tensor) -> Tensor:
    """An edit with the structure of the picture under it.

    `K = S + G(E - S)`, E the edit, S what is under it, and G a filter guided by S: in every window the edit's change is the
    line in S's colours that is nearest to it. So lips get another colour, and no tooth that the edit drew upon them. What
    differs from a window's mean in `E' = (1 - kept) E + kept K` is enlarged until its variance is
    `(1 - kept^2) var E + kept^2 var K`: the strands of both have nothing in common, and halves of them would be a fog.

    Args:
        image: (B, 3, R, R) the edit, in [-1, 1].
        under: (B or 1, 3, R, R) what is under it, in [-1, 1].
        shown: (B or 1, 1, R, R) in [0, 1], how much of the edit a pixel shows: by so much it counts.
        cells: of the mask's side.
        kept: (B, 1) in [0, 1].
    Returns:
        (B, 3, R, R).
    """
    guided = GuidedFilter.of(under, cells, WINDOW, FLAT, shown)
    side, share = guided.small.shape[-1], kept[..., None, None]

    def moments(picture: Tensor) -> tuple[Tensor, Tensor]:
        """Means (B, 3, s, s) of windows, and variances (B, 1, s, s) of all colours."""
        small = F.adaptive_avg_pool2d(picture, side)
        mean = means(small, WINDOW, guided.weight)
        variance = means(small.square(), WINDOW, guided.weight) - mean.square()
        return mean, variance.clamp(min=0).mean(dim=1, keepdim=True) + SMOOTH

    coloured = under + guided(F.adaptive_avg_pool2d(image - under, side))
    mixed = torch.lerp(image, coloured, share)
    mean, variance = moments(mixed)
    gain = (torch.lerp(moments(image)[1], moments(coloured)[1], share.square()) / variance).sqrt().clamp(min=1)
    mean, gain = (F.interpolate(maps, size=image.shape[-2:], mode="bilinear") for maps in (mean, gain))
    return mixed + (gain - 1) * (mixed - mean)
