"""What the comparison asks of a method, and what the methods share."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.devices import autocast
from attention.errors import UserError
from attention.worlds.truth import Faces
from attention.worlds.world import World

COMMAND = "python -m attention.baselines.fit"


@runtime_checkable
class Method(Protocol):
    """A way to edit faces by a text.

    Attributes:
        key: on the command line, and the name of its file.
        name: in tables and plots.
        strengths: five, weak to strong, in the method's own unit.
        strength: the default, one of them.
        given_mask: it is told the true part, which nobody who edits a photo can be.
    """

    @property
    def key(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def strengths(self) -> tuple[float, ...]: ...

    @property
    def strength(self) -> float: ...

    @property
    def given_mask(self) -> bool: ...

    def edit(self, w: Tensor, prompt: str, strength: float, faces: Faces) -> tuple[Tensor, Tensor | None]:
        """w (B, style_dim) of `faces` -> edited pictures (B, 3, R, R), about [-1, 1], without a graph, and
        the gated mask (B, 1, h, h) in [0, 1], or None for a method that has none.

        Raises:
            UserError: the method was not trained for this prompt.
        """
        ...


def remake(key: str, world: World) -> str:
    """The command that fits a method of a world anew, in place of the file that is there."""
    return f"{COMMAND} --only {key} --domain {world.name} --overwrite"


def mixed_precision(world: World) -> torch.autocast:
    """The precision in which the world trains: of synthesis, as for ours."""
    return autocast(world.entry.settings.get("precision", "fp32"), world.device)


def extended(world: World, w: Tensor) -> Tensor:
    """w (B, style_dim) -> w+ (B, n_latent, style_dim), the same row for every layer, a copy."""
    return w[:, None].repeat(1, world.generator.n_latent, 1)


def fresh_seeds(random: torch.Generator, count: int) -> list[int]:
    """A seed for the view of each of `count` pictures."""
    return torch.randint(2**31, (count,), generator=random).tolist()


def clip_distance(world: World, images: Tensor, text: Tensor, random: torch.Generator) -> Tensor:
    """StyleCLIP's loss: 1 - cosine of each picture's view (B, 3, R, R) with the text (1 or B, D) -> (B,)."""
    views = world.views(images, fresh_seeds(random, len(images)))
    return 1 - F.cosine_similarity(world.clip.encode_image(views), text)


def known(world: World, metadata: dict[str, str], path: object, key: str) -> None:
    """Refuse a file that was made on another generator.

    Raises:
        UserError: names both generators and the command.
    """
    if metadata.get("generator_hash") != world.generator_hash:
        raise UserError(f"{path} was made on the generator {metadata.get('generator_hash')}, but {world.name} has "
                        f"{world.generator_hash}; make it again with: {remake(key, world)}")
