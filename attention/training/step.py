"""A training step in two halves: `draw`, everything random in it, and `gradients`, which follow from that."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from attention.config import TrainConfig
from attention.devices import autocast
from attention.method.editor import Edit, RegionEditor, Source
from attention.method.losses import TERMS, Edits, Embeddings, Term
from attention.processes import own_rows, world_size
from attention.training import distributed
from attention.training.captions import JOIN, PhraseSampler
from attention.worlds.world import World

# Gradients in half precision are scaled up, or most would round to zero; a step that overflows is done again with less.
GRADIENT_SCALES = {"fp32": (1.0,), "bf16": (1.0,), "fp16": (2.0**12, 2.0**6, 1.0)}
PICTURE_SHARE = {"text": 0.0, "mixed": 0.5, "image": 1.0}       # of the targets that are pictures of other faces


@dataclass(frozen=True)
class Draw:
    """What chance decides of one step: one source, shared by all prompts of all processes, and B prompts of this process.

    Attributes:
        t: the step's time in [0, 1).
        source: the unedited picture.
        target, where: (B, D) CLIP embeddings of the changes and of their places.
        others: (M, D) of further texts, the same in all processes, that no edit of this step is about.
        seeds: of each prompt's augmented view.
    """

    t: float
    source: Source
    target: Tensor
    where: Tensor
    others: Tensor
    seeds: Sequence[int]


@dataclass(frozen=True)
class Learner:
    """What learns, and where.

    Attributes:
        edit: the editor, or the editor wrapped for several processes.
        cast: the precision of the edits' synthesis.
        gather: rows (B, D) of this process -> those of all processes.
    """

    config: TrainConfig
    world: World
    editor: RegionEditor
    edit: nn.Module
    cast: Callable[[], torch.autocast]
    gather: Callable[[Tensor], Tensor] = distributed.gather

    @classmethod
    def of(cls, config: TrainConfig, world: World, editor: RegionEditor) -> "Learner":
        return cls(config, world, editor, distributed.parallel(editor), partial(autocast, config.precision, world.device))

    def weighted(self, joint: bool) -> dict[str, tuple[float, Term]]:
        """Name -> (weight, term) of the joint terms, or of the others, whose weight is not 0."""
        weights = {name: self.config.weight(name) for name, term in TERMS.items() if term.joint == joint}
        return {name: (weight, TERMS[name]) for name, weight in weights.items() if weight > 0}


def draw(learner: Learner, sampler: PhraseSampler, number: int) -> Draw:
    """Draw the step of this number. All randomness comes from the seed and the number, so that a run can go on anywhere."""
    config, random = learner.config, np.random.default_rng([learner.config.seed, number])
    seeds = own_rows(random.integers(2**31, size=config.batch_size * world_size()).tolist())
    target, where, others = conditions(config, learner.world, sampler, random)
    source = learner.editor.source(learner.world.sample_w(1, int(random.integers(2**31))))
    return Draw(number / config.step, source, target, where, others, seeds)


def conditions(config: TrainConfig, world: World, sampler: PhraseSampler,
               random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """What and where of a step, CLIP embeddings (B, D) each: texts, pictures of other faces, or a mix of both; and (M, D)
    of further texts.

    All processes draw the prompts of all of them, and each takes its own: no prompt comes twice.
    """
    count = config.batch_size * world_size()
    sampler.generator.manual_seed(int(random.integers(2**31)))
    whats = sampler.sample(count)
    wheres = [JOIN.join(str(random.choice(world.where_texts(phrase))) for phrase in what.split(JOIN))
              if random.random() < config.where_share else what for what in whats]
    if config.shared_where:
        wheres = [str(random.choice(world.places))] * count
    if config.attention_description is not None:
        wheres = [config.attention_description] * count
    w_seed = int(random.integers(2**31))
    by_picture = torch.from_numpy(own_rows(random.random(count) < PICTURE_SHARE[config.target]))
    with torch.no_grad():
        where = world.clip.encode_text(own_rows(wheres))
        target, further = torch.empty_like(where), where[:0]
        if others := sampler.others(whats, config.negatives):
            further = world.clip.encode_text(others)
        if by_picture.any():
            w = own_rows(world.sample_w(count, w_seed))[by_picture.to(world.device)]
            with autocast(config.precision, world.device):
                image = world.picture(w)
            target[by_picture.to(world.device)] = world.clip.encode_image(image)
        if not by_picture.all():
            texts = [what for what, other in zip(own_rows(whats), by_picture, strict=True) if not other]
            target[~by_picture.to(world.device)] = world.clip.encode_text(texts)
    return target, where, further


def gradients(learner: Learner, draw: Draw) -> dict[str, float]:
    """The gradients of a step, in `.grad` of the editor's parameters; nothing but its draw decides them.

    Returns:
        Every loss by its name, "total", "mask_area" and "gradient_norm".
    """
    editor, config = learner.editor, learner.config
    backward = backward_by_parts if config.micro_batch < len(draw.target) else backward_at_once
    for scale in GRADIENT_SCALES[config.precision]:
        editor.zero_grad(set_to_none=True)
        values = backward(learner, draw, scale)
        found = [parameter.grad for parameter in editor.parameters() if parameter.grad is not None]
        if scale != 1:
            torch._foreach_div_(found, scale)
        norm = float(torch.stack([gradient.norm() for gradient in found]).norm())
        if math.isfinite(norm):
            break
    return {**values, "gradient_norm": norm}


def backward_at_once(learner: Learner, draw: Draw, scale: float = 1.0) -> dict[str, float]:
    """Gradients of the ramped and weighted sum of all terms; returns every value by name."""
    edit = edited(learner.edit, learner, draw)
    seen = {True: gathered(learner, draw, *embed(learner, draw, edit)), False: looked_at(learner, draw, edit)}
    total, values = draw.target.new_zeros(()), {}
    for joint in (True, False):
        for name, (weight, term) in learner.weighted(joint).items():
            value = term.value(seen[joint])
            total, values[name] = total + weight * term.factor(draw.t) * value, float(value.detach())
    (scale * total).backward()
    return {"total": float(total.detach()), **values, "mask_area": mask_area(edit)}


def backward_by_parts(learner: Learner, draw: Draw, scale: float = 1.0) -> dict[str, float]:
    """The same gradients with the memory of --micro_batch prompts, at the price of a second forward pass.

    Joint terms need all embeddings at once, but their gradient reaches the editor through each alone: first the
    embeddings without a graph, then the terms' gradient at them, then part by part the rest of the chain rule.
    """
    size, count = learner.config.micro_batch, len(draw.target)
    rows = [slice(i, i + size) for i in range(0, count, size)]
    with torch.no_grad():
        embeddings = [embed(learner, draw, edited(learner.editor, learner, draw, part), part) for part in rows]
    generated = torch.cat([found for found, _ in embeddings]).requires_grad_()
    before = torch.cat([found for _, found in embeddings if found is not None]) if learner.config.relative else None
    seen, values = gathered(learner, draw, generated, before), {"total": 0.0}
    for name, (weight, term) in learner.weighted(joint=True).items():
        value = term.value(seen)
        (weight * term.factor(draw.t) * value).backward()
        values[name] = float(value.detach())
        values["total"] += weight * term.factor(draw.t) * values[name]
    way = torch.zeros_like(generated) if generated.grad is None else generated.grad          # (B, D)
    for part in rows:
        with nullcontext() if part is rows[-1] else distributed.without_exchange(learner.edit):
            edit = edited(learner.edit, learner, draw, part)
            again, _ = embed(learner, draw, edit, part)
            share, total, found = len(draw.target[part]) / count, again.new_zeros(()), {"mask_area": mask_area(edit)}
            for name, (weight, term) in learner.weighted(joint=False).items():
                value = term.value(looked_at(learner, draw, edit))
                total, found[name] = total + weight * term.factor(draw.t) * value, float(value.detach())
            (scale * (share * total + (again * way[part]).sum())).backward()
        found["total"] = float(total.detach())
        values |= {name: values.get(name, 0.0) + share * value for name, value in found.items()}
    return values


def edited(edit: nn.Module, learner: Learner, draw: Draw, rows: slice = slice(None)) -> Edit:
    """The edits of some prompts by the editor or the wrapped one, in the run's precision."""
    with learner.cast():
        made: Edit = edit(draw.source, draw.target[rows], draw.where[rows], straight_through=True)
    return made


