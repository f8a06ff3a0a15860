"""Training: one loop, one step, the same functions on every domain."""

import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from attention import distributed, losses
from attention.captions import JOIN, PhraseSampler, read_phrases
from attention.checkpoints import write_atomically
from attention.config import TrainConfig
from attention.domains import Domain
from attention.editor import Edit, RegionEditor, Source, autocast
from attention.regions import RegionClusters
from attention.run_log import RunLog, check_finite, plot_metrics
from attention.runs import build_editor, forget_later, load_regions, plain, resume, save_checkpoint
from attention.sheets import edit_sheet, evenly

SHEET_FACES, SHEET_PROMPTS = 4, 16
LOG_EVERY = 10
# Gradients in half precision are scaled up, or most would round to zero; a step that overflows is done again with less.
GRADIENT_SCALES = {"fp32": (1.0,), "bf16": (1.0,), "fp16": (2.0**12, 2.0**6, 1.0)}
PICTURE_SHARE = {"text": 0.0, "mixed": 0.5, "image": 1.0}       # of the targets that are pictures of other faces


def train(config: TrainConfig, domain: Domain, perceptual_features: Callable[[Tensor], Tensor],
          regions: RegionClusters | None = None) -> Path:
    """Train mapper and attention and write a run folder; in several processes, the first one writes.

    Args:
        config: resolved options.
        domain: loaded world.
        perceptual_features: (B, 3, R, R) image in [-1, 1] -> features that the perceptual loss compares.
        regions: None takes those that the run asks for, see `load_regions`.
    Returns:
        The run folder: regions, editor and checkpoints (runs.py), metrics and plot (run_log.py), samples/.
    """
    with distributed.group(domain.device):
        return _train(config, domain, perceptual_features, regions or load_regions(config, domain))


def _train(config: TrainConfig, domain: Domain, perceptual_features: Callable[[Tensor], Tensor],
           regions: RegionClusters) -> Path:
    losses.require_two_prompts(config.batch_size * distributed.world_size())
    first = distributed.rank() == 0
    regions = regions.to(domain.device)
    editor = build_editor(config, domain, regions)
    optimiser = torch.optim.Adam([{"params": editor.mapper.parameters()}, {"params": editor.attention.parameters()}])
    sampler = PhraseSampler(_phrases(config, domain), config.seed)
    start, checkpoint = resume(config, domain, editor, optimiser)
    if first:
        forget_later(config.run, start)
        regions.save(config.run / "regions.safetensors")
        log = RunLog(config.run, plain(config), start)
    bar = tqdm(range(start, config.step), desc="training", initial=start, total=config.step, disable=not first)
    done, edit, totals = start, None, []
    with stop_requests() as came:
        try:
            for step in bar:
                learns = step / config.step >= config.attention_start
                if edit is None or learns != editor.attention.initial.requires_grad:
                    editor.attention.requires_grad_(learns)
                    edit = distributed.parallel(editor)
                values = find_gradients(config, domain, editor, edit, step, sampler, perceptual_features)
                check_finite(step, values, checkpoint)
                optimiser.param_groups[0]["lr"] = optimiser.param_groups[1]["lr"] = losses.learning_rate(
                    step / config.step, config.lr)
                optimiser.step()
                done = step + 1
                totals.append(values["total"])
                if first and (step % LOG_EVERY == 0 or done == config.step):
                    log.scalars(step, values)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
                stop = distributed.any_process(bool(came)) or done == config.step
                if first and (stop or done % config.save_intermediate_image_every == 0):
                    checkpoint = save_checkpoint(config, domain, editor, optimiser, done, float(np.mean(totals)))
                    totals.clear()
                    _show(config, domain, editor, log, done)
                if stop:
                    break
        finally:
            if first:
                log.close()
    if first and done > start:
        plot_metrics(config.run)
    if signal.SIGINT in came:
        raise KeyboardInterrupt
    if done < config.step and first:
        print(f"asked to stop: {checkpoint} holds {done} steps; go on with --resume auto", file=sys.stderr)
    return config.run


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list of the signals that came: SIGTERM and SIGUSR1, which cluster schedulers send before they kill, and Ctrl-C.

    The step under way ends first, so that what is saved is whole; a second Ctrl-C does not wait.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and came and not distributed.launched():     # torchrun repeats what it is sent
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(config: TrainConfig, domain: Domain, editor: RegionEditor, log: RunLog, done: int) -> None:
    """Write the sample sheet after `done` steps, as a file and to TensorBoard."""
    sheet = sample_sheet(domain, editor, config.seed + 1_000_003, config.description)
    write_atomically(config.run / "samples" / f"{done:06d}.png", lambda path: sheet.save(path, format="PNG"))
    log.picture(done - 1, "samples", sheet)


def _phrases(config: TrainConfig, domain: Domain) -> Iterable[str]:
    """What prompts are made of: the captions' phrases where a corpus is given, else the domain's own prompts."""
    return domain.entry.prompts if config.captions is None else read_phrases(config.captions, domain.clip.fits)


