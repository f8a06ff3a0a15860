"""StyleGAN2 as three plain functions: z -> mapping -> w -> styles -> synthesis -> picture and features.

Everything that needs to know about layers reads one derived table, `synthesis_layers`; sizes come from the weights.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from attention.errors import UserError
from attention.generator.base import Blend, LayerSpec, Synthesis, conv_layers, sample_z, synthesise
from attention.generator.layers import ConstantInput, EqualLinear, PixelNorm, StyledConv, ToRGB

MOST_BLOCKS = 9         # 2048 px; published are 8


def published_channels(resolution: int, channel_multiplier: int = 2) -> dict[int, int]:
    """Channels at every resolution by the published rule: at most 512, then halved as the side doubles."""
    return {side: 512 if side <= 32 else 16384 // side * channel_multiplier for side in _sides(resolution)}


def synthesis_layers(resolution: int, channels: Mapping[int, int]) -> list[LayerSpec]:
    """The style layers in synthesis order: conv and rgb at 4 px, then conv (doubles the map), conv, rgb at each side.

    Args:
        resolution: side of the picture, a power of two from 8.
        channels: width of the maps at every side from 4 to `resolution`.
    Raises:
        ValueError: the resolution is not a power of two, or a side has no channels.
    Source: Karras et al. 2020, config F; there are 26 layers at 1024 px.
    """
    sides = _sides(resolution)
    if missing := [side for side in sides if side not in channels]:
        raise ValueError(f"channels has no entry for the sides {missing} of a {resolution} px generator")
    plan = [("conv", 4, channels[4], channels[4], 0), ("rgb", 4, channels[4], 3, 1)]
    for block, (below, side) in enumerate(pairwise(sides)):
        width = channels[side]
        plan += [("conv", side, channels[below], width, 2 * block + 1), ("conv", side, width, width, 2 * block + 2),
                 ("rgb", side, width, 3, 2 * block + 3)]                         # rgb shares its row with the next conv
    return [LayerSpec(index, *entry) for index, entry in enumerate(plan)]


def _sides(resolution: int) -> list[int]:
    if resolution < 8 or resolution & (resolution - 1):
        raise ValueError(f"the resolution is {resolution}, but it must be a power of two from 8, such as 128 or 1024")
    return [2**power for power in range(2, resolution.bit_length())]


def mix(w1: Tensor, w2: Tensor, index: int, n_latent: int) -> Tensor:
    """Style mixing: w+ (B, n_latent, D) with w1 (B, D) in the rows before `index` and w2 (B, D) from there on."""
    return torch.cat([w1[:, None].expand(-1, index, -1), w2[:, None].expand(-1, n_latent - index, -1)], dim=1)


class NoiseMaps(nn.Module):
    """The fixed noise of every conv layer: buffers noise_0, noise_1, ..., each (1, 1, h, h)."""

    def __init__(self, layers: Sequence[LayerSpec]):
        super().__init__()
        for number, layer in enumerate(conv_layers(layers)):
            self.register_buffer(f"noise_{number}", torch.randn(1, 1, layer.resolution, layer.resolution))


class StyleGAN2(nn.Module):
    """A StyleGAN2 generator whose state dict has the published names and shapes.

    Args:
        resolution: side of the picture, a power of two from 8.
        style_dim: width of z and w.
        mapping_layers: depth of the mapping network.
        channels: width of the maps at every side from 4; the published rule if None.
        mapping_lr_mul: learning rate factor of the mapping network; not stored in checkpoints.
    Source: Karras et al. 2020, config F.
    """

    mean_w: Tensor | None

    def __init__(self, resolution: int, style_dim: int = 512, mapping_layers: int = 8,
                 channels: Mapping[int, int] | None = None, mapping_lr_mul: float = 0.01):
        super().__init__()
        self.resolution, self.style_dim = resolution, style_dim
        self.layers = synthesis_layers(resolution, channels or published_channels(resolution))
        self.n_latent = self.layers[-1].w_index + 1
        self.style = nn.Sequential(PixelNorm(), *(
            EqualLinear(style_dim, style_dim, lr_mul=mapping_lr_mul, activation=True) for _ in range(mapping_layers)
        ))
        first, first_rgb, *rest = self.layers
        self.input = ConstantInput(first.in_channels)
        self.conv1 = StyledConv(first.in_channels, first.out_channels, style_dim)
        self.to_rgb1 = ToRGB(first_rgb.in_channels, style_dim, upsample=False)
        self.convs = nn.ModuleList(
            StyledConv(layer.in_channels, layer.out_channels, style_dim, upsample=number % 2 == 0)
            for number, layer in enumerate(conv_layers(rest))
        )
        self.to_rgbs = nn.ModuleList(ToRGB(layer.in_channels, style_dim) for layer in rest if layer.kind == "rgb")
        self.noises = NoiseMaps(self.layers)
        self.register_buffer("mean_w", None, persistent=False)                   # (style_dim,), see set_mean_w

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], mapping_lr_mul: float = 0.01) -> "StyleGAN2":
        """Build the generator that a state dict describes and load it, every name and shape checked.

        Args:
            state: tensors under their published names. `noises.*` may be missing: a seeded noise takes their place.
        Raises:
            UserError: names are missing or unknown, or shapes contradict each other; the message lists them.
        """
        # Not on the meta device: its arithmetic loads a compiler, which takes longer than these random numbers.
        generator = cls(mapping_lr_mul=mapping_lr_mul, **_sizes(state))
        expected = generator.state_dict()
        optional = {name for name in expected if name.startswith("noises.") and name not in state}
        problems = [f"missing {name}" for name in expected if name not in state and name not in optional]
        problems += [f"unexpected {name}" for name in state if name not in expected]
        problems += [f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
                     for name, tensor in expected.items() if name in state and state[name].shape != tensor.shape]
        if problems:
            more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise UserError(f"these weights are not a StyleGAN2 generator of {generator.resolution} px: "
                            f"{', '.join(problems[:8])}{more}")
        if optional:
            warnings.warn(f"the weights lack {len(optional)} noise maps (noises.*); seeded noise takes their place, so "
                          f"pictures differ slightly from those of the original program", stacklevel=2)
        noise_seed = torch.Generator().manual_seed(0)
        made = {name: torch.randn(expected[name].shape, generator=noise_seed) for name in sorted(optional)}
        generator.load_state_dict({**state, **made})
        return generator

    @property
    def channels(self) -> dict[int, int]:
        """Width of the maps at every side."""
        return {layer.resolution: layer.out_channels for layer in conv_layers(self.layers)}

    @property
    def constant(self) -> Tensor:
        """(1, C, 4, 4) learned start of every picture."""
        return self.input.input

    @torch.no_grad()
    def set_mean_w(self, samples: int = 4096, seed: int = 0) -> None:
        """Set `mean_w` (style_dim,), the centre of truncation, to the mean w of seeded random z."""
        self.mean_w = self.mapping(sample_z(samples, self.style_dim, seed).to(self.input.input.device)).mean(dim=0)

    def mapping(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """z (B, style_dim) -> w (B, style_dim), pulled toward `mean_w` (computed if absent) when truncation is not 1.

        In the precision of the weights whatever autocast says: w is the space that edits live in, and it is cheap.
        """
        with torch.autocast(z.device.type, enabled=False):
            w = self.style(z.to(self.input.input.dtype))                         # (B, style_dim)
        if truncation == 1:
            return w
        if self.mean_w is None:
            self.set_mean_w()
        assert self.mean_w is not None
        return self.mean_w + truncation * (w - self.mean_w)                      # (B, style_dim)

    def styles(self, w: Tensor) -> list[Tensor]:
        """w (B, style_dim) or w+ (B, n_latent, style_dim) -> one style (B, in_channels) per layer."""
        if w.shape[1:] not in ((self.style_dim,), (self.n_latent, self.style_dim)):
            raise ValueError(f"w is {tuple(w.shape)}, but this generator takes (B, {self.style_dim}) or "
                             f"(B, {self.n_latent}, {self.style_dim})")
        w = w.to(self.input.input.dtype)
        with torch.autocast(w.device.type, enabled=False):
            return [module.conv.modulation(w if w.ndim == 2 else w[:, layer.w_index])
                    for layer, module in zip(self.layers, self._in_order(), strict=True)]

    def synthesis(self, styles: Sequence[Tensor], *, noise: str | Sequence[Tensor] = "const", blend: Blend | None = None,
                  until: int | None = None, feature_side: int | None = None) -> Synthesis:
        """Run the synthesis network, once through all layers; see `base.synthesise`.

        Args:
            noise: "const" for the stored maps, "random" for fresh ones, or one (1 or B, 1, h, h) per conv layer.
        Raises:
            ValueError: wrong number of noise maps, or an unknown word for noise.
        """
        noises, modules = self._noise_maps(noise), self._in_order()

        def run(layer: LayerSpec, style: Tensor, x: Tensor, skip: Tensor | None) -> Tensor:
            made: Tensor = modules[layer.index](x, style, next(noises) if layer.kind == "conv" else skip)
            return made

        start = self.input(max((len(style) for style in styles), default=1))     # (B, C, 4, 4)
        return synthesise(self.layers, run, start, styles, blend, until, feature_side)

    def picture(self, styles: Sequence[Tensor]) -> Tensor:
        """Styles -> (B, 3, R, R) float32, about [-1, 1]; no features are kept."""
        image = self.synthesis(styles, feature_side=0).image
        assert image is not None            # synthesis stops nowhere
        return image.float()

    def _in_order(self) -> list[Any]:
        """The modules in the order of `layers`."""
        blocks = zip(self.convs[0::2], self.convs[1::2], self.to_rgbs, strict=True)
        return [self.conv1, self.to_rgb1, *(module for block in blocks for module in block)]

    def _noise_maps(self, noise: str | Sequence[Tensor]) -> Iterator[Tensor | None]:
        """One noise map per conv layer; None stands for fresh noise."""
        count = len(conv_layers(self.layers))
        if isinstance(noise, str):
            if noise not in ("const", "random"):
                raise ValueError(f'noise is "{noise}", but it must be "const", "random" or a list of maps')
            return iter([getattr(self.noises, f"noise_{i}") if noise == "const" else None for i in range(count)])
        if len(noise) != count:
            raise ValueError(f"got {len(noise)} noise maps for {count} conv layers")
        return iter(noise)


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor arguments of the generator that a state dict describes."""
    depth = sum(name.startswith("style.") and name.endswith(".weight") for name in state)
    blocks = sum(name.startswith("to_rgbs.") and name.endswith(".conv.weight") for name in state)
    needed = ["input.input", "conv1.conv.modulation.weight", *(f"convs.{2 * i}.conv.weight" for i in range(blocks))]
    if blocks == 0 or (missing := [name for name in needed if name not in state]):
        hint = " (published files keep the generator under the key g_ema)" if "g_ema" in state else ""
        absent = "to_rgbs.0.conv.weight" if blocks == 0 else ", ".join(missing)
        raise UserError(f"these weights are not a StyleGAN2 generator: {absent} is missing{hint}; "
                        f"they hold {', '.join(list(state)[:4])}, ...")
    shapes = {name: tuple(state[name].shape) for name in needed}
    axes = {"input.input": 4, "conv1.conv.modulation.weight": 2}
    if flat := [name for name, shape in shapes.items() if len(shape) != axes.get(name, 5)]:
        raise UserError(f"these weights are not a StyleGAN2 generator: {flat[0]} is of the shape {shapes[flat[0]]}")
    if blocks > MOST_BLOCKS:
        raise UserError(f"these weights have {blocks} blocks, but a StyleGAN2 generator has at most {MOST_BLOCKS}, for "
                        f"{4 * 2**MOST_BLOCKS} px")
    channels = {4: shapes["input.input"][1]}
    channels |= {8 * 2**block: shapes[f"convs.{2 * block}.conv.weight"][1] for block in range(blocks)}
    sizes: dict[str, Any] = dict(resolution=4 * 2**blocks, style_dim=shapes["conv1.conv.modulation.weight"][1],
                                 mapping_layers=depth, channels=channels)
    # Held against what is there before memory of these sizes is asked for.
    wanted = sum(layer.in_channels * ((9 if layer.kind == "conv" else 1) * layer.out_channels + sizes["style_dim"])
                 for layer in synthesis_layers(sizes["resolution"], channels)) + depth * sizes["style_dim"]**2
    if wanted > (held := sum(tensor.numel() for tensor in state.values())):
        raise UserError(f"these weights are not a whole StyleGAN2 generator: they hold {held:,} numbers, but their sizes, "
                        f"{sizes}, need more than {wanted:,}")
    return sizes
