"""What a picture remembers of how it was made: a recipe in its PNG, and tensors and masks as JSON holds them."""

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from torch import Tensor

from attention.errors import UserError
from attention.files.pictures import open_picture
from attention.files.reading import readable

RECIPE_KEY = "where2edit"       # of the PNG text that holds the recipe
LONGEST_RECIPE = 16_000_000     # characters; a hundred changes that each carry a w+ of 18 x 512 need a third of it
MOST_CHANGES = 1000             # in one chain: every one costs an edit when it is replayed
UNREADABLE = (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError)      # by PIL or json


def read_recipe(path: str | Path) -> dict:
    """The recipe in a PNG that `Edited.save` wrote.

    Raises:
        UserError: no such file, no picture, no recipe in it, or one that no edit can have written.
    """
    path = readable(path, "a picture that an edit was saved to")
    try:
        with open_picture(path) as picture:
            text = picture.text.get(RECIPE_KEY) if isinstance(picture, PngImagePlugin.PngImageFile) else None
        if text is not None and len(text) > LONGEST_RECIPE:
            raise UserError(f"{path} has a recipe of {len(text):,} characters, but at most {LONGEST_RECIPE:,} are read; it "
                            "was not written by an edit")
        recipe = None if text is None else json.loads(text)
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a picture with a recipe ({error})") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{path} has no recipe in it; only pictures that an edit was saved to can be made again")
    changes = recipe.get("changes")
    if isinstance(changes, list) and len(changes) > MOST_CHANGES:
        raise UserError(f"{path} has a recipe of {len(changes):,} changes, but at most {MOST_CHANGES} are made again")
    return recipe


def pack(tensor: Tensor) -> dict:
    """A tensor as JSON holds it: float32, to the bit."""
    array = tensor.detach().cpu().float().numpy()
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode()}


def unpack(packed: dict) -> Tensor:
    """What `pack` packed, on the CPU.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    array = np.frombuffer(base64.b64decode(packed["float32"], validate=True), "<f4").reshape(packed["shape"])
    return torch.from_numpy(array.astype(np.float32))


def pack_mask(mask: Image.Image | np.ndarray, side: int) -> str:
    """A mask of any square size, as a grey PNG of the blend layer's side in base64.

    Args:
        mask: a picture; or (H, H) booleans, uint8 up to 255, or floats in [0, 1].
    Raises:
        UserError: it is not square, or of another kind, or nowhere white at the blend layer's side.
    """
    array = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.dtype.kind not in "buf":
        raise UserError(f"the mask is an array of {array.dtype} and shape {array.shape}, expected a square of booleans, "
                        "uint8 or floats, white where to edit")
    values = torch.from_numpy(array.astype(np.float32) / (255 if array.dtype.kind == "u" else 1)).clamp(0, 1)
    small = F.interpolate(values[None, None], size=(side, side), mode="area")[0, 0]
    if not small.max() >= 0.5:
        raise UserError("the mask is black (almost) everywhere, so nothing would change; paint white where the edit goes, "
                        "255 in an array of uint8, or 1 in one of floats")
    file = io.BytesIO()
    Image.fromarray((small * 255).round().byte().numpy()).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def unpack_mask(packed: str, side: int) -> Tensor:
    """(1, 1, side, side) in [0, 1] of what `pack_mask` packed, on the CPU.

    Raises:
        TypeError, ValueError, OSError: it is something else.
    """
    with open_picture(io.BytesIO(base64.b64decode(packed, validate=True))) as picture:
        if picture.size != (side, side) or picture.mode != "L":              # before a pixel of it is read
            raise ValueError(f"the mask is a {picture.mode} picture of {picture.width} x {picture.height}")
        return torch.from_numpy(np.array(picture, np.float32) / 255)[None, None]


def pixel_hash(photo: Image.Image) -> str:
    """SHA-256 of a picture's size and pixels."""
    return hashlib.sha256(repr(photo.size).encode() + photo.tobytes()).hexdigest()
