"""StyleCLIP's global directions: which style channels move a picture the way that a text points (Patashnik et al. 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.baselines.base import known, mixed_precision, remake
from attention.errors import UserError
from attention.files.safetensors import read_safetensors
from attention.generator import LayerSpec, conv_layers
from attention.method.editor import style_spread
from attention.worlds.truth import Faces
from attention.worlds.world import World

KIND = "where2edit channel directions"
STEP = 5.0              # standard deviations that a channel is moved either way, published
SPREAD_FACES, SPREAD_SEED = 512, 0
NEUTRAL = "a face"
PAIRS_AT_ONCE = 16


def channels(world: World) -> Iterator[tuple[int, int]]:
    """(layer, channel) of every style channel of the convolutions, in order; rgb layers stay out, as published."""
    layers = conv_layers(world.generator.layers)
    return ((layer.index, channel) for layer in layers for channel in range(layer.in_channels))


@torch.no_grad()
def layer_directions(world: World, layer: LayerSpec, faces: int, seed: int = 0) -> Tensor:
    """How each style channel of a layer moves a picture's CLIP embedding: (channels, D) unit rows.

    Every channel is moved STEP standard deviations up and down on each face; a row is the mean over faces of the
    differences between the two unit embeddings, each brought to length one before and after the mean.
    """
    styles, spread = world.generator.styles(world.sample_w(faces, seed)), _spread(world)[layer.index]
    return torch.stack([_direction(world, styles, layer.index, channel, STEP * change, seed)
                        for channel, change in enumerate(spread.tolist())])


def _direction(world: World, styles: list[Tensor], layer: int, channel: int, change: float, seed: int) -> Tensor:
    """(D,) unit direction of one channel over all faces."""
    total = world.generator.constant.new_zeros(world.clip.dim)
    for first in range(0, len(styles[0]), PAIRS_AT_ONCE):
        rows = [style[first:first + PAIRS_AT_ONCE] for style in styles]
        ends = []
        for sign in (1, -1):
            moved = rows[layer].clone()
            moved[:, channel] += sign * change
            with mixed_precision(world):
                image = world.generator.picture([*rows[:layer], moved, *rows[layer + 1:]])
            # Both ends through the same view, so that only the channel differs.
            view = world.views(image, range(seed + first, seed + first + len(image)))
            ends.append(F.normalize(world.clip.encode_image(view), dim=1))                 # (B, D)
        total = total + F.normalize(ends[0] - ends[1], dim=1).sum(0)                        # (D,)
    return F.normalize(total, dim=0)


def _spread(world: World) -> list[Tensor]:
    return style_spread(world.generator, world.sample_w(SPREAD_FACES, SPREAD_SEED), len(world.generator.layers))


@dataclass
class GlobalDirections:
    """Moves every relevant style channel: s + strength * spread * relevance / largest relevance.

    The relevance of a channel is the cosine of its direction with that of the text (prompt against a neutral text);
    below `threshold` it counts as none. The strength is the paper's alpha, the threshold its beta.
    """

    world: World
    directions: Tensor              # (channels, D)
    threshold: float = 0.15
    key = "directions"
    name = "StyleCLIP directions"
    strengths = (1.0, 2.0, 3.0, 4.0, 6.0)
    strength = 3.0
    given_mask = False
    spread: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.spread = _spread(self.world)

    @classmethod
    def load(cls, world: World, folder: Path) -> "GlobalDirections":
        """Read directions.safetensors.

        Raises:
            UserError: the file is missing, cut short, of another kind or of another generator.
        """
        path = Path(folder) / f"{cls.key}.safetensors"
        tensors, metadata = read_safetensors(path, KIND, remake(cls.key, world))
        known(world, metadata, path, cls.key)
        # Early pictures, which directions are measured in, end before the last layers; those are not moved.
        ends = list(accumulate(layer.in_channels for layer in conv_layers(world.generator.layers)))
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if found not in [{"directions": (end, world.clip.dim)} for end in ends]:
            raise UserError(f"{path} holds {found}, but directions of shape {(ends[-1], world.clip.dim)} were expected; "
                            f"make it again with: {remake(cls.key, world)}")
        known_ones = tensors["directions"].float().to(world.device)
        return cls(world, F.pad(known_ones, (0, 0, 0, ends[-1] - len(known_ones))))

    @torch.no_grad()
    def changes(self, prompt: str) -> list[Tensor]:
        """(C_l,) change of every layer's style at strength 1; zeros for rgb layers."""
        texts = F.normalize(self.world.clip.encode_text([prompt, NEUTRAL]), dim=1)
        relevance = self.directions @ F.normalize(texts[0] - texts[1], dim=0)               # (channels,)
        relevance = torch.where(relevance.abs() >= self.threshold, relevance, 0)
        relevance = relevance / relevance.abs().max().clamp(min=1e-12)
        result = [torch.zeros_like(spread) for spread in self.spread]
        for value, (layer, channel) in zip(relevance.tolist(), channels(self.world), strict=True):
            result[layer][channel] = value * self.spread[layer][channel]
        return result

    @torch.no_grad()
    def edit(self, w: Tensor, prompt: str, strength: float, faces: Faces | None = None) -> tuple[Tensor, None]:
        generator = self.world.generator
        styles = [style + strength * change
                  for style, change in zip(generator.styles(w), self.changes(prompt), strict=True)]
        return generator.picture(styles), None
