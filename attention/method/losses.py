"""The losses of the training and their schedules: functions of tensors, each returning a scalar, and the table of them.

A new term is a function here and one entry of TERMS: its weight becomes a flag, its value is logged under its name, and
docs/method.md lists it. The command line reads the table, and must not wait for torch: so torch is imported where it is
used, here alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attention.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from attention.method.editor import Place, Source

TEMPERATURE = 0.01              # of the contrastive loss, published
ALLOWED_REGION_MEAN = 0.7       # published; the gate opens at 0.8, so every open region costs something
SMALLEST_AREA = 1e-4            # ours: keeps the slope of attention_area finite at an empty mask

# Times are shares of the run, t = step / steps in [0, 1).
ATTENTION_FROZEN_UNTIL = 0.15   # published 1.15, that is for ever; this is the value its ramps were made for
PERCEPTUAL_RAMP = (0.05, 0.15)
REGION_RAMP = (0.15, 0.25)      # of region_consistency and attention_budget
WARM_UP = 0.05
COOL_DOWN = 0.25


def clip_contrastive(generated: Tensor, target: Tensor, temperature: float = TEMPERATURE,
                     source: Tensor | None = None) -> Tensor:
    """InfoNCE in one direction: edited image i should be nearer to target i than to every other target.

    Args:
        generated: (N, D) CLIP embeddings of any length, over all prompts of all processes.
        target: (N, D), or (N + M, D) with M further texts that no edit is about (ours).
        source: (1 or N, D) embedding of the unedited picture. If given, a target counts by how much nearer the edit
            is to it than the source was (ours): without it, an edit is pushed away from what its source already was.
    Raises:
        UserError: fewer than two rows, where the loss is zero whatever the image.
    """
    import torch
    import torch.nn.functional as F
    require_two_prompts(len(generated))
    with torch.autocast(generated.device.type, enabled=False):      # 1 / temperature makes half precision visible
        generated, target = F.normalize(generated.float(), dim=1), F.normalize(target.float(), dim=1)
        if source is not None:
            generated = generated - F.normalize(source.float(), dim=1)
        logits = generated @ target.T / temperature                                         # (N, N + M)
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def require_two_prompts(count: int) -> None:
    """Refuse a step of fewer than two prompts in all processes together: over one, InfoNCE is zero whatever the image.

    Raises:
        UserError: says what to change.
    """
    if count < 2:
        raise UserError(f"the contrastive loss compares prompts with each other, but a step has {count} in all processes "
                        "together; it needs at least 2: raise --batch_size or start more processes")


def region_consistency(attention: Tensor, labels: Tensor, num_regions: int) -> Tensor:
    """Mean squared distance of the attention (B, 1, h, w) from its region means.

    The means are detached as published; it saves work and changes nothing, for deviations from a mean sum to zero.
    """
    from attention.method.regions import pool_by_region
    return (attention - pool_by_region(attention, labels, num_regions).detach()).square().mean()


def attention_budget(attention: Tensor, labels: Tensor, num_regions: int,
                     allowed: float = ALLOWED_REGION_MEAN) -> Tensor:
    """How far region means exceed `allowed`: summed over the regions, averaged over the batch.

    Counts regions whatever their size, see `attention_area`. An empty region has mean 0 and costs nothing.
    """
    from attention.method.regions import region_means
    means, _ = region_means(attention, labels, num_regions)                                 # (B, K)
    return (means - allowed).relu().sum(1).mean()


def attention_area(attention: Tensor) -> Tensor:
    """Square root of the share of the picture that lies under attention (B, 1, h, w), averaged over the batch.

    Ours, beside `attention_budget`, where regions differ much in size. Its gradient is that of the area relative to the
    mask's own size: a stray speck costs lipstick more than it costs hair, and a large part may grow to its end.
    """
    return (attention.float().mean(dim=(1, 2, 3)) + SMALLEST_AREA).sqrt().mean()


def attention_variation(attention: Tensor) -> Tensor:
    """Total variation of attention (B, 1, h, w): the mean absolute difference of neighbours, down plus across.

    What keeps an attention per pixel smooth (FEAT, Hou et al. 2022); regions need none.
    """
    attention = attention.float()
    return attention.diff(dim=2).abs().mean() + attention.diff(dim=3).abs().mean()


def perceptual(edited: Tensor, source: Tensor) -> Tensor:
    """Mean squared distance of deep features (B, C, h, w), published: VGG-16 relu2_2. One source may serve B edits."""
    return (edited.float() - source.float()).square().mean()


def style_delta(edited: Sequence[Tensor], styles: Sequence[Tensor]) -> Tensor:
    """L2 norm of each change of style (B, C), averaged over the batch and then over the layers.

    Args:
        edited, styles: the edited layers only; layers past the blend would dilute the mean.
    """
    import torch
    changes = [torch.linalg.vector_norm(after.float() - before.float(), dim=1).mean()
               for after, before in zip(edited, styles, strict=True)]
    return torch.stack(changes).mean()


def learning_rate(t: float, initial: float) -> float:
    """Linear warm-up from 0 over the first 5 %, half a cosine down to 0 over the last 25 % of the run."""
    warm, cool = min(1.0, t / WARM_UP), min(1.0, (1 - t) / COOL_DOWN)
    return initial * warm * (0.5 - 0.5 * math.cos(math.pi * cool))


def ramp(t: float, period: tuple[float, float]) -> float:
    """0 before the period, 1 after it, linear between: PERCEPTUAL_RAMP or REGION_RAMP."""
    start, end = period
    return min(1.0, max(0.0, (t - start) / (end - start)))


@dataclass(frozen=True)
class Edits:
    """What most losses look at: B edits of one source.

    Attributes:
        place, styles: of the edits.
        source: the unedited picture.
        num_regions: K.
        coordinates: styles -> those of the edited layers, as the mapper measures changes; later ones would dilute a mean.
        perceptual: computes (edited, source) features (B, C, h, w) and (1, C, h, w).
    """

    place: Place
    styles: Sequence[Tensor]
    source: Source
    num_regions: int
    coordinates: Callable[[Sequence[Tensor]], list[Tensor]]
    perceptual: Callable[[], tuple[Tensor, Tensor]]

    @property
    def labels(self) -> Tensor:
        """(B, h, w) of regions."""
        return self.source.labels.expand(len(self.place.raw), -1, -1)


@dataclass(frozen=True)
class Embeddings:
    """What joint losses look at: (N, D) CLIP embeddings over all prompts of all processes.

    Attributes:
        target: (N + M, D), M further texts that are nobody's.
        before: of the source, seen as its edits are; None if edits do not count relative to it.
        temperature: of the contrastive loss.
    """

    generated: Tensor
    target: Tensor
    before: Tensor | None
    temperature: float


@dataclass(frozen=True)
class Term:
    """A loss term.

    Attributes:
        flag: the option that weighs it; 0 leaves it out.
        weight: its default.
        help: of the flag.
        value: of `Edits`, or of `Embeddings` if it is joint.
        ramp: the share of the run over which its weight rises from 0; None: it counts from the start.
        joint: it compares all prompts of all processes, so it cannot be computed part by part.
    """

    flag: str
    weight: float
    help: str
    value: Callable[[Any], Tensor]
    ramp: tuple[float, float] | None = None
    joint: bool = False

    def factor(self, t: float) -> float:
        """The share of its weight at time t in [0, 1)."""
        return 1.0 if self.ramp is None else ramp(t, self.ramp)


TERMS: dict[str, Term] = {
    "clip_contrastive": Term(
        "lambda_clip", 1.0, "weight of the contrastive loss",
        lambda seen: clip_contrastive(seen.generated, seen.target, seen.temperature, seen.before), joint=True),
    "region_consistency": Term(
        "lambda_ess", 0.03, "weight of region consistency",
        lambda seen: region_consistency(seen.place.raw, seen.labels, seen.num_regions), REGION_RAMP),
    "attention_budget": Term(
        "lambda_sec", 0.01, "weight of the attention budget (counts regions)",
        lambda seen: attention_budget(seen.place.raw, seen.labels, seen.num_regions), REGION_RAMP),
    "attention_area": Term(
        "lambda_area", 0.0, "weight of the attention's area",
        lambda seen: attention_area(seen.place.attention), REGION_RAMP),
    "attention_variation": Term(
        "lambda_tv", 0.0, "weight of the attention's total variation",
        lambda seen: attention_variation(seen.place.raw), REGION_RAMP),
    "perceptual": Term(
        "lambda_id", 0.1, "weight of the perceptual loss",
        lambda seen: perceptual(*seen.perceptual()), PERCEPTUAL_RAMP),
    "style_delta": Term(
        "lambda_delta", 0.03, "weight of the style change",
        lambda seen: style_delta(seen.coordinates(seen.styles), seen.coordinates(seen.source.styles))),
}
