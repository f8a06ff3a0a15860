"""What the method asks of a generator: a table of its layers, latents to styles to pictures, and blending between.

A new architecture is a file here with a class that keeps `Generator`, and an entry of GENERATORS in files/generator.py; its
`layers` say what may be blended, read by the attention and edited.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.errors import UserError

EVEN = 5        # width of the window of `even_bands`


@dataclass(frozen=True)
class LayerSpec:
    """One style layer. Its style has `in_channels` numbers."""

    index: int              # position in synthesis order, from 0
    kind: str               # "conv"; "up" that only doubles a map; "rgb" that adds to the picture or makes it
    resolution: int         # side of its output
    in_channels: int
    out_channels: int
    w_index: int            # its row of w+
    attended: bool = True   # whether the attention reads its output, if it is a conv layer


def conv_layers(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """The layers that hold activations: those that a blend may use, and of which attention reads those that it may."""
    return [layer for layer in layers if layer.kind == "conv"]


def blended_layers(layers: Sequence[LayerSpec], index: int) -> list[int]:
    """Where a blend at conv layer `index` (0-based) acts: on its activations, and on the picture that its block adds to.

    Returns:
        The index itself and, in a generator whose picture grows block by block, that of the rgb layer at the end of the
        block.
    Raises:
        UserError: `index` is not a conv layer; the message lists those that are.
    """
    if not 0 <= index < len(layers) or layers[index].kind != "conv":
        found = f"is of kind {layers[index].kind} (not to be blended)" if 0 <= index < len(layers) else "does not exist"
        numbers = ", ".join(str(layer.index + 1) for layer in conv_layers(layers))
        raise UserError(f"layer {index + 1} (counted from 1) {found}; choose one of the conv layers {numbers}")
    side = layers[index].resolution
    return [index, *(layer.index for layer in layers[index:] if layer.kind == "rgb" and layer.resolution == side)]


def edited_layers(layers: Sequence[LayerSpec], blend: int) -> list[LayerSpec]:
    """The layers whose styles an edit changes: all up to conv layer `blend` (0-based), and the rgb if it comes next.

    A layer between the two would run after the blend, so an edit of its style would leak out of the mask. At 1024 px, 14
    of StyleGAN2's 26 layers for the published layer 13, which is index 12.
    """
    last = max(index for index in blended_layers(layers, blend) if index <= blend + 1)
    return list(layers[:last + 1])


def nearest(x: Tensor, side: int) -> Tensor:
    """Resize square maps (B, C, h, h) to a side, nearest; a map that has it is returned as it is."""
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="nearest")


def window_means(maps: Tensor, window: int) -> Tensor:
    """Mean of maps (B, C, H, W) in a window round each pixel, an odd number wide; beyond an edge lies what is at it.

    Summed up in float32, or in float64 if the maps have it.
    """
    sums = F.pad(maps.to(torch.promote_types(maps.dtype, torch.float32)), [window // 2] * 4, mode="replicate")
    for axis in (-1, -2):
        sums = _running_sums(sums, window, axis)
    return (sums / window ** 2).to(maps.dtype)


def _running_sums(maps: Tensor, count: int, axis: int) -> Tensor:
    """Sums of so many neighbours along an axis, which gets count - 1 shorter.

    By the binary digits of the count: sums of 2, 4, 8 are made of each other, where a pooling layer adds up every window
    anew.
    """
    if count == 1:
        return maps
    halves, odd = _running_sums(maps, count // 2, axis), count % 2
    length, step = maps.shape[axis] - count + 1, count // 2
    sums = halves.narrow(axis, 0, length) + halves.narrow(axis, step, length)
    return sums + maps.narrow(axis, count - 1, length) if odd else sums


def even_bands(layers: Sequence[LayerSpec], index: int, x: Tensor, source: Tensor) -> Tensor:
    """What an edit makes of a map, without the mesh that it may draw where an inverse Haar transform comes next.

    The high bands say how pixels differ from their neighbours, up and down by turns: what they gain on the whole is a mesh
    of two pixels, which no picture has. So the local mean of their change is left out. Other generators have no bands.

    Args:
        x: (B, C, h, h) the output of layer `index`.
        source: (B or 1, C, h, h) of the unedited picture.
    """
    if index + 1 >= len(layers) or layers[index + 1].kind != "up":
        return x
    low = layers[index + 1].out_channels
    change = (x - source.to(x.dtype))[:, low:]                                   # (B, C - low, h, h)
    even = x.clone()        # in the layout of x: in another, later convolutions round otherwise outside the mask as well
    even[:, low:] -= window_means(change, EVEN)
    return even


class Synthesis(NamedTuple):
    """What synthesis makes: the picture, and every layer's output in order (an rgb entry is the picture so far)."""

    image: Tensor | None            # (B, 3, R, R), about [-1, 1]; None if stopped before the last layer
    features: list[Tensor]          # entry l is (B, C_l, h, h), or (B, 3, h, h) for an rgb layer


