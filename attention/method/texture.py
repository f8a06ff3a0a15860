"""What an edit keeps of the fine structure of the picture under it: hair that got another colour has the strands it had."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.generator import window_means

CELL = 4                    # pixels of a cell's side in which structure is counted
WINDOW = 9                  # of these pixels: what is finer than such a window is structure
LIGHTER = 2.2               # most by which structure grows where an edit makes lighter: more of it would be grain
OUTLYING = 2.0              # standard deviations, beyond which structure is pressed together: single bright strands
FAINT = 4e-3                # of luminance in [0, 1]: what varies by less has no structure
DARK = 0.04                 # luminance that is added where two are compared by their ratio
LUMINANCE = (0.299, 0.587, 0.114)
KEPT = 0.01                 # of a text that keeps structure, rounding apart


def with_structure(image: Tensor, picture: Tensor, shown: Tensor, cells: int, kept: Tensor) -> Tensor:
    """An edit with the structure of the picture under it, in luminance, no stronger than the edit's own.

    `Y' = Y + kept / light (m + gain s' - Y)`, Y the edit's luminance, m its mean in a window round each pixel, s' how the
    picture under it differs from its own mean there, `gain = min(s / s_picture, light, LIGHTER)` of the standard deviations
    in the window, `light = max(1, m / m_picture)`. All windows count pixels by how much of the edit they show. Where an
    edit makes much lighter than what there was, that was too dark to have a structure, and the edit keeps its own. What
    gets darker is shaded, all of its colours by the same share; what gets lighter shines, all by the same amount.

    Args:
        image: (B, 3, R, R) the edit, in [-1, 1].
        picture: (B or 1, 3, R, R) what is under it, in [-1, 1].
        shown: (B or 1, 1, R, R) in [0, 1], how much of the edit a pixel shows.
        cells: of the mask's side.
        kept: (B, 1) in [0, 1].
    Returns:
        (B, 3, R, R).
    """
    side = min(CELL * cells, image.shape[-1])
    weight = shown + FAINT
    total = window_means(F.adaptive_avg_pool2d(weight, side), WINDOW)                                       # (B, 1, s, s)

    def means(maps: Tensor) -> Tensor:
        return window_means(F.adaptive_avg_pool2d(maps * weight, side), WINDOW) / total

    def spread(maps: Tensor, mean: Tensor) -> Tensor:
        return (means(maps.square()) - mean.square()).clamp(min=0).sqrt() + FAINT

    def large(maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=image.shape[-2:], mode="bilinear")

    made, under = luminance(image), luminance(picture)                                                      # (B, 1, R, R)
    mean, mean_under = means(made), means(under)                                                            # (B, 1, s, s)
    spread_under = spread(under, mean_under)
    light = ((mean + DARK) / (mean_under + DARK)).clamp(min=1)
    gain = torch.minimum(spread(made, mean) / spread_under, light.clamp(max=LIGHTER))
    most = OUTLYING * large(spread_under)
    structure = torch.tanh((under - large(mean_under)) / most) * most
    wanted = large(mean) + large(gain) * structure
    change = kept[..., None, None] / large(light) * (wanted - made)
    darker = (image + 1) * (1 + change / (made.clamp(min=0) + DARK)).clamp(0, 1) - 1
    return darker + 2 * change.clamp(min=0)


def luminance(picture: Tensor) -> Tensor:
    """(B, 3, R, R) in [-1, 1] -> (B, 1, R, R) in [0, 1]."""
    weights = torch.tensor(LUMINANCE, device=picture.device)[:, None, None]
    return ((picture.float() + 1) / 2 * weights).sum(dim=1, keepdim=True)
