"""What lips are in a picture, for lipstick: teeth between them stay white, and skin round them keeps its colour."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.generator import window_means
from attention.method.guided import CELL
from attention.method.seam import SOLID, most
from attention.method.spatial_attention import pieces

DARK = 0.05                 # light in [0, 1] that is added before colours are compared, for those of the dark are noise
GRAIN = 3                   # of the pixels of a cell: over so many colours are means
ROUND = 12                  # of these pixels: so wide is what lies beside lips
ALIKE = 1e-4                # variance of colours in logarithms, below which they do not differ
APART = 2.0                 # squared standard deviations, by which lips must differ from what is beside them
FADE = 0.3                  # of the way from skin to lips, over which half of a fade goes
INNER = 0.6                 # of the most of a mask: from there on colours alone decide, ...
FARTHER = 1.0               # ... and where there is none of it, so much more of the way is asked for
BESIDE = 3                  # of these pixels: so far a photo's lips may lie from those that its latent makes
MOUTH_CELL = 2              # pixels of a mask's cell's side, in which lips hang together
AS_WIDE = 0.75              # of a mouth's width, that an upper lip has and the shadow of a nose has not
SPARED = 0.01               # of a text that spares what is no lips, rounding apart


def like_lips(picture: Tensor, mask: Tensor, least: Tensor, other: Tensor | None = None) -> Tensor:
    """How much of an edit a pixel shows for having the colours of the lips that a mask covers, and not of what is beside
    them: teeth between lips show none, and skin round them. See `lips_in`, and `of_one_mouth`.

    Args:
        picture: (B, 3, R, R) in [-1, 1].
        mask: (B, 1, h, h) in [0, 1].
        least: (B, 1) where on the way to lips half of an edit is shown, in the mask's middle; below SPARED all is shown.
        other: (B, 3, R, R) the same faces, of photos what their latents make. Lips are lips in both; where they hardly
            differ from skin in the picture, the other one decides.
    Returns:
        (B, 1, R, R) in [0, 1].
    """
    share, alike = lips_in(picture, mask, least)
    if other is not None:
        seen, _ = lips_in(other, mask, least)
        near = most(seen, 2 * BESIDE * seen.shape[-1] // small_side(seen, mask) | 1)
        share = torch.where(alike, seen, torch.minimum(share, near))
    return torch.where((least < SPARED)[..., None, None], torch.ones_like(share), share * of_one_mouth(share, mask))


def lips_in(picture: Tensor, mask: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """How much lips a pixel is for its colour, (B, 1, R, R) in [0, 1], and whether lips hardly differ from what is beside
    them, (B, 1, 1, 1), as in grey photos: the mask alone decides there.

    Colours are without lightness, log (R / G, B / G). Lips are the redder half of what the mask covers, for the rest of it
    may be teeth; what is beside them lies round the mask. Along the line on which the two differ most for their spread
    (Fisher 1936), what is beside them is at 0 and lips are at 1. Towards the mask's edge more of that way is asked for, so
    that no nostril is taken for lips.
    """
    light = (picture.float().clamp(-1, 1) + 1) / 2 + DARK
    colours = (light[:, ::2] / light[:, 1:2]).log()                                                         # (B, 2, R, R)
    side = small_side(picture, mask)
    small = window_means(F.adaptive_avg_pool2d(colours, side), GRAIN)
    covered = F.interpolate(mask.float(), size=small.shape[-2:], mode="bilinear") > SOLID / 2               # (B, 1, s, s)
    round_it = (most(covered.float(), 2 * ROUND + 1) > 0) & ~covered
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
    return share, alike


def of_one_mouth(share: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, R, R) in [0, 1]: 0 at what is shown of an edit of lips, a share (B, 1, R, R), above the largest piece of it
    and apart from that, unless it is about as wide, as the upper lip of a laugh is. The shadow of a nose has the colours
    of lips, and a mask (B, 1, h, h) covers it."""
    side = MOUTH_CELL * mask.shape[-1]
    covered = F.interpolate(mask.float(), size=(side, side), mode="bilinear") > SOLID / 2                   # (B, 1, s, s)
    some = ((F.adaptive_avg_pool2d(share, side) > 0.5) & covered).float()
    names, own = pieces(some).flatten(1), some.flatten(1)                                                   # (B, s * s)
    empty = torch.zeros(len(names), side * side + 1, device=mask.device)
    main = empty.scatter_add(1, names, own).argmax(dim=1, keepdim=True)                                     # (B, 1)
    down = torch.arange(side, device=mask.device).repeat_interleave(side).expand_as(names)
    across = torch.arange(side, device=mask.device).repeat(side).expand_as(names)

    def farthest(values: Tensor) -> Tensor:
        """(B, s * s + 1) the most of values (B, s * s) in every piece."""
        return (empty - side).long().scatter_reduce(1, names, values, "amax")

    lowest, highest, width = farthest(down), -farthest(-down), farthest(across) + farthest(-across) + 1
    above = (lowest < highest.gather(1, main)) & (width < AS_WIDE * width.gather(1, main))
    spared = (above.gather(1, names) & (names > 0)).view_as(some).float()
    return 1 - F.interpolate(most(spared, 2 * MOUTH_CELL + 1), size=share.shape[-2:], mode="bilinear")


def small_side(picture: Tensor, mask: Tensor) -> int:
    """Pixels of a side in which a picture (B, 3, R, R) is looked at for a mask (B, 1, h, h)."""
    return min(CELL * mask.shape[-1], picture.shape[-1])


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
