"""What of a framed photo is background, clothes, hair and skin: a small decoder of the maps that the encoder sees.

Places are found in the inversion of a photo, and where hair ends says little to the error of pixels, so that an inversion
may have much more hair than the photo: its colour would be a halo on the wall.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.errors import UserError
from attention.files.networks import FileKind
from attention.images import area_resize
from attention.inversion.small import MAPS, SIDE, SmallEncoder, convolution

KIND = FileKind("where2edit layout", "python -m attention.worlds.faces.build --part layout")
CLASSES = ("background", "clothes", "hair", "skin")
WIDTHS = (64, 64, 48, 32)   # channels at the smallest side of the encoder's maps, and at each that is twice as large, ...
STEM = 16                   # ... and at SIDE
# From where a photo is looked at: aside, x and y in half sides, and a size.
LOOKS = (((0, 0), 1), ((0.06, 0), 1), ((-0.06, 0), 1), ((0, 0.06), 1), ((0, -0.06), 1), ((0, 0), 1.08), ((0, 0), 0.92))


class Layout(nn.Module):
    """Pictures to logits of CLASSES.

    Args:
        encoder: whose maps are decoded; frozen, and no part of this module's state.
    Source: Ronneberger et al. 2015, U-Net.
    """

    def __init__(self, encoder: SmallEncoder):
        super().__init__()
        self._encoder = (encoder,)
        before, after = (width for width, _ in reversed(MAPS)), (*WIDTHS[1:], STEM)
        self.sides = nn.ModuleList(nn.Conv2d(width, out, 1) for width, out in zip(before, WIDTHS, strict=True))
        self.larger = nn.ModuleList(nn.Sequential(*convolution(width, out, 3)) for width, out in
                                    zip(WIDTHS, after, strict=True))
        self.stem = nn.Sequential(*convolution(3, STEM, 3), *convolution(STEM, STEM, 3))
        self.last = nn.Sequential(*convolution(STEM, STEM, 3), nn.Conv2d(STEM, len(CLASSES), 1))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Faces (B, 3, R, R) in [-1, 1], framed as the world's pictures are -> (B, len(CLASSES), SIDE, SIDE)."""
        x: Tensor | None = None
        for seen, side, larger in zip(reversed(self._encoder[0].maps(images)), self.sides, self.larger, strict=True):
            x = side(seen) if x is None else side(seen) + x                                         # (B, C, h, h)
            x = F.interpolate(larger(x), scale_factor=2, mode="bilinear")                           # (B, C', 2h, 2h)
        assert x is not None                                                                        # there are maps
        logits: Tensor = self.last(x + self.stem(area_resize(images, SIDE)))
        return logits

    @torch.no_grad()
    def background(self, photo: Tensor) -> Tensor:
        """How surely a photo (B, 3, R, R) in [-1, 1] shows background: (B, 1, SIDE, SIDE), the mean of several looks."""
        seen, found = area_resize(photo, SIDE), []
        for aside, size in LOOKS:
            for mirrored in (False, True):
                looked = _moved(seen.flip(-1) if mirrored else seen, aside, size)
                shown = self(looked).softmax(dim=1)[:, :1]
                back = _moved(shown, [-away / size for away in aside], 1 / size)
                found.append(back.flip(-1) if mirrored else back)
        return torch.stack(found).mean(dim=0)

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Write the weights, and whose maps they decode, as one safetensors file; dtype as `FileKind.save` has it."""
        KIND.save(path, self, {"encoder": fingerprint(self._encoder[0])}, dtype)


def _moved(pictures: Tensor, aside: Sequence[float], size: float) -> Tensor:
    """Pictures (B, C, S, S) seen from aside, x and y in half sides, and from a distance."""
    transform = torch.tensor([[size, 0, aside[0]], [0, size, aside[1]]], device=pictures.device, dtype=pictures.dtype)
    grid = F.affine_grid(transform.expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def fingerprint(encoder: SmallEncoder) -> str:
    """Of what an encoder's maps come of."""
    digest = hashlib.sha256()
    for value in encoder.trunk.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_layout(path: Path, encoder: nn.Module) -> Layout:
    """Read what `save` wrote: float32, frozen, in evaluation mode.

    Raises:
        UserError: the file is missing, cut short, of another kind, or decodes the maps of another encoder.
    """
    if not isinstance(encoder, SmallEncoder):
        raise UserError(f"{path} decodes the maps of an encoder of the kind faces, but the world has another; give it one, "
                        "or no layout")

    def build(said: dict, tensors: dict) -> tuple[Layout, nn.Module]:
        if said["encoder"] != fingerprint(encoder):
            raise UserError(f"{path} decodes the maps of another encoder than the one that is here; make it again: "
                            f"{KIND.remake}")
        layout = Layout(encoder)
        return layout, layout

    return KIND.load(path, build)