@dataclass(frozen=True)
class Step:
    """All that the gradients of one training step depend on: one source, shared by B prompts in each process.

    Attributes:
        edit: the editor, or the editor wrapped for several processes.
        target, where: (B, D) CLIP embeddings of the changes and of their places.
        seeds: of each prompt's augmented view.
        ramps: factor of every loss term, see ramps_at.
        perceptual_features: (B, 3, R, R) image in [-1, 1] -> features that the perceptual loss compares.
        scale: factor of the gradients, see GRADIENT_SCALES.
    """

    config: TrainConfig
    domain: Domain
    editor: RegionEditor
    edit: nn.Module
    source: Source
    target: Tensor
    where: Tensor
    seeds: Sequence[int]
    ramps: Mapping[str, float]
    perceptual_features: Callable[[Tensor], Tensor]
    scale: float = 1.0

    def autocast(self) -> torch.autocast:
        return autocast(self.config.precision, self.domain.device)


def find_gradients(config: TrainConfig, domain: Domain, editor: RegionEditor, edit: nn.Module, number: int,
                   sampler: PhraseSampler, perceptual_features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """The gradients of the step of this number, in `.grad` of the editor's parameters. Returns every loss by its name.

    All randomness comes from the seed and the number of the step.
    """
    random = np.random.default_rng([config.seed, number])
    count = config.batch_size * distributed.world_size()
    seeds = distributed.own_rows(random.integers(2**31, size=count).tolist())
    target, where = conditions(config, domain, sampler, random)
    source = editor.source(domain.sample_w(1, int(random.integers(2**31))))
    step = Step(config, domain, editor, edit, source, target, where, seeds, ramps_at(number / config.step),
                perceptual_features)
    backward = backward_by_parts if (config.micro_batch or len(target)) < len(target) else backward_at_once
    for scale in GRADIENT_SCALES[config.precision]:
        editor.zero_grad(set_to_none=True)
        values = backward(replace(step, scale=scale))
        gradients = [parameter.grad for parameter in editor.parameters() if parameter.grad is not None]
        if scale != 1:
            torch._foreach_div_(gradients, scale)
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        if math.isfinite(norm):
            break
    return {**values, "gradient_norm": norm}


def ramps_at(t: float) -> dict[str, float]:
    """Factor of every loss term at time t in [0, 1)."""
    region = losses.ramp(t, losses.REGION_RAMP)
    return {"clip_contrastive": 1.0, "style_delta": 1.0, "perceptual": losses.ramp(t, losses.PERCEPTUAL_RAMP),
            "region_consistency": region, "attention_budget": region, "attention_area": region,
            "attention_variation": region}


def backward_at_once(step: Step) -> dict[str, float]:
    """Gradients of the ramped and weighted sum of all terms; returns every value by name."""
    with step.autocast():
        edited = step.edit(step.source, step.target, step.where, straight_through=True)
    generated, before = embed(step, edited, step.seeds)
    terms = {"clip_contrastive": (step.config.lambda_clip, contrastive(step, generated, before)),
             **loss_terms(step, edited)}
    total = sum(step.ramps[name] * weight * term for name, (weight, term) in terms.items())
    (step.scale * total).backward()
    return {"total": float(total.detach()), **{name: float(term.detach()) for name, (_, term) in terms.items()},
            "mask_area": float((edited.gated > 0).float().mean())}


def backward_by_parts(step: Step) -> dict[str, float]:
    """The same gradients with the memory of --micro_batch prompts, at the price of a second forward pass.

    The contrastive term needs all embeddings at once, but its gradient reaches the editor through each alone: first the
    embeddings without a graph, then the term's gradient at them, then part by part the rest of the chain rule.
    """
    size, count = step.config.micro_batch, len(step.target)
    parts = [slice(i, i + size) for i in range(0, count, size)]
    embeddings = []
    with torch.no_grad():
        for part in parts:
            with step.autocast():
                edited = step.editor(step.source, step.target[part], step.where[part])
            embeddings.append(embed(step, edited, step.seeds[part]))
    generated = torch.cat([rows for rows, _ in embeddings]).requires_grad_()
    before = torch.cat([rows for _, rows in embeddings]) if step.config.relative else None
    term = contrastive(step, generated, before)
    (step.config.lambda_clip * term).backward()
    values = {"total": step.config.lambda_clip * float(term.detach()), "clip_contrastive": float(term.detach())}
    for part in parts:
        with nullcontext() if part is parts[-1] else distributed.without_exchange(step.edit):
            with step.autocast():
                edited = step.edit(step.source, step.target[part], step.where[part], straight_through=True)
            again, _ = embed(step, edited, step.seeds[part])
            terms, share = loss_terms(step, edited), len(step.target[part]) / count
            total = sum((step.ramps[name] * weight * term for name, (weight, term) in terms.items()),
                        term.new_zeros(()))
            (step.scale * (share * total + (again * generated.grad[part]).sum())).backward()
        found = {"total": total, **{name: term for name, (_, term) in terms.items()},
                 "mask_area": (edited.gated > 0).float().mean()}
        values |= {name: values.get(name, 0.0) + share * float(value.detach()) for name, value in found.items()}
    return values


def loss_terms(step: Step, edit: Edit) -> dict[str, tuple[float, Tensor]]:
    """Name -> (weight, value) of every term but the contrastive one whose weight is not 0 (method.md section 2)."""
    config, source, features = step.config, step.source, step.perceptual_features
    labels = source.labels.expand(len(edit.image), -1, -1)
    regions, count = step.editor.regions.num_regions, len(step.editor.edited)
    terms = {
        "region_consistency": (config.lambda_ess, lambda: losses.region_consistency(edit.raw, labels, regions)),
        "attention_budget": (config.lambda_sec, lambda: losses.attention_budget(edit.raw, labels, regions)),
        "attention_area": (config.lambda_area, lambda: losses.attention_area(edit.attention)),
        "attention_variation": (config.lambda_tv, lambda: losses.attention_variation(edit.raw)),
        "perceptual": (config.lambda_id, lambda: losses.perceptual(features(edit.image), features(source.image))),
        "style_delta": (config.lambda_delta, lambda: losses.style_delta(edit.styles[:count], source.styles[:count])),
    }
    return {name: (weight, value()) for name, (weight, value) in terms.items() if weight > 0}


def embed(step: Step, edit: Edit, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """CLIP embeddings (B, D) of the domain's augmented views of the edits and, for --relative, of their source.

    Every prompt has a seed of its own, so its view does not depend on how prompts share parts and processes.
    """
    domain = step.domain

    def views(images: Tensor) -> Tensor:
        if domain.entry.views is None:
            return images
        return torch.cat([domain.entry.views(image, torch.Generator(domain.device).manual_seed(seed))
                          for image, seed in zip(images.split(1), seeds, strict=True)])

    generated = domain.clip.encode_image(views(edit.image))
    if not step.config.relative:
        return generated, None
    with torch.no_grad():           # the source through the very views of its edits, so that only the edit differs
        return generated, domain.clip.encode_image(views(step.source.image.expand_as(edit.image)))


def contrastive(step: Step, generated: Tensor, before: Tensor | None) -> Tensor:
    """The contrastive loss over the prompts of all processes."""
    return losses.clip_contrastive(distributed.gather(generated), distributed.gather(step.target), step.config.temperature,
                                   None if before is None else distributed.gather(before))


def conditions(config: TrainConfig, domain: Domain, sampler: PhraseSampler,
               random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What and where of a step, CLIP embeddings (B, D) each: texts, pictures of other faces, or a mix of both.

    All processes draw the prompts of all of them, and each takes its own: no prompt comes twice.
    """
    count = config.batch_size * distributed.world_size()
    sampler.generator.manual_seed(int(random.integers(2**31)))
    whats = sampler.sample(count)
    wheres = [JOIN.join(str(random.choice(domain.entry.where_texts(phrase))) for phrase in what.split(JOIN))
              if random.random() < config.where_share else what for what in whats]
    if config.shared_where:
        wheres = [str(random.choice(domain.entry.places or domain.entry.prompts))] * count
    w_seed = int(random.integers(2**31))
    by_picture = torch.from_numpy(distributed.own_rows(random.random(count) < PICTURE_SHARE[config.target]))
    with torch.no_grad():
        where = domain.clip.encode_text(distributed.own_rows(wheres))
        target = torch.empty_like(where)
        if by_picture.any():
            w = distributed.own_rows(domain.sample_w(count, w_seed))[by_picture.to(domain.device)]
            with autocast(config.precision, domain.device):
                image = domain.generator.synthesis(domain.generator.styles(w), feature_side=0).image
            target[by_picture.to(domain.device)] = domain.clip.encode_image(image.float())
        if not by_picture.all():
            texts = [what for what, other in zip(distributed.own_rows(whats), by_picture, strict=True) if not other]
            target[~by_picture.to(domain.device)] = domain.clip.encode_text(texts)
    return target, where


def sample_sheet(domain: Domain, editor: RegionEditor, seed: int, description: str | None = None) -> Image.Image:
    """A few unseen faces under `description` and some of the domain's prompts: source, then edit and mask of each."""
    prompts = [*filter(None, [description]), *evenly(domain.entry.prompts, SHEET_PROMPTS)]
    with torch.no_grad():
        source = editor.source(domain.sample_w(SHEET_FACES, seed))
        text = domain.clip.encode_text(prompts)
        edits = [editor(source, row.expand(SHEET_FACES, -1), row.expand(SHEET_FACES, -1)) for row in text]
    return edit_sheet(source.image, prompts, [edit.image for edit in edits], [edit.mask for edit in edits])
