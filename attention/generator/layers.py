"""The layers of a StyleGAN2 generator, with the parameter names and shapes of its published checkpoints.

All maps are channels-last, the fastest order for convolutions, and stay so from the constant input on.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.ops import fused_leaky_relu, upfirdn2d

EPSILON = 1e-8          # under the square roots of pixel norm and demodulation, as published
GAIN = 2**0.5           # of a leaky ReLU, so that activations keep their variance


def fir_kernel(gain: float = 1.0) -> Tensor:
    """The (4, 4) low-pass filter outer([1, 3, 3, 1]) / 64 times a gain; 4 makes up for a doubling of both axes."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64 * gain


class PixelNorm(nn.Module):
    """Scales every vector to a mean square of one: x / sqrt(mean(x^2) + 1e-8) over dim 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)


class EqualLinear(nn.Module):
    """A linear layer with equalised learning rate: y = x (weight * lr_mul / sqrt(in))^T + bias * lr_mul.

    Args:
        in_dim, out_dim: widths.
        bias: False for none.
        bias_init: value of the bias that the layer computes with; styles start at 1.
        lr_mul: slows learning by this factor without changing the initial output.
        activation: follow with a fused leaky ReLU.
    """

    def __init__(self, in_dim: int, out_dim: int, bias: bool = True, bias_init: float = 0.0,
                 lr_mul: float = 1.0, activation: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_dim,), float(bias_init) / lr_mul)) if bias else None
        self.lr_mul, self.activation = lr_mul, activation

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.lr_mul / math.sqrt(self.weight.shape[1]))                  # fewer numbers than the weights
        bias = self.bias if self.bias is None or self.lr_mul == 1 else self.bias * self.lr_mul
        if self.activation:
            return fused_leaky_relu(F.linear(x, self.weight), bias)              # (..., out)
        return F.linear(x, self.weight, bias)                                    # (..., out)


def modulated_conv2d(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True,
                     up_kernel: Tensor | None = None, gain: float = 1.0) -> Tensor:
    """Convolve with weights scaled by a style, image by image: weight * style, and a factor for every output channel.

    As conv(x, w * s) = conv(x * s, w), the scales may sit on the weights or on the pixels; never is a convolution
    grouped by image. Weights are scaled where one style serves all images and does not learn, which is so past a blend,
    unless the pixels are fewer. Elsewhere pixels are: the gradient of scaled weights would cost another convolution.

    Args:
        x: (B, Cin, H, W).
        weight: (Cout, Cin, k, k), k odd, already equalised (or the style is).
        style: (B, Cin) factor of every input channel; a batch of 1 serves all images.
        demodulate: give the scaled weights of every output channel unit norm (computed in float32).
        up_kernel: (4, 4) filter; if given, the convolution doubles the map and then blurs it with this filter.
        gain: of the result.
    Returns:
        (B, Cout, H, W), or twice that size with `up_kernel`, in the dtype that the convolution ran in. No gradient needs
        its values, so that the caller may go on in place.
    Source: Karras et al. 2020, section 2.2.
    """
    with torch.autocast(x.device.type, enabled=False):
        style = _at_least_float32(style)
        factor = gain * _demodulation(weight, style) if demodulate else style.new_full((1, len(weight)), gain)
    if len(style) == 1 and not style.requires_grad and weight.numel() < x.numel():
        scaled = weight * style[0, :, None, None] * factor[0, :, None, None, None]              # (Cout, Cin, k, k)
        return _convolve(x, scaled.to(weight.dtype), up_kernel)
    if weight.shape[-1] == 1 and up_kernel is None:         # toRGB: so few weights that every image has its own
        scaled = weight[:, :, 0, 0] * style[:, None] * factor[:, :, None]                       # (B or 1, Cout, Cin)
        return _convolve_pixels(x, scaled.to(weight.dtype))
    y = _convolve(x * style.to(x.dtype)[:, :, None, None], weight, up_kernel)    # (B, Cout, H', W')
    return y * factor.to(y.dtype)[:, :, None, None]


def _demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """(B, Cout) factors that give weight (Cout, Cin, k, k) * style (B, Cin) unit norm in every output channel."""
    # Tap by tap: in some memory orders one sum over both small dimensions takes ten times as long.
    taps = [tap.square() for row in _at_least_float32(weight).unbind(3) for tap in row.unbind(2)]
    energy = sum(taps[1:], taps[0])                                                                 # (Cout, Cin)
    return torch.rsqrt(style.square() @ energy.t() + EPSILON)


def _convolve(x: Tensor, weight: Tensor, up_kernel: Tensor | None) -> Tensor:
    """One ordinary convolution for all images, `same`, or doubling the map and blurring it."""
    if up_kernel is None:
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)                # (B, Cout, H, W)
    y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)                  # (B, Cout, 2H + 1, 2W + 1)
    return upfirdn2d(y, up_kernel, pad=(1, 1))                                   # (B, Cout, 2H, 2W)


def _convolve_pixels(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution with weights (B or 1, Cout, Cin) of every image, as one product of matrices."""
    pixels = x.movedim(1, -1).flatten(1, 2)                                      # (B, HW, Cin), a view if channels last
    return (pixels @ weight.mT).unflatten(1, x.shape[2:]).movedim(-1, 1)         # (B, Cout, H, W), channels last


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Fir(nn.Module):
    """Holder of a (4, 4) filter, which is part of the checkpoint."""

    kernel: Tensor

    def __init__(self, gain: float):
        super().__init__()
        self.register_buffer("kernel", fir_kernel(gain))


