"""How much of a strength suits a face. Ours: calibration finds what suits a text on the mean, but a style that is far from
what a text says goes further at the same strength, and hair that is grey at half of it turns blue at the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attention.generator import Generator

SHARES = (0.6, 1.0, 1.7)        # of a strength, at which a face is looked at
ENOUGH = 0.87                   # of the most that similarity to a text gains at these, where calibration knows no better


@dataclass(frozen=True)
class Judge:
    """Who says how near a face has come to a text.

    Attributes:
        embed: pictures (B, 3, S, S) in [-1, 1] -> CLIP's embeddings (B, D).
        generator: of the pictures that it is shown: the editor's own, or the same with earlier, smaller ones.
    """

    embed: Callable[[Tensor], Tensor]
    generator: Generator


def least_share(gains: Sequence[Tensor], shares: Sequence[float] = SHARES, enough: float | Tensor = ENOUGH) -> Tensor:
    """The least share of a strength that gains enough; between shares, a gain is on the line through theirs.

    Args:
        gains: at every share, (B,): by how much an edit raises a picture's similarity to its text; 0 at the share 0.
        shares: rising, above 0.
        enough: in (0, 1], of all or (B, 1).
    Returns:
        (B, 1) in (0, the last share]; 1 where nothing is gained at any.
    """
    known = torch.stack([torch.zeros_like(gains[0]), *gains], dim=1)                        # (B, 1 + shares)
    wanted = enough * known.amax(dim=1, keepdim=True)                                       # (B, 1)
    after = (known >= wanted).int().argmax(dim=1, keepdim=True).clamp(min=1)                # the first that is enough
    below, above = known.gather(1, after - 1), known.gather(1, after)
    places = known.new_tensor([0.0, *shares]).expand_as(known)
    first, last = places.gather(1, after - 1), places.gather(1, after)
    share = first + (last - first) * (wanted - below) / (above - below)
    return torch.where(wanted > 0, share, torch.ones_like(share))
