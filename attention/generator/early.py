"""A generator that stops early: its picture is read from the activations before its last layers by a small head of ours.

The same latents, styles and first layers as the whole generator, so that an editor made for one serves the other; training
and evaluation need no more, for a fraction of the time.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.generator.base import Blend, LayerSpec, Synthesis, synthesise
from attention.generator.mobile import COLOURS, MobileStyleGAN, modules_of, with_style


class EarlyHead(nn.Module):
    """Activations of one layer to the picture of their side, which whole synthesis makes much later.

    Args:
        layer: 0-based index of the layer that it reads.
        channels: of that layer.
        style_dim: width of w.
        width: channels inside.
    """

    def __init__(self, layer: int, channels: int, style_dim: int, width: int = 64):
        super().__init__()
        self.config = dict(layer=layer, channels=channels, style_dim=style_dim, width=width)
        self.layer, self.channels, self.style_dim = layer, channels, style_dim
        self.modulation = nn.Linear(style_dim, channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.ones_(self.modulation.bias)
        self.reduce = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"depthwise": nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                           "pointwise": nn.Conv2d(width, width, 1)}) for _ in range(2))
        self.colours = nn.Conv2d(width, COLOURS, 1)
        self.straight = nn.Conv2d(channels, COLOURS, 1, bias=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B, C, S, S), style (B, C) -> picture (B, 3, S, S)."""
        x, reduce, straight = with_style(x, style, self.reduce.weight, self.straight.weight)
        y = F.leaky_relu_(F.conv2d(x, reduce, self.reduce.bias), 0.2)            # (B, width, S, S)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            y = y + F.leaky_relu_(block["pointwise"](block["depthwise"](y)), 0.2)
        picture: Tensor = self.colours(y) + F.conv2d(x, straight)                # (B, 3, S, S)
        return picture


class EarlyGenerator(nn.Module):
    """The first layers of a generator and a head; keeps `generator.base.Generator`.

    Args:
        generator: whole; its modules are shared, not copied.
        head: its style comes from the row of w+ of the first layer that is left out.
    """

    def __init__(self, generator: MobileStyleGAN, head: EarlyHead):
        super().__init__()
        self.whole, self.head = generator, head
        read = generator.layers[head.layer]
        if (read.out_channels, generator.style_dim) != (head.channels, head.style_dim):
            raise ValueError(f"the head reads {head.channels} channels, but layer {head.layer} has {read.out_channels}")
        last = head.layer + 1
        self.resolution, self.style_dim, self.n_latent = read.resolution, generator.style_dim, generator.n_latent
        self.layers = [*generator.layers[:last], LayerSpec(last, "rgb", self.resolution, head.channels, COLOURS, last)]

    @property
    def mean_w(self) -> Tensor | None:
        return self.whole.mean_w

    @mean_w.setter
    def mean_w(self, value: Tensor | None) -> None:
        self.whole.mean_w = value

    @property
    def channels(self) -> dict[int, int]:
        """Width of the maps at every side."""
        return {layer.resolution: layer.out_channels for layer in self.layers if layer.kind == "conv"}

    @property
    def constant(self) -> Tensor:
        """(1, C, 4, 4) learned start of every picture."""
        return self.whole.constant

    def mapping(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """See `MobileStyleGAN.mapping`."""
        return self.whole.mapping(z, truncation)

    def styles(self, w: Tensor) -> list[Tensor]:
        """w (B, style_dim) or w+ (B, n_latent, style_dim) -> one style (B, in_channels) per layer that is run."""
        whole, row = self.whole.styles(w), w if w.ndim == 2 else w[:, self.head.layer + 1]
        with torch.autocast(w.device.type, enabled=False):
            return [*whole[:self.head.layer + 1], self.head.modulation(row.to(self.constant.dtype))]

    def synthesis(self, styles: Sequence[Tensor], *, blend: Blend | None = None, until: int | None = None,
                  feature_side: int | None = None) -> Synthesis:
        """Run the first layers and the head; see `StyleGAN2.synthesis`."""
        modules = [*modules_of(self.whole.synthesis_layers)[:self.head.layer + 1], self.head]

        def run(layer: LayerSpec, style: Tensor, x: Tensor, picture: Tensor | None) -> Tensor:
            made: Tensor = modules[layer.index](x, style)
            return made

        batch = max((len(style) for style in styles), default=1)
        return synthesise(self.layers, run, self.whole.start(batch), styles, blend, until, feature_side)

    def picture(self, styles: Sequence[Tensor]) -> Tensor:
        """Styles -> (B, 3, R, R) float32, about [-1, 1]; no features are kept."""
        image = self.synthesis(styles, feature_side=0).image
        assert image is not None            # synthesis stops nowhere
        return image.float()
