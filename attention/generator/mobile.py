"""MobileStyleGAN (Belousov 2021, arXiv 2104.04767): a small synthesis network, distilled from StyleGAN2, in wavelets.

Convolutions are depthwise and then pointwise, maps double by an inverse Haar transform, and the picture comes at the end
alone: there is no picture so far, so a blend happens in the activations. Demodulation is folded into the weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.errors import UserError
from attention.generator.base import Blend, LayerSpec, Synthesis, sample_z, synthesise
from attention.generator.layers import PixelNorm
from attention.ops import fused_leaky_relu

COLOURS = 3
ATTENDED_SIDE = 128     # largest map that attention reads: what lies behind is not there yet in an early picture (early.py)


def mobile_layers(widths: Sequence[int], start: int = 4) -> list[LayerSpec]:
    """The style layers in synthesis order: conv at the smallest side, then up, conv, conv for each block, at last rgb.

    Args:
        widths: channels of the maps, the first at `start` px, each further one at twice the side.
    Returns:
        Layers with a row of w+ each; an "up" layer doubles the map and quarters its channels.
    """
    layers = [LayerSpec(0, "conv", start, widths[0], widths[0], 0)]
    for block, width in enumerate(widths[1:]):
        below, side, index = widths[block], start * 2 ** (block + 1), 3 * block + 1
        layers += [LayerSpec(index, "up", side, below, below // 4, index),
                   LayerSpec(index + 1, "conv", side, below // 4, width, index + 1, side <= ATTENDED_SIDE),
                   LayerSpec(index + 2, "conv", side, width, width, index + 2, side <= ATTENDED_SIDE)]
    index = len(layers)
    return [*layers, LayerSpec(index, "rgb", 2 * layers[-1].resolution, widths[-1], COLOURS, index)]


def inverse_haar(x: Tensor) -> Tensor:
    """Halved bands (B, 4C, H, W) -> the map (B, C, 2H, 2W) that they are the Haar transform of; differentiable twice.

    The first C channels are the low bands; then come the three high bands of the first channel, those of the second, ...
    """
    y: Tensor = _InverseHaar.apply(x)
    return y


class _InverseHaar(torch.autograd.Function):
    """Written into its place by four sums, and so is its gradient: torch's own ways pass over the map a dozen times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = _map_like(x, batch, channels // 4, 2 * height, 2 * width)
        low, down, across, both = _bands(x)                                      # (B, C, H, W) each
        for row, (even, odd) in enumerate(((low + down, across + both), (low - down, across - both))):
            y[:, :, row::2, 0::2], y[:, :, row::2, 1::2] = even + odd, even - odd
        return y

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> Tensor:
        x: Tensor = _Haar.apply(y)
        return x


class _Haar(torch.autograd.Function):
    """Its transpose."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        batch, channels, height, width = y.shape
        x = _map_like(y, batch, 4 * channels, height // 2, width // 2)
        left, right = y[..., 0::2], y[..., 1::2]
        (top, bottom), (odd, even) = ((z[:, :, 0::2], z[:, :, 1::2]) for z in (left + right, left - right))
        low, down, across, both = _bands(x)                                      # (B, C, H, W) each
        low[:], down[:], across[:], both[:] = top + bottom, top - bottom, odd + even, odd - even
        return x

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Tensor:
        y: Tensor = _InverseHaar.apply(x)
        return y


def _bands(x: Tensor) -> list[Tensor]:
    """Views (B, C, H, W) of the bands (B, 4C, H, W): low, down, across, both."""
    channels = x.shape[1] // 4
    return [x[:, :channels], *(x[:, channels + band::3] for band in range(3))]


def _map_like(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def with_style(x: Tensor, style: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x (B, C, H, W) and the weights of its convolutions, so that these convolve x * style, style (B or 1, C).

    The few weights are scaled where one style serves all pictures, pixels elsewhere.
    """
    if len(style) == 1:
        return x, *(weight * (style.view(-1, 1, 1, 1) if weight.shape[1] == 1 else style[:, :, None, None])
                    for weight in weights)                                       # a depthwise one has a row a channel
    return x * style[:, :, None, None].to(x.dtype), *weights


