"""Upsample, filter, downsample: the one resampling operation of StyleGAN2."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    channels, (kh, kw) = x.shape[1], kernel.shape
    weight = kernel.to(x.dtype).expand(channels, 1, kh, kw)
    # A filter loses too much in half precision for the little it costs, so autocast does not choose the dtype here.
    with torch.autocast(x.device.type, enabled=False):
        if up == 1:
            if pad[0] == pad[1] >= 0:
                return F.conv2d(x, weight.flip(2, 3), stride=down, padding=pad[0], groups=channels)
            x = F.pad(x, (*pad, *pad))
            return F.conv2d(x, weight.flip(2, 3), stride=down, groups=channels)
        # A transposed convolution is the zero-stuffed one without the zeros: pixel i lands on i * up .. i * up + k - 1.
        # It pads by k - 1 before and, having no zeros after the last sample, k - up after; the rest is padded here.
        x = F.conv_transpose2d(x, weight, stride=up, groups=channels)            # (B, C, (H - 1) * up + kh, ...)
        before_y, before_x = pad[0] - kh + 1, pad[0] - kw + 1
        x = F.pad(x, (before_x, pad[1] - kw + up, before_y, pad[1] - kh + up))
        return x[:, :, ::down, ::down]


def upfirdn2d_reference(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """The definition, step by step; every other form of `upfirdn2d` is tested against it."""
    batch, channels, height, width = x.shape
    stuffed = x.new_zeros(batch, channels, height, up, width, up)
    stuffed[:, :, :, 0, :, 0] = x                                                # zeros after every sample
    padded = F.pad(stuffed.view(batch, channels, height * up, width * up), (*pad, *pad))
    flipped = kernel.to(x.dtype).flip(0, 1).expand(channels, 1, *kernel.shape)
    return F.conv2d(padded, flipped, groups=channels)[:, :, ::down, ::down]