@dataclass(frozen=True)
class Blend:
    """Keeps a source outside a mask: mask * edited + (1 - mask) * source, at one layer and in the picture it feeds.

    Args:
        layer: 0-based index of a conv layer.
        mask: (B or 1, 1, h, w) in [0, 1]; resized to each map, nearest.
        source_features: the source's `Synthesis.features`, batch B or 1.
        even: without the mesh of `even_bands`, where the map is doubled next.
    """

    layer: int
    mask: Tensor
    source_features: Sequence[Tensor]
    even: bool = False

    def apply(self, index: int, x: Tensor) -> Tensor:
        """Blend x (B, C, h, w), the output of layer `index`, with the source's output of that layer."""
        mask = nearest(self.mask, x.shape[-1]).to(x.dtype)
        # lerp is exact at both ends, so a mask of zeros gives the source and a mask of ones the edit, to the last bit.
        return torch.lerp(self.source_features[index].to(x.dtype), x, mask)


def synthesise(layers: Sequence[LayerSpec], run: Callable[[LayerSpec, Tensor, Tensor, Tensor | None], Tensor],
               start: Tensor, styles: Sequence[Tensor], blend: Blend | None, until: int | None,
               feature_side: int | None) -> Synthesis:
    """The loop of every synthesis network, once through all layers.

    Args:
        run: (layer, its style, the map before it, the picture so far) -> the layer's output.
        start: (B, C, h, h) map before the first layer.
        styles: one (B, in_channels) per layer; entries of batch 1 serve all pictures, later than `until` unused.
        blend: keep a source outside a mask, see `Blend`.
        until: stop after the layer of this 0-based index; the image is then None (the last index stops nothing).
        feature_side: shrink larger features to this side (nearest), 0 keeps none; at 1024 px all take 0.5 GiB a
            picture in float32, of which those up to 64 px are a fiftieth.
    Returns:
        Synthesis(image, features); with a blend, features are the blended ones.
    Raises:
        UserError: the blend's layer is not a conv layer.
        ValueError: wrong number of styles, or no layer `until`.
    """
    last = len(layers) - 1 if until is None else until
    if not 0 <= last < len(layers):
        raise ValueError(f"until is {until}, but this generator has the layers 0 to {len(layers) - 1}")
    if not last < len(styles) <= len(layers):
        raise ValueError(f"got {len(styles)} styles for the {last + 1} layers to run")
    blended = [] if blend is None else blended_layers(layers, blend.layer)
    x, picture, features = start, None, []
    for layer, style in zip(layers[:last + 1], styles, strict=False):
        out = run(layer, style, x, picture)                                      # (B, C_l, h, h)
        if blend is not None and layer.index in blended:
            if blend.even:
                out = even_bands(layers, layer.index, out, blend.source_features[layer.index])
            out = blend.apply(layer.index, out)
        x, picture = (x, out) if layer.kind == "rgb" else (out, picture)
        if feature_side != 0:
            features.append(nearest(out, min(feature_side or out.shape[-1], out.shape[-1])))
    return Synthesis(picture if last == len(layers) - 1 else None, features)


class Generator(Protocol):
    """z -> mapping -> w -> styles -> synthesis -> picture, and every layer's features on the way.

    Attributes:
        layers: in synthesis order.
        resolution: side R of the picture.
        style_dim: width of z and w.
        n_latent: rows of w+.
        channels: width of the maps at every side.
        constant: (1, C, h, h) learned start of every picture.
        mean_w: (style_dim,) centre of truncation, once it is known.
    """

    layers: list[LayerSpec]
    resolution: int
    style_dim: int
    n_latent: int
    mean_w: Tensor | None

    def to(self, device: torch.device) -> "Generator": ...

    def eval(self) -> "Generator": ...

    def requires_grad_(self, requires_grad: bool = True) -> "Generator": ...

    @property
    def channels(self) -> Mapping[int, int]: ...

    @property
    def constant(self) -> Tensor: ...

    def mapping(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """z (B, style_dim) -> w (B, style_dim), pulled toward `mean_w` when truncation is not 1."""
        ...

    def styles(self, w: Tensor) -> list[Tensor]:
        """w (B, style_dim) or w+ (B, n_latent, style_dim) -> one style (B, in_channels) per layer."""
        ...

    def synthesis(self, styles: Sequence[Tensor], *, blend: Blend | None = None, until: int | None = None,
                  feature_side: int | None = None) -> Synthesis:
        """Styles -> picture and features; see `StyleGAN2.synthesis`."""
        ...

    def picture(self, styles: Sequence[Tensor]) -> Tensor:
        """Styles -> (B, 3, R, R) float32, about [-1, 1]; no features are kept."""
        ...


def sample_z(count: int, style_dim: int, seed: int) -> Tensor:
    """(count, style_dim) seeded normal latents on the CPU; the same for every device that they go to."""
    return torch.randn(count, style_dim, generator=torch.Generator().manual_seed(seed))


LEAST_DEVIATION = 1e-6      # of a direction in which nothing differs, so that it can be divided by


def principal(style: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """How latents or styles of faces (N, C) differ: mean (C,), the first principal directions (count, C), and the standard
    deviations along them."""
    style = style.detach().float()
    mean = style.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((style - mean).T))                        # ascending
    deviations = values[-count:].clamp(min=0).sqrt().clamp(min=LEAST_DEVIATION)
    return mean, vectors[:, -count:].T.contiguous(), deviations