class ModulatedConv2d(nn.Module):
    """A modulated convolution and the affine layer that turns w into its style.

    `forward` takes the style; `modulation(w)` computes it. See `modulated_conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, style_dim: int,
                 demodulate: bool = True, upsample: bool = False):
        super().__init__()
        # Channels last as the maps, or every convolution would begin by copying its weights; one that doubles the map is
        # a transposed convolution, which sees inputs and outputs exchanged.
        first, second = (in_channels, out_channels) if upsample else (out_channels, in_channels)
        weight = torch.randn(first, second, kernel_size, kernel_size).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter((weight.transpose(0, 1) if upsample else weight)[None])
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1)
        self.blur = Fir(gain=4) if upsample else None
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate = demodulate

    def forward(self, x: Tensor, style: Tensor, gain: float = 1.0) -> Tensor:
        up_kernel = None if self.blur is None else self.blur.kernel
        # The equalised learning rate scales the few numbers of the style instead of all weights.
        return modulated_conv2d(x, self.weight[0], style * self.scale, self.demodulate, up_kernel, gain)


class NoiseStrength(nn.Module):
    """Holder of the factor of the noise maps of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class ActivationBias(nn.Module):
    """Holder of the bias before a leaky ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class ConstantInput(nn.Module):
    """The learned (1, C, 4, 4) start of every picture."""

    def __init__(self, channels: int, size: int = 4):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, size, size))

    def forward(self, batch: int) -> Tensor:
        # Channels last, which every later layer keeps: on a CPU a training step then takes a fifth less time.
        x = self.input.expand(batch, -1, -1, -1)
        return x.contiguous(memory_format=torch.channels_last)                   # (B, C, 4, 4)


class StyledConv(nn.Module):
    """leaky_relu(conv(x, style) + strength * noise + bias) * sqrt(2), the conv 3x3; `upsample` doubles the map."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, upsample: bool = False):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, style_dim, upsample=upsample)
        self.noise = NoiseStrength()
        self.activate = ActivationBias(out_channels)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """x (B, Cin, H, W), style (B, Cin), noise (1 or B, 1, H', W') or None for fresh noise -> (B, Cout, H', W')."""
        if noise is None:
            side = x.shape[-1] * (1 if self.conv.blur is None else 2)
            noise = torch.randn(len(x), 1, side, side, device=x.device, dtype=x.dtype)
        y = self.conv(x, style, GAIN)                                            # (B, Cout, H', W')
        # A positive gain commutes with all that follows, so it costs nothing where the convolution's factors are.
        y = y.add_((self.noise.weight * noise * GAIN).to(y.dtype))               # in place: large maps cost time and memory
        return fused_leaky_relu(y, self.activate.bias * GAIN, scale=1, overwrite=True)      # (B, Cout, H', W')


class ToRGB(nn.Module):
    """Adds the colours of one resolution to the enlarged picture of the one below."""

    def __init__(self, in_channels: int, style_dim: int, upsample: bool = True):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, 3, 1, style_dim, demodulate=False)
        self.upsample = Fir(gain=4) if upsample else None
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        """x (B, Cin, H, W), style (B, Cin), skip (B, 3, H/2, W/2) -> (B, 3, H, W)."""
        rgb = self.conv(x, style) + self.bias                                    # (B, 3, H, W), dtype of the bias
        if skip is None or self.upsample is None:
            return rgb
        return rgb + upfirdn2d(skip, self.upsample.kernel, up=2, pad=(2, 1))     # (B, 3, H, W)
