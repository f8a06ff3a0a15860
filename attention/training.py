"""Training: one loop, one step, the same functions on every domain."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from attention import distributed, losses
from attention.captions import JOIN, PhraseSampler, read_captions, split_phrases
from attention.checkpoints import (
    atomic_torch_save,
    read_safetensors,
    read_torch_file,
    write_atomically,
    write_safetensors,
)
from attention.cluster_pickle import regions_from_pickle
from attention.config import TrainConfig
from attention.domains import Domain, load_domain
from attention.editor import Edit, RegionEditor, Source, style_spread
from attention.errors import UserError
from attention.generator import edited_layers
from attention.regions import UNKNOWN, RegionClusters
from attention.sheets import edit_sheet, evenly

SPREAD_FACES, SHEET_FACES, SHEET_PROMPTS = 512, 4, 16
LOG_EVERY = 10
PICTURE_SHARE = {"text": 0.0, "mixed": 0.5, "image": 1.0}       # of the targets that are pictures of other faces


def build_editor(config: TrainConfig, domain: Domain, regions: RegionClusters) -> RegionEditor:
    """An untrained editor of a run's configuration, its weights seeded; --max_change 0 leaves styles unbounded."""
    layer, cluster_layer = config.attention_layer - 1, (config.cluster_layer or config.attention_layer) - 1
    regions.check(layer=cluster_layer, generator_hash=domain.generator_hash,
                  channels=domain.generator.layers[cluster_layer].out_channels, num_regions=config.cluster_num)
    count = len(edited_layers(domain.generator.layers, layer))
    spread = style_spread(domain.generator, domain.sample_w(SPREAD_FACES, config.seed), count)
    torch.manual_seed(config.seed)
    editor = RegionEditor(domain.generator, regions, layer, domain.clip.dim, max_change=config.max_change,
                          spread=spread if config.max_change else None)
    return editor.to(domain.device)


def train(config: TrainConfig, domain: Domain, perceptual_features: Callable[[Tensor], Tensor]) -> Path:
    """Train mapper and attention and write a run folder; in several processes, the first one writes.

    Args:
        config: resolved options.
        domain: loaded world.
        perceptual_features: (B, 3, R, R) image in [-1, 1] -> features that the perceptual loss compares.
    Returns:
        The run folder: config.json, regions.safetensors, editor.safetensors, state.pt, metrics.jsonl, samples/.
    """
    with distributed.group(domain.device):
        return _train(config, domain, perceptual_features)


def _train(config: TrainConfig, domain: Domain, perceptual_features: Callable[[Tensor], Tensor]) -> Path:
    folder, first = config.run, distributed.rank() == 0
    regions = load_regions(config, domain).to(domain.device)
    editor = build_editor(config, domain, regions)
    optimiser = torch.optim.Adam([{"params": editor.mapper.parameters()}, {"params": editor.attention.parameters()}],
                                 lr=config.lr)
    sampler = PhraseSampler(_phrases(config, domain), config.seed)
    start = _resume(config, editor, optimiser) if config.resume else 0
    if first:
        _write_json(folder / "config.json", _plain(config))
        regions.save(folder / "regions.safetensors")
    log = (folder / "metrics.jsonl" if first else Path(os.devnull)).open("a" if start else "w")
    bar = tqdm(range(start, config.step), desc="training", initial=start, total=config.step, disable=not first)
    done, edit = start, None
    try:
        for step in bar:
            learns = step / config.step >= config.attention_start
            if edit is None or learns != editor.attention.initial.requires_grad:
                editor.attention.requires_grad_(learns)
                edit = distributed.parallel(editor)
            values = train_step(config, domain, editor, edit, optimiser, step, sampler, perceptual_features)
            done = step + 1
            if step % LOG_EVERY == 0 or done == config.step:
                log.write(json.dumps({"step": step, **values}) + "\n")
                log.flush()
                bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
            if first and done % config.save_intermediate_image_every == 0:
                _save(config, domain, editor, optimiser, done)
    finally:
        # Also on Ctrl-C: the step that was under way has not touched the weights, or has finished doing so.
        log.close()
        if first and done > start:
            _save(config, domain, editor, optimiser, done)
    return folder


def load_regions(config: TrainConfig, domain: Domain) -> RegionClusters:
    """The regions that a run asks for: of its folder, or of --cluster_path, which may be the authors' pickle."""
    path = config.cluster_path or config.run / "regions.safetensors"
    if path.suffix == ".pkl":
        return regions_from_pickle(path, (config.cluster_layer or config.attention_layer) - 1, domain.name)
    return RegionClusters.load(path)