def embed(learner: Learner, draw: Draw, edit: Edit, rows: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
    """CLIP embeddings (B, D) of the world's views of the edits of some prompts and, for --relative, of their source.

    Every prompt has a seed of its own, so its view does not depend on how prompts share parts and processes.
    """
    world, seeds = learner.world, draw.seeds[rows]
    generated = world.clip.encode_image(world.views(edit.image, seeds))
    if not learner.config.relative:
        return generated, None
    with torch.no_grad():           # the source through the very views of its edits, so that only the edit differs
        return generated, world.clip.encode_image(world.views(draw.source.image.expand_as(edit.image), seeds))


def gathered(learner: Learner, draw: Draw, generated: Tensor, before: Tensor | None) -> Embeddings:
    """What joint losses look at: the embeddings of all processes."""
    return Embeddings(learner.gather(generated), torch.cat([learner.gather(draw.target), draw.others]),
                      None if before is None else learner.gather(before), learner.config.temperature)


def looked_at(learner: Learner, draw: Draw, edit: Edit) -> Edits:
    """What the other losses look at."""
    def features() -> tuple[Tensor, Tensor]:
        return learner.world.perceptual(edit.image), learner.world.perceptual(draw.source.image)

    assert edit.place is not None
    editor = learner.editor
    return Edits(edit.place, edit.styles, draw.source, editor.regions.num_regions, editor.mapper.coordinates, features)


def mask_area(edit: Edit) -> float:
    """The share of the picture that passes the gate."""
    assert edit.place is not None
    return float((edit.place.gated > 0).float().mean())
