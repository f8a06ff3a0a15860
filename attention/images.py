"""Pictures as tensors: pixels and [-1, 1], how near two pictures are, resizing, and making them less clean."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_pixels(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def to_image(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(made: Tensor, wanted: Tensor) -> float:
    """PSNR in dB of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (made.clamp(-1, 1) - wanted.to(made.device)).square().mean()))


def area_resize(images: Tensor, side: int) -> Tensor:
    """Resize square images to side x side: every output pixel is the mean of the area that it covers.

    For side 224 and a height divisible by 32 this is the published program's map (enlarge 7x nearest, then average
    blocks of height/32), done as one small matrix on each side of the image. Like that program, it leaves the values
    in [-1, 1]: no mean and standard deviation are taken off.

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


def augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Noise, blur, shifted colours and small shifts, (B, 3, H, W) in [-1, 1]; differentiable, one draw a batch entry."""
    batch = len(images)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(batch, *shape, device=images.device).uniform_(low, high, generator=random)

    shift = torch.eye(2, 3, device=images.device).repeat(batch, 1, 1)
    shift[:, :, 2] = draw(-0.05, 0.05, 2)
    grid = F.affine_grid(shift, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    soft = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    softer = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, softer, draw(0, 1, 1, 1, 1))
    images = images * draw(0.88, 1.12, 1, 1, 1) + draw(-0.08, 0.08, 3, 1, 1)
    noise = torch.randn(images.shape, generator=random, device=images.device)
    return images + draw(0, 0.12, 1, 1, 1) * noise


def augmented(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """`augment` of pictures (B, 3, H, W) with a seed each: a picture's view does not depend on the others."""
    return torch.cat([augment(image, torch.Generator(image.device).manual_seed(seed))
                      for image, seed in zip(images.split(1), seeds, strict=True)])