def _phrases(config: TrainConfig, domain: Domain) -> list[str]:
    """What prompts are made of: the captions' phrases where a corpus is given, else the domain's own prompts."""
    if config.captions is None:
        return list(domain.entry.prompts)
    return [phrase for caption in read_captions(config.captions) for phrase in split_phrases(caption)]


def train_step(config: TrainConfig, domain: Domain, editor: RegionEditor, edit: nn.Module,
               optimiser: torch.optim.Optimizer, step: int, sampler: PhraseSampler,
               perceptual_features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """One step: one source, shared by B prompts in each process. All randomness comes from the seed and the step.

    `edit` is the editor, or the editor wrapped for several processes.
    """
    random = np.random.default_rng([config.seed, step])
    noise_seed = int(random.integers(2**31)) + distributed.rank()
    noise = torch.Generator(device=domain.device).manual_seed(noise_seed)
    target, where = conditions(config, domain, sampler, random)                   # (B, D) each
    with torch.autocast(domain.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        source = editor.source(domain.sample_w(1, int(random.integers(2**31))))
        edited = edit(source, target, where, straight_through=True)
    terms = loss_terms(config, domain, editor, source, edited, target, noise, perceptual_features)
    return update(config, optimiser, step / config.step, terms) | {"mask_area": float((edited.gated > 0).float().mean())}


def update(config: TrainConfig, optimiser: torch.optim.Optimizer, t: float, terms: dict) -> dict[str, float]:
    """Sum the weighted terms under their ramps at time t in [0, 1), and take one step; returns every value by name."""
    for group in optimiser.param_groups:
        group["lr"] = losses.learning_rate(t, config.lr)
    ramps = {"perceptual": losses.ramp(t, losses.PERCEPTUAL_RAMP), "style_delta": 1.0, "clip_contrastive": 1.0}
    total = sum(ramps.get(name, losses.ramp(t, losses.REGION_RAMP)) * weight * term
                for name, (weight, term) in terms.items())
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    optimiser.step()
    return {"total": float(total.detach()), **{name: float(term.detach()) for name, (_, term) in terms.items()}}


def loss_terms(config: TrainConfig, domain: Domain, editor: RegionEditor, source: Source, edit: Edit, target: Tensor,
               noise: torch.Generator, perceptual_features: Callable[[Tensor], Tensor]) -> dict:
    """Name -> (weight, value) of every loss term whose weight is not 0 (method.md section 2)."""
    labels = source.labels.expand(len(edit.image), -1, -1)
    regions, count = editor.regions.num_regions, len(editor.edited)
    terms = {
        "clip_contrastive": (config.lambda_clip, lambda: _contrastive(config, domain, source, edit, target, noise)),
        "region_consistency": (config.lambda_ess, lambda: losses.region_consistency(edit.raw, labels, regions)),
        "attention_budget": (config.lambda_sec, lambda: losses.attention_budget(edit.raw, labels, regions)),
        "attention_area": (config.lambda_area, lambda: losses.attention_area(edit.attention)),
        "perceptual": (config.lambda_id, lambda: losses.perceptual(perceptual_features(edit.image),
                                                                   perceptual_features(source.image))),
        "style_delta": (config.lambda_delta, lambda: losses.style_delta(edit.styles[:count], source.styles[:count])),
    }
    return {name: (weight, value()) for name, (weight, value) in terms.items() if weight > 0}


def _contrastive(config: TrainConfig, domain: Domain, source: Source, edit: Edit, target: Tensor,
                 noise: torch.Generator) -> Tensor:
    def views(images: Tensor) -> Tensor:
        return images if domain.entry.views is None else domain.entry.views(images, noise)

    state = noise.get_state()
    generated = distributed.gather(domain.clip.encode_image(views(edit.image)))
    target = distributed.gather(target)
    if not config.relative:
        return losses.clip_contrastive(generated, target, config.temperature)
    noise.set_state(state)          # the source through the very views of its edits, so that only the edit differs
    with torch.no_grad():
        before = domain.clip.encode_image(views(source.image.expand_as(edit.image)))
    return losses.clip_contrastive(generated, target, config.temperature, distributed.gather(before))


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
        wheres = [str(random.choice(domain.entry.where_texts(whats[0])))] * count
    w_seed, by_picture = int(random.integers(2**31)), random.random(count) < PICTURE_SHARE[config.target]
    with torch.no_grad():
        where = domain.clip.encode_text(distributed.own_rows(wheres))
        target = domain.clip.encode_text(distributed.own_rows(whats))
        if by_picture.any():
            styles = domain.generator.styles(distributed.own_rows(domain.sample_w(count, w_seed)))
            pictures = domain.clip.encode_image(domain.generator.synthesis(styles).image)
            chosen = torch.from_numpy(distributed.own_rows(by_picture)).to(domain.device)
            target = torch.where(chosen[:, None], pictures, target)
    return target, where


def sample_sheet(domain: Domain, editor: RegionEditor, seed: int, description: str | None = None) -> Image.Image:
    """A few unseen faces under `description` and some of the domain's prompts: source, then edit and mask of each."""
    prompts = [*filter(None, [description]), *evenly(domain.entry.prompts, SHEET_PROMPTS)]
    with torch.no_grad():
        source = editor.source(domain.sample_w(SHEET_FACES, seed))
        text = domain.clip.encode_text(prompts)
        edits = [editor(source, row.expand(SHEET_FACES, -1), row.expand(SHEET_FACES, -1)) for row in text]
    return edit_sheet(source.image, prompts, [edit.image for edit in edits], [edit.mask for edit in edits])


def save_editor(editor: RegionEditor, config: TrainConfig, domain: Domain, path: Path) -> None:
    """Write mapper and attention with all that is needed to rebuild them, as safetensors."""
    metadata = {"kind": "where2edit editor", "config": json.dumps(_plain(config)),
                "generator_hash": domain.generator_hash, "regions": json.dumps(editor.regions.metadata)}
    write_safetensors(path, editor.state_dict(), metadata)


def load_editor(folder: Path, device: str = "auto", trust: bool = False) -> tuple[RegionEditor, Domain, TrainConfig]:
    """Rebuild the editor of a run folder, frozen, with its domain and configuration.

    `trust` runs a CLIP archive that is not OpenAI's; it is the caller's word, never the folder's.

    Raises:
        UserError: the folder has no whole editor, or its generator is not the one that the editor was trained on.
    """
    path = Path(folder) / "editor.safetensors"
    tensors, metadata = read_safetensors(path, "where2edit editor", "python -m attention.run_attention")
    given = json.loads(metadata["config"])
    given = {name: Path(value) if name in ("run", "ckpt", "cluster_path", "captions") and value else value
             for name, value in given.items()}
    config = TrainConfig(**given)
    domain = load_domain(config.domain, config.ckpt, device, config.clip_model, trust)
    if metadata["generator_hash"] not in (UNKNOWN, domain.generator_hash):
        raise UserError(f"{path} was trained on the generator {metadata['generator_hash']}, but {config.domain} has "
                        f"{domain.generator_hash}; train it again: python -m attention.run_attention")
    regions = RegionClusters.from_metadata(tensors["regions.centroids"], json.loads(metadata["regions"]), path)
    editor = build_editor(config, domain, regions.to(domain.device))
    editor.load_state_dict(tensors)
    return editor.requires_grad_(False).eval(), domain, config


def _save(config: TrainConfig, domain: Domain, editor: RegionEditor, optimiser: torch.optim.Optimizer, step: int) -> None:
    save_editor(editor, config, domain, config.run / "editor.safetensors")
    atomic_torch_save({"editor": editor.state_dict(), "optimiser": optimiser.state_dict(), "step": step,
                       "config": _plain(config)}, config.run / "state.pt")
    sheet = sample_sheet(domain, editor, config.seed + 1_000_003, config.description)
    write_atomically(config.run / "samples" / f"{step:06d}.png", lambda path: sheet.save(path, format="PNG"))


def _resume(config: TrainConfig, editor: RegionEditor, optimiser: torch.optim.Optimizer) -> int:
    path = config.run / "state.pt"
    state = read_torch_file(path)
    if missing := {"editor", "optimiser", "step", "config"} - set(state):
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: it is not a training state; start without --resume")
    ignored = {"run", "resume", "device", "cluster_path", "save_intermediate_image_every", "description", "trust", "gpu_id",
               "multiprocessing_distributed", "use_cluster", "work_in_stylespace"}
    wanted, found = _plain(config), state["config"]
    differs = [f"--{name} {found.get(name)} there, {value} here" for name, value in wanted.items()
               if name not in ignored and found.get(name) != value]
    if differs:
        raise UserError(f"{path} was made with other options: {'; '.join(differs)}; use the same, or another --run")
    editor.load_state_dict(state["editor"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


def _plain(config) -> dict:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def _write_json(path: Path, content: dict) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1)))
