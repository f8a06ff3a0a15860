"""Pictures as tensors: pixels and [-1, 1], how near two pictures are, resizing, and making them less clean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_pixels(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return to_bytes(images.detach()).permute(0, 2, 3, 1).cpu().numpy()


def to_bytes(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as a screen shows them: the same shape in uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte()


def to_image(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(made: Tensor, wanted: Tensor) -> Tensor:
    """(B,) PSNR in dB of pictures (B, 3, H, W) in [-1, 1]."""
    return decibels((made.clamp(-1, 1) - wanted.to(made.device)).square().mean(dim=(1, 2, 3)) / 4)


def decibels(error: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors of pixels in [0, 1]."""
    return -10 * torch.log10(error)


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


@dataclass(frozen=True)
class Damage:
    """How far `augment` may take pictures from what they were: the ends of its uniform draws, pictures in [-1, 1].

    Attributes:
        shift: either way, in half sides; whole_pixels rounds it.
        blur: box blurs of 3 px, one after the other; every picture goes a random share of the way to the last of them,
            and the share `sharp` of the pictures none of it.
        coarse: the share of the pictures that lose resolution, down to `coarsest` of the side.
        gain, offset: of every channel.
        noise: strongest standard deviation.
    """

    shift: float = 0.05
    whole_pixels: bool = False
    blur: int = 2
    sharp: float = 0.0
    coarse: float = 0.0
    coarsest: float = 0.4
    gain: float = 0.12
    offset: float = 0.08
    noise: float = 0.12


def augment(images: Tensor, random: torch.Generator | Sequence[torch.Generator],
            damage: Damage = Damage()) -> tuple[Tensor, Tensor]:
    """Make pictures less clean: shift, blur, loss of resolution, shifted colours, noise; one draw for each picture.

    Args:
        images: (B, 3, H, H) in [-1, 1].
        random: on the device of the pictures; or N of them, one after the other each for B / N pictures.
    Returns:
        The pictures, differentiable in `images`; and (B, 2) by how much each was shifted, x and y in pixels.
    """
    generators = [random] if isinstance(random, torch.Generator) else random
    batch, side, each = len(images), images.shape[-1], len(images) // len(generators)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.cat([torch.empty(each, *shape, device=images.device).uniform_(low, high, generator=one)
                          for one in generators])

    def enlarged(part: Tensor, one: torch.Generator) -> Tensor:
        smaller = int(torch.randint(int(side * damage.coarsest), side, (), generator=one, device=part.device))
        return F.interpolate(area_resize(part, smaller), size=(side, side), mode="bilinear")

    moved = torch.zeros(batch, 2, device=images.device)
    if damage.shift:
        moved = draw(-damage.shift, damage.shift, 2)                                        # where each pixel looks
        moved = (moved * side / 2).round() * 2 / side if damage.whole_pixels else moved
        transform = torch.eye(2, 3, device=images.device).repeat(batch, 1, 1)
        transform[:, :, 2] = moved
        grid = F.affine_grid(transform, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    if damage.blur:
        soft = images
        for _ in range(damage.blur):
            soft = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
        images = torch.lerp(images, soft, draw(-damage.sharp / (1 - damage.sharp), 1, 1, 1, 1).clamp(min=0))
    if damage.coarse:
        coarse = draw(0, 1, 1, 1, 1) < damage.coarse
        images = torch.where(coarse, torch.cat(list(map(enlarged, images.split(each), generators))), images)
    if damage.gain or damage.offset:
        images = images * draw(1 - damage.gain, 1 + damage.gain, 1, 1, 1) + draw(-damage.offset, damage.offset, 3, 1, 1)
    noise = torch.cat([torch.randn(part.shape, generator=one, device=images.device)
                       for part, one in zip(images.split(each), generators, strict=True)])
    return images + draw(0, damage.noise, 1, 1, 1) * noise, -moved * side / 2


def augmented(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """`augment` of pictures (B, 3, H, W) with a seed each: a picture's view does not depend on the others."""
    return augment(images, [torch.Generator(images.device).manual_seed(seed) for seed in seeds])[0]
