"""What the comparison asks of a method, and what the methods share."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.domains import Domain
from attention.drawn.faces import FaceParams
from attention.editor import autocast
from attention.errors import UserError

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

    key: str
    name: str
    strengths: tuple[float, ...]
    strength: float
    given_mask: bool

    def edit(self, w: Tensor, prompt: str, strength: float, params: FaceParams) -> tuple[Tensor, Tensor | None]:
        """w (B, style_dim) of the faces `params` -> edited pictures (B, 3, R, R), about [-1, 1], without a graph, and
        the gated mask (B, 1, h, h) in [0, 1], or None for a method that has none.

        Raises:
            UserError: the method was not trained for this prompt.
        """
        ...


def mixed_precision(domain: Domain) -> torch.autocast:
    """The precision in which the domain trains: of synthesis, as for ours."""
    return autocast(domain.entry.settings.get("precision", "fp32"), domain.device)


def extended(domain: Domain, w: Tensor) -> Tensor:
    """w (B, style_dim) -> w+ (B, n_latent, style_dim), the same row for every layer, a copy."""
    return w[:, None].repeat(1, domain.generator.n_latent, 1)


def augmented(domain: Domain, images: Tensor, random: torch.Generator) -> Tensor:
    """The domain's augmented views of pictures (B, 3, R, R), or the pictures where it has none."""
    return images if domain.entry.views is None else domain.entry.views(images, random)


def clip_distance(domain: Domain, images: Tensor, text: Tensor, random: torch.Generator) -> Tensor:
    """StyleCLIP's loss: 1 - cosine of each picture's view (B, 3, R, R) with the text (1 or B, D) -> (B,)."""
    return 1 - F.cosine_similarity(domain.clip.encode_image(augmented(domain, images, random)), text)


def known(domain: Domain, metadata: dict[str, str], path: object, key: str) -> None:
    """Refuse a file that was made on another generator.

    Raises:
        UserError: names both generators and the command.
    """
    if metadata.get("generator_hash") != domain.generator_hash:
        raise UserError(f"{path} was made on the generator {metadata.get('generator_hash')}, but {domain.name} has "
                        f"{domain.generator_hash}; make it again with: {COMMAND} --only {key}")