class Up(nn.Module):
    """x * style, then the inverse transform."""

    def __init__(self, channels: int, style_dim: int):
        super().__init__()
        self.modulation = nn.Linear(style_dim, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B, C, H, W), style (B, C) -> (B, C / 4, 2H, 2W)."""
        return inverse_haar(x * (0.5 * style)[:, :, None, None].to(x.dtype))


class MobileConv(nn.Module):
    """leaky_relu(conv(x * style) + noise + bias), no gain: conv is a full 3x3, or a depthwise 3x3 and a pointwise 1x1."""

    noise: Tensor

    def __init__(self, in_channels: int, out_channels: int, side: int, style_dim: int, full: bool = False):
        super().__init__()
        self.modulation = nn.Linear(style_dim, in_channels)
        self.depthwise = None if full else nn.Parameter(torch.randn(in_channels, 1, 3, 3) / 3)
        size = 3 if full else 1
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size) * in_channels**-0.5)
        self.register_buffer("noise", torch.zeros(1, 1, side, side))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B, Cin, H, W), style (B, Cin) -> (B, Cout, H, W)."""
        if self.depthwise is None:
            x, weight = with_style(x, style, self.weight)
            y = F.conv2d(x, weight, self.bias, padding=1)                        # (B, Cout, H, W)
        else:
            x, depthwise = with_style(x, style, self.depthwise)
            x = F.conv2d(x, depthwise, padding=1, groups=x.shape[1])            # (B, Cin, H, W)
            y = F.conv2d(x, self.weight, self.bias)                              # (B, Cout, H, W)
        return fused_leaky_relu(y.add_(self.noise.to(y.dtype)), scale=1, overwrite=True)


