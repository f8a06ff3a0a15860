"""StyleCLIP in w+: latent optimisation for one picture, and mappers for one prompt each (Patashnik et al. 2021)."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attention.baselines.base import clip_distance, extended, known, mixed_precision, remake
from attention.errors import UserError
from attention.files.safetensors import consistent, read_safetensors
from attention.fits import fit
from attention.generator.layers import EqualLinear, PixelNorm
from attention.worlds.truth import Faces
from attention.worlds.world import World

GROUPS = (4, 8)         # rows of w+ where medium and fine begin, published
DEPTH = 4               # layers of a group's mapper, published
MAPPERS_KIND = "where2edit latent mappers"
STEP_SIZE = 0.1         # share of a mapper's output that is added in training, published


@dataclass
class LatentOptimisation:
    """Moves each face's w+ by Adam until CLIP sees the text: (1 - cosine) + |w - w0|^2 / strength.

    The strength is the inverse of the paper's weight of the distance. All faces of a call are moved together, each by its
    own loss.
    """

    world: World
    steps: int = 60
    rate: float = 0.05
    key = "optimisation"
    name = "StyleCLIP optimisation"
    strengths = (10.0, 30.0, 60.0, 120.0, 300.0)
    strength = 120.0
    given_mask = False

    @classmethod
    def load(cls, world: World, folder: Path) -> "LatentOptimisation":
        return cls(world)

    def edit(self, w: Tensor, prompt: str, strength: float, faces: Faces | None = None) -> tuple[Tensor, None]:
        with torch.no_grad():
            text = self.world.clip.encode_text([prompt])
        moved = self.optimise(extended(self.world, w), text, strength)
        with torch.no_grad():
            return self.world.picture(moved), None

    @torch.enable_grad()
    def optimise(self, start: Tensor, text: Tensor, strength: float, note: Callable[[float], None] | None = None) -> Tensor:
        """w+ (B, n_latent, style_dim) -> where it came to; `note` is told the mean loss of every step."""
        if strength == 0:
            return start
        moved = start.clone().requires_grad_()
        random = torch.Generator().manual_seed(0)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            with mixed_precision(self.world):
                image = self.world.picture(moved)
            distance = clip_distance(self.world, image, text, random)                      # (B,)
            return (distance + (moved - start).square().sum(dim=(1, 2)) / strength).sum(), {}

        descend([moved], self.rate, loss, self.steps, note and (lambda value: note(value / len(start))))
        return moved.detach()


def descend(parameters: Iterable[Tensor], rate: float, loss: Callable[[int], tuple[Tensor, dict[str, float]]], steps: int,
            note: Callable[[float], None] | None) -> None:
    """`fit` by Adam: the rate goes up over the first twentieth of the steps and down over the last quarter, never to 0."""
    optimiser = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / (0.05 * steps), max(1, steps - step) / (0.25 * steps)))
    fit(optimiser, loss, steps, "StyleCLIP", schedule, after=note and (lambda step, value: note(value)), quiet=True)


class LatentMapper(nn.Module):
    """How w+ should move for one prompt: three mappers, for the coarse, the medium and the fine rows."""

    def __init__(self, style_dim: int):
        super().__init__()
        self.groups = nn.ModuleList(
            nn.Sequential(PixelNorm(), *(EqualLinear(style_dim, style_dim, activation=True) for _ in range(DEPTH)))
            for _ in range(len(GROUPS) + 1))

    def forward(self, w: Tensor) -> Tensor:
        """w+ (B, n_latent, style_dim) -> its change, of the same shape; each group sees only its own rows."""
        parts = w.tensor_split(GROUPS, dim=1)
        return torch.cat([group(part.flatten(0, 1)).view_as(part) for group, part in zip(self.groups, parts, strict=True)],
                         dim=1)


@dataclass
class LatentMappers:
    """w+ plus strength times what the prompt's own mapper says; the paper trains and uses 0.1."""

    world: World
    mappers: Mapping[str, LatentMapper]
    key = "mapper"
    name = "StyleCLIP mapper"
    strengths = (0.025, 0.05, 0.1, 0.15, 0.2)
    strength = STEP_SIZE
    given_mask = False

    @classmethod
    def load(cls, world: World, folder: Path) -> "LatentMappers":
        """Read mapper.safetensors.

        Raises:
            UserError: the file is missing, cut short, of another kind or of another generator.
        """
        path = Path(folder) / f"{cls.key}.safetensors"
        tensors, metadata = read_safetensors(path, MAPPERS_KIND, remake(cls.key, world))
        known(world, metadata, path, cls.key)
        mappers = {}
        with consistent(path, remake(cls.key, world)):
            for number, prompt in enumerate(json.loads(metadata["prompts"])):
                mapper = LatentMapper(world.generator.style_dim).requires_grad_(False)
                mapper.load_state_dict({name.removeprefix(f"{number}."): value for name, value in tensors.items()
                                        if name.startswith(f"{number}.")})
                mappers[prompt] = mapper.to(world.device)
        return cls(world, mappers)

    @torch.no_grad()
    def edit(self, w: Tensor, prompt: str, strength: float, faces: Faces | None = None) -> tuple[Tensor, None]:
        if prompt not in self.mappers:
            raise UserError(f"the prompt is {prompt!r}, but a latent mapper knows one prompt each, and there are some for "
                            f"{', '.join(self.mappers)}; train one with: {remake(self.key, self.world)}")
        start = extended(self.world, w)
        return self.world.picture(start + strength * self.mappers[prompt](start)), None


def train_mapper(world: World, prompt: str, steps: int, seed: int = 0, batch_size: int = 8, rate: float = 0.01,
                 distance_weight: float = 4.0, note: Callable[[float], None] | None = None) -> LatentMapper:
    """Train the mapper of one prompt: (1 - cosine) + distance_weight * mean squared change of w+.

    Args:
        note: is told the loss of every step.
    """
    torch.manual_seed(seed)
    mapper = LatentMapper(world.generator.style_dim).to(world.device)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        text = world.clip.encode_text([prompt])
    faces = world.sample_w(steps * batch_size, seed).split(batch_size)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        start = extended(world, faces[step])
        change = STEP_SIZE * mapper(start)                                                  # (B, n_latent, style_dim)
        with mixed_precision(world):
            image = world.picture(start + change)
        return clip_distance(world, image, text, random).mean() + distance_weight * change.square().mean(), {}

    descend(mapper.parameters(), rate, loss, steps, note)
    return mapper.requires_grad_(False)
