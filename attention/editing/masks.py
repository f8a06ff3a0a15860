"""Masks that somebody paints: read from what they give, brought to the blend layer's side, and as a recipe holds them."""

import base64
import io
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from torch import Tensor

from attention.editing.colours import without_alpha
from attention.editing.placed import Placed
from attention.errors import UserError
from attention.files.pictures import decoding, open_picture, read_picture

PNG_OVERHEAD = 10_000           # characters of a mask's PNG beside its pixels
MaskLike: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor        # a path, a picture, or values; see pack_mask


def of_square(mask: MaskLike, photo: Placed | None, side: int) -> Image.Image | np.ndarray | Tensor:
    """A mask of the square round the face, of a picture of it or of the whole photo.

    Args:
        photo: what is edited, None where that is no photo.
        side: of the square's picture in pixels.
    Raises:
        UserError: the file is no picture, or nothing of the square is white.
    """
    if isinstance(mask, str | Path):
        mask = read_picture(mask, "a mask")
    if isinstance(mask, Image.Image) and photo is not None and mask.size == photo.picture.size:
        square = photo.frame.crop(grey_mask(mask).convert("RGB"), side)[..., 0]
        if not square.any():
            raise UserError("the mask of the photo is black within the square round the face, outside of which nothing can "
                            "be edited")
        return square
    if isinstance(mask, Image.Image) and photo is not None and photo.goes_on:
        warnings.warn(f"the mask is {mask.width} x {mask.height} and the photo not, so it is taken for one of the square "
                      "round the face", stacklevel=4)
    return mask


def pack_mask(mask: Image.Image | np.ndarray | Tensor, side: int) -> str:
    """A mask of any square size, as a grey PNG of the blend layer's side in base64.

    Args:
        mask: a picture; or (H, H) booleans, unsigned numbers up to their most, or floats in [0, 1], also as (1, 1, H, H).
    Raises:
        UserError: it is not square, not finite, or of another kind, or nowhere white at the blend layer's side.
    """
    mask = mask.detach().cpu() if isinstance(mask, Tensor) else mask
    array = np.asarray(grey_mask(mask) if isinstance(mask, Image.Image) else mask)
    array = array[0, 0] if array.shape[:-2] == (1, 1) else array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError("the mask holds numbers that are not finite, expected floats from 0 to 1")
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size or array.dtype.kind not in "buf":
        raise UserError(f"the mask is an array of {array.dtype} and shape {array.shape}, expected a square of booleans, "
                        "uint8 or floats, white where to edit; a mask of a whole photo is given as a picture")
    most = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    values = torch.from_numpy(array.astype(np.float32) / most).clamp(0, 1)
    small = F.interpolate(values[None, None], size=(side, side), mode="area")[0, 0]
    if not small.max() >= 0.5:
        raise UserError("the mask is black (almost) everywhere, so nothing would change; paint white where the edit goes, "
                        "255 in an array of uint8, or 1 in one of floats")
    file = io.BytesIO()
    Image.fromarray((small * 255).round().byte().numpy()).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def grey_mask(mask: Image.Image) -> Image.Image:
    """A picture of any depth as a mask of mode L, in which what is transparent is not white."""
    grey = without_alpha(mask).convert("L")
    if mask.has_transparency_data:
        grey = ImageChops.multiply(grey, mask.convert("RGBA").getchannel("A"))
    return grey


def unpack_mask(packed: str, side: int) -> Tensor:
    """(1, 1, side, side) in [0, 1] of what `pack_mask` packed, on the CPU.

    Raises:
        ValueError: it is something else.
    """
    if len(packed) > 4 * side**2 + PNG_OVERHEAD:                            # in base64
        raise ValueError("too long for a mask")
    with decoding("the mask"), open_picture(io.BytesIO(base64.b64decode(packed, validate=True))) as picture:
        if picture.size != (side, side) or picture.mode != "L":              # before a pixel of it is read
            raise ValueError(f"the mask is a {picture.mode} picture of {picture.width} x {picture.height}")
        return torch.from_numpy(np.array(picture, np.float32) / 255)[None, None]
