"""What the editor asks of a CLIP model, and the fixed linear map from an image to its input."""

import math
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class TextImageModel(Protocol):
    """A frozen model that puts pictures and texts into one space.

    Attributes:
        dim: width D of the embeddings.
        image_size: side in pixels of the model's own input; encode_image resizes to it.
    """

    dim: int
    image_size: int

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D) float32, not normalised, differentiable in `images`."""
        ...

    def encode_text(self, texts: list[str]) -> Tensor:
        """B texts -> (B, D) float32, not normalised, on the model's device."""
        ...

    def fits(self, text: str) -> bool:
        """Whether the model reads the whole text; a longer one is cut."""
        ...

    def unknown_words(self, text: str) -> list[str]:
        """What of the text the model cannot read, in its order; nothing if it reads every word by its letters."""
        ...


def preprocess(images: Tensor, side: int) -> Tensor:
    """Resize square images to side x side: every output pixel is the mean of the area that it covers.

    For side 224 and a height divisible by 32 this is the published program's map (enlarge 7x nearest, then average
    blocks of height/32), done as one small matrix on each side of the image. Like that program, it leaves the values
    in [-1, 1]: no mean and standard deviation are taken off (trap 11).

    Args:
        images: (B, C, R, R), any range.
        side: output side in pixels.
    Returns:
        (B, C, side, side), float32 also under autocast (float64 stays float64), differentiable in `images`.
    Raises:
        ValueError: the images are not square; crop them first, a squashed face is another face.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"images are {height}x{width} but CLIP's input is square: crop them first")
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    if height == side:
        return images
    # Whole blocks of pixels make whole blocks of the output, 32 to 7 from 1024 to 224: one small matrix serves them all.
    blocks = math.gcd(height, side)
    matrix = _area_matrix(height // blocks, side // blocks, images.dtype, images.device)
    with torch.autocast(images.device.type, enabled=False):
        rows = (matrix @ images.unflatten(2, (blocks, -1))).flatten(2, 3)            # (B, C, side, R)
        return (rows.unflatten(3, (blocks, -1)) @ matrix.T).flatten(3)               # (B, C, side, side)


@lru_cache(maxsize=16)
def _area_matrix(size: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(side, size): the share of input pixel i in output pixel o; every row sums to 1. Both axes need the same."""
    # One input pixel is `side` units long and one output pixel `size` units, so that all edges are whole numbers.
    outputs, inputs = torch.arange(side).unsqueeze(1) * size, torch.arange(size) * side
    overlap = torch.minimum(outputs + size, inputs + side) - torch.maximum(outputs, inputs)
    # A constant first made under inference_mode could never be used in training afterwards.
    with torch.inference_mode(False):
        return overlap.clamp(min=0).to(device, dtype) / size
