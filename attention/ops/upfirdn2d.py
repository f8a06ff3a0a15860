"""Upsample, filter, downsample: the one resampling operation of StyleGAN2."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.ops import dispatch


def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Insert zeros, pad, convolve with a small kernel and keep every `down`-th pixel, each channel alone.

    Args:
        x: (B, C, H, W), any float dtype.
        kernel: (kh, kw) FIR filter, converted to the dtype of x; a true convolution, so it is flipped.
        up: `up - 1` zeros follow every sample, on both axes.
        down: step between kept samples, on both axes.
        pad: samples added before and after on both axes; negative numbers crop.
    Returns:
        (B, C, H', W') in the dtype of x, H' = (H * up + pad[0] + pad[1] - kh) // down + 1; differentiable twice.
    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN".
    """
    if kernel.requires_grad:
        return upfirdn2d_reference(x, kernel, up, down, pad)
    kernels = dispatch.triton_for(x)
    if kernels is not None:
        return kernels.upfirdn2d(x, kernel, up, down, pad)
    return resampled(_resample, x, kernel, up, down, pad)


def resampled(resample: Callable[..., Tensor], x: Tensor, kernel: Tensor, up: int, down: int,
              pad: tuple[int, int]) -> Tensor:
    """The public operation, computed and differentiated by `resample`; the filter gets no gradient.

    Args:
        resample: (x, fir, up, down, before, size, flipped, memory_format) -> y of `size`, whose first pixel sees `before`
            (y, x) padded pixels; `flipped` says that the filter is the flipped one already.
    Raises:
        ValueError: nothing is left of the map.
    """
    size = tuple((side * up + sum(pad) - taps) // down + 1 for side, taps in zip(x.shape[2:], kernel.shape, strict=True))
    if min(size) < 1:
        raise ValueError(f"a {tuple(kernel.shape)} filter leaves nothing of a map of {tuple(x.shape[2:])} padded by {pad}")
    # Strides, not is_contiguous: a view has a format too. One channel or one pixel has both, and either will do.
    memory_format = torch.channels_last if x.stride(1) < x.stride(3) else torch.contiguous_format
    return _Resample.apply(x, kernel, resample, up, down, (pad[0], pad[0]), size, False, memory_format)


class _Resample(torch.autograd.Function):
    """Its gradient is itself, with up and down swapped, the filter flipped and padding that aligns the two maps.

    It keeps nothing but the filter, where a convolution would keep the map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, fir: Tensor, resample: Callable[..., Tensor], up: int, down: int,
                before: tuple[int, int], size: tuple[int, int], flipped: bool,
                memory_format: torch.memory_format) -> Tensor:
        ctx.save_for_backward(fir)
        aligned = tuple(taps - 1 - lead for taps, lead in zip(fir.shape, before, strict=True))
        ctx.gradient = resample, down, up, aligned, tuple(x.shape[2:]), not flipped, memory_format
        return resample(x, fir, up, down, before, size, flipped, memory_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Resample.apply(gradient, *ctx.saved_tensors, *ctx.gradient), *[None] * 8


def _resample(x: Tensor, fir: Tensor, up: int, down: int, before: tuple[int, int], size: tuple[int, int], flipped: bool,
              memory_format: torch.memory_format) -> Tensor:
    """Plain torch, as convolutions with a filter for each channel; see `resampled`."""
    x, channels = x.contiguous(memory_format=memory_format), x.shape[1]
    fir = (fir if flipped else fir.flip(0, 1)).to(x.dtype)                       # what a correlation takes
    # Samples that y needs beyond those it sees before the map; less than none: they are cut off.
    after = [(side - 1) * down + taps - lead - own * up
             for side, taps, lead, own in zip(size, fir.shape, before, x.shape[2:], strict=True)]
    # A filter loses too much in half precision for the little it costs, so autocast does not choose the dtype here.
    with torch.autocast(x.device.type, enabled=False):
        if up == 1:
            weight = fir.expand(channels, 1, *fir.shape)
            if before[0] == after[0] >= 0 and before[1] == after[1] >= 0:
                return F.conv2d(x, weight, stride=down, padding=before, groups=channels)
            return F.conv2d(F.pad(x, (before[1], after[1], before[0], after[0])), weight, stride=down, groups=channels)
        # A transposed convolution is the zero-stuffed one without the zeros: pixel i lands on i * up .. i * up + k - 1.
        # It pads by k - 1 before and, having no zeros after the last sample, k - up after; the rest is padded here.
        x = F.conv_transpose2d(x, fir.flip(0, 1).expand(channels, 1, *fir.shape), stride=up, groups=channels)
        (top, left), (bottom, right) = ([lead - taps + 1 for lead, taps in zip(before, fir.shape, strict=True)],
                                        [lead - taps + up for lead, taps in zip(after, fir.shape, strict=True)])
        x = F.pad(x, (left, right, top, bottom))
        return x if down == 1 else x[:, :, ::down, ::down].contiguous(memory_format=memory_format)


def upfirdn2d_reference(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """The definition, step by step; every other form of `upfirdn2d` is tested against it."""
    batch, channels, height, width = x.shape
    stuffed = x.new_zeros(batch, channels, height, up, width, up)
    stuffed[:, :, :, 0, :, 0] = x                                                # zeros after every sample
    padded = F.pad(stuffed.view(batch, channels, height * up, width * up), (*pad, *pad))
    flipped = kernel.to(x.dtype).flip(0, 1).expand(channels, 1, *kernel.shape)
    return F.conv2d(padded, flipped, groups=channels)[:, :, ::down, ::down]