class ToPicture(nn.Module):
    """x * style to the bands of a picture of twice the side, and their inverse transform."""

    def __init__(self, in_channels: int, style_dim: int):
        super().__init__()
        self.modulation = nn.Linear(style_dim, in_channels)
        self.weight = nn.Parameter(torch.randn(4 * COLOURS, in_channels, 1, 1) * in_channels**-0.5)
        self.bias = nn.Parameter(torch.zeros(4 * COLOURS))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B, C, H, W), style (B, C) -> (B, 3, 2H, 2W)."""
        x, weight = with_style(x, 0.5 * style, self.weight)
        return inverse_haar(F.conv2d(x, weight, 0.5 * self.bias))


class MobileStyleGAN(nn.Module):
    """See the module; keeps `generator.base.Generator`.

    Args:
        widths: channels of the maps at 4, 8, 16, ... px; the picture has twice the last side.
        style_dim: width of z and w.
        mapping_layers: depth of the mapping network.
    """

    mean_w: Tensor | None

    def __init__(self, widths: Sequence[int], style_dim: int = 512, mapping_layers: int = 8):
        super().__init__()
        self.layers = mobile_layers(widths)
        self.resolution, self.style_dim, self.n_latent = self.layers[-1].resolution, style_dim, len(self.layers)
        self.style = nn.ModuleList([PixelNorm(), *(nn.Linear(style_dim, style_dim) for _ in range(mapping_layers))])
        self.input = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.synthesis_layers = nn.ModuleList(_module(layer, style_dim) for layer in self.layers)
        self.to(memory_format=torch.channels_last)
        self.register_buffer("mean_w", None, persistent=False)                   # (style_dim,), see set_mean_w

    @classmethod
    def recognises(cls, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict is of this architecture."""
        return "synthesis_layers.0.modulation.weight" in state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "MobileStyleGAN":
        """Build the generator that a state dict describes and load it, every name and shape checked.

        Raises:
            UserError: names are missing or unknown, or shapes contradict each other; the message lists them.
        """
        try:
            depth = sum(name.startswith("style.") and name.endswith(".weight") for name in state)
            blocks = sum(name.endswith(".depthwise") for name in state) // 2
            widths = [len(state[f"synthesis_layers.{3 * block}.bias"]) for block in range(blocks + 1)]
            style_dim = state["synthesis_layers.0.modulation.weight"].shape[1]
            # Held against what is there before memory of these sizes is asked for.
            wanted = depth * style_dim**2 + sum(layer.in_channels * style_dim + (layer.kind == "conv") * (
                layer.resolution**2 + layer.in_channels * layer.out_channels) for layer in mobile_layers(widths))
            if wanted > (held := sum(tensor.numel() for tensor in state.values())):
                raise ValueError(f"they hold {held:,} numbers, but widths of {widths} need more")
            generator = cls(widths, style_dim, depth)
            generator.load_state_dict(state)
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"these weights are not a whole MobileStyleGAN ({reason})") from error
        return generator

    @property
    def channels(self) -> dict[int, int]:
        """Width of the maps at every side."""
        return {layer.resolution: layer.out_channels for layer in self.layers if layer.kind == "conv"}

    @property
    def constant(self) -> Tensor:
        """(1, C, 4, 4) learned start of every picture."""
        return self.input

    @torch.no_grad()
    def set_mean_w(self, samples: int = 4096, seed: int = 0) -> None:
        """Set `mean_w` (style_dim,), the centre of truncation, to the mean w of seeded random z."""
        self.mean_w = self.mapping(sample_z(samples, self.style_dim, seed).to(self.input.device)).mean(dim=0)

    def mapping(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """z (B, style_dim) -> w (B, style_dim), pulled toward `mean_w` (computed if absent) when truncation is not 1.

        In the precision of the weights whatever autocast says.
        """
        with torch.autocast(z.device.type, enabled=False):
            norm, *linears = modules_of(self.style)
            w: Tensor = norm(z.to(self.input.dtype))
            for linear in linears:
                w = fused_leaky_relu(F.linear(w, linear.weight), linear.bias)    # (B, style_dim)
        if truncation == 1:
            return w
        if self.mean_w is None:
            self.set_mean_w()
        assert self.mean_w is not None
        return self.mean_w + truncation * (w - self.mean_w)

    def styles(self, w: Tensor) -> list[Tensor]:
        """w (B, style_dim) or w+ (B, n_latent, style_dim) -> one style (B, in_channels) per layer."""
        if w.shape[1:] not in ((self.style_dim,), (self.n_latent, self.style_dim)):
            raise ValueError(f"w is {tuple(w.shape)}, but this generator takes (B, {self.style_dim}) or "
                             f"(B, {self.n_latent}, {self.style_dim})")
        w = w.to(self.input.dtype)
        with torch.autocast(w.device.type, enabled=False):
            return [module.modulation(w if w.ndim == 2 else w[:, layer.w_index])
                    for layer, module in zip(self.layers, modules_of(self.synthesis_layers), strict=True)]

    def synthesis(self, styles: Sequence[Tensor], *, blend: Blend | None = None, until: int | None = None,
                  feature_side: int | None = None) -> Synthesis:
        """Run the synthesis network; see `StyleGAN2.synthesis`. The noise is part of the weights."""
        modules = modules_of(self.synthesis_layers)

        def run(layer: LayerSpec, style: Tensor, x: Tensor, picture: Tensor | None) -> Tensor:
            made: Tensor = modules[layer.index](x, style)
            return made

        batch = max((len(style) for style in styles), default=1)
        return synthesise(self.layers, run, self.start(batch), styles, blend, until, feature_side)

    def start(self, batch: int) -> Tensor:
        """(B, C, 4, 4), channels last: the learned start of B pictures."""
        return self.input.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)

    def picture(self, styles: Sequence[Tensor]) -> Tensor:
        """Styles -> (B, 3, R, R) float32, about [-1, 1]; no features are kept."""
        image = self.synthesis(styles, feature_side=0).image
        assert image is not None            # synthesis stops nowhere
        return image.float()


def _module(layer: LayerSpec, style_dim: int) -> nn.Module:
    if layer.kind == "up":
        return Up(layer.in_channels, style_dim)
    if layer.kind == "rgb":
        return ToPicture(layer.in_channels, style_dim)
    return MobileConv(layer.in_channels, layer.out_channels, layer.resolution, style_dim, full=layer.index == 0)


def modules_of(modules: nn.ModuleList) -> list[Any]:
    """The modules of a list, whose attributes mypy cannot know."""
    return list(modules)
