"""A run folder: the editor and the checkpoints that training leaves there, and how they are read again."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from attention.config import TrainConfig
from attention.errors import UserError
from attention.files.cluster_pickle import regions_from_pickle
from attention.files.disk import write_atomically
from attention.files.regions import load_regions, regions_from_metadata
from attention.files.safetensors import read_safetensors, write_safetensors
from attention.files.torch_files import atomic_torch_save, read_torch_file
from attention.generator import edited_layers
from attention.method.editor import RegionEditor, style_spread
from attention.method.losses import REGION_RAMP
from attention.method.regions import UNKNOWN, RegionClusters
from attention.processes import rank, restarts, world_size
from attention.worlds.registry import configured, load_world
from attention.worlds.world import World

SPREAD_FACES = 512      # whose styles say how much each channel varies
KEPT = 3                # newest checkpoints that stay, beside the best
# Options that may differ when a run goes on: where and how it runs, not what it computes.
FREE = {"run", "resume", "device", "cluster_path", "save_intermediate_image_every", "description", "trust", "gpu_id",
        "multiprocessing_distributed", "use_cluster", "work_in_stylespace", "micro_batch", "precision", "compile"}


def regions_of(config: TrainConfig, world: World) -> RegionClusters:
    """The regions that a run asks for: of its folder, or of --cluster_path, which may be the authors' pickle."""
    if config.cluster_path.suffix == ".pkl":
        return regions_from_pickle(config.cluster_path, config.cluster_layer - 1, world.name)
    return load_regions(config.cluster_path)


def build_editor(config: TrainConfig, world: World, regions: RegionClusters) -> RegionEditor:
    """An untrained editor of a run's configuration, its weights seeded; --max_change 0 leaves styles unbounded."""
    layer, cluster_layer = config.attention_layer - 1, config.cluster_layer - 1
    regions.check(layer=cluster_layer, generator_hash=world.generator_hash,
                  channels=world.generator.layers[cluster_layer].out_channels, num_regions=config.cluster_num)
    count = len(edited_layers(world.generator.layers, layer))
    spread = style_spread(world.generator, world.sample_w(SPREAD_FACES, config.seed), count)
    torch.manual_seed(config.seed)
    editor = RegionEditor(world.generator, regions, layer, world.clip.dim, config.mapper, max_change=config.max_change,
                          spread=spread if config.max_change else None)
    return editor.to(world.device)


def save_editor(editor: RegionEditor, config: TrainConfig, world: World, path: Path) -> None:
    """Write mapper and attention with all that is needed to rebuild them, as safetensors."""
    said = {name: value for name, value in plain(config).items() if name not in FREE}     # the same edits, the same file
    metadata = {"kind": "where2edit editor", "config": json.dumps(said),
                "generator_hash": world.generator_hash, "regions": json.dumps(editor.regions.metadata)}
    write_safetensors(path, editor.state_dict(), metadata)


def load_run(folder: Path, device: str = "auto", trust: bool = False) -> tuple[RegionEditor, World, TrainConfig]:
    """Rebuild the editor of a run folder, frozen, with its world and configuration.

    `trust` runs a CLIP archive that is not OpenAI's; it is the caller's word, never the folder's.

    Raises:
        UserError: the folder has no whole editor, or its generator is not the one that the editor was trained on.
    """
    path = Path(folder) / "editor.safetensors"
    tensors, metadata = read_safetensors(path, "where2edit editor", "python -m attention.run_attention")
    try:
        config = configured(TrainConfig, **json.loads(metadata["config"]))
        known_hash, regions_metadata = metadata["generator_hash"], json.loads(metadata["regions"])
        centroids = tensors["regions.centroids"]
    except (TypeError, KeyError, ValueError, AttributeError) as error:           # a UserError is a ValueError
        raise UserError(f"{path} was made by another version of this program ({error}); train it again: "
                        "python -m attention.run_attention") from error
    world = load_world(config.domain, config.ckpt, device, config.clip_model, trust)
    if known_hash not in (UNKNOWN, world.generator_hash):
        raise UserError(f"{path} was trained on the generator {known_hash}, but {config.domain} has "
                        f"{world.generator_hash}; train it again: python -m attention.run_attention")
    regions = regions_from_metadata(centroids, regions_metadata, path)
    editor = build_editor(config, world, regions.to(world.device))
    try:
        editor.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the generator of {config.domain} ({' '.join(str(error).split())[:200]}); "
                        "give the generator that it was trained on, or train it again") from error
    return editor.requires_grad_(False).eval(), world, config


def save_checkpoint(config: TrainConfig, world: World, editor: RegionEditor, optimiser: torch.optim.Optimizer, step: int,
                    score: float) -> Path:
    """Write RUN/editor.safetensors and RUN/checkpoints/STEP.pt; the newest KEPT stay, and the best as best.pt.

    A checkpoint holds all that the next step depends on. Every random number comes from the seed and the number of the
    step, in each process, so there are no random states to keep.

    Args:
        step: steps done.
        score: the mean total loss since the last checkpoint; the lowest is the best, once all losses have their weight.
    """
    save_editor(editor, config, world, config.run / "editor.safetensors")
    folder = config.run / "checkpoints"
    path, best = folder / f"{step:06d}.pt", folder / "best.pt"
    atomic_torch_save({"editor": editor.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "score": score,
                       "config": plain(config), "domain": world.name, "generator_hash": world.generator_hash,
                       "regions": editor.regions.metadata, "processes": world_size()}, path)
    before = read_torch_file(best) if best.exists() else {"score": math.inf, "step": 0}
    # While the ramps rise, later totals contain more: they are no comparison.
    if score < before["score"] or before["step"] <= REGION_RAMP[1] * config.step:
        write_atomically(best, lambda temporary: shutil.copyfile(path, temporary))
    for old in newest(folder)[KEPT:]:
        old.unlink()
    return path


def newest(folder: Path) -> list[Path]:
    """The numbered checkpoints of a folder, the newest first."""
    return sorted(folder.glob("[0-9]*.pt"), key=lambda path: int(path.stem), reverse=True)


def forget_later(run: Path, step: int) -> None:
    """Remove the checkpoints of an earlier run beyond `step`, and what a killed process left half-written."""
    folder = run / "checkpoints"
    later = [path for path in newest(folder) if int(path.stem) > step]
    best = folder / "best.pt"
    if best.exists() and (step == 0 or read_torch_file(best)["step"] > step):
        later.append(best)
    for path in [*later, *run.glob(".*.partial"), *folder.glob(".*.partial")]:
        path.unlink()


def resume(config: TrainConfig, world: World, editor: RegionEditor,
           optimiser: torch.optim.Optimizer) -> tuple[int, Path | None]:
    """Go on where --resume says: `auto` takes the newest whole checkpoint of the run, else it names the file.

    A process that torchrun started again after a failure goes on by itself.

    Returns:
        Steps done, and the checkpoint; 0 and None to start anew.
    Raises:
        UserError: the file is no whole checkpoint, or was made with other options; each difference is named.
    """
    wish = "auto" if restarts() else config.resume
    path = _newest_whole(config.run / "checkpoints") if wish == "auto" else None if wish is None else Path(wish)
    if path is None:
        return 0, None
    state = _read_checkpoint(path)
    wanted, made = plain(config), _made_with(path, state["config"])
    differs = [f"--{name} {made.get(name)} there, {value} here" for name, value in wanted.items()
               if name not in FREE and made.get(name) != value]
    differs += [f"{what} {state[key]} there, {here} here" for what, key, here in (
        ("the domain", "domain", world.name), ("the generator", "generator_hash", world.generator_hash),
        ("the regions", "regions", editor.regions.metadata), ("processes", "processes", world_size()))
        if state[key] != here]
    if not torch.equal(state["editor"]["regions.centroids"], editor.regions.centroids.cpu()):
        differs.append("the regions' centroids are others")
    if differs:
        raise UserError(f"{path} was made with other options: {'; '.join(differs)}; use the same, or another --run")
    editor.load_state_dict(state["editor"])
    optimiser.load_state_dict(state["optimiser"])
    _say(f"going on after step {state['step']} from {path}")
    return state["step"], path


def _newest_whole(folder: Path) -> Path | None:
    for path in newest(folder):
        try:
            _read_checkpoint(path)
            return path
        except UserError as error:
            _say(f"passed over: {error}")
    _say(f"no checkpoint in {folder}: starting anew")
    return None


def _say(text: str) -> None:
    if rank() == 0:         # all processes read the same checkpoint
        print(text, file=sys.stderr)


def _read_checkpoint(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"--resume {path} is not a file; expected auto, or a checkpoint of a run such as "
                        "runs/drawn/checkpoints/best.pt")
    state = read_torch_file(path)
    needed = {"editor", "optimiser", "step", "score", "config", "domain", "generator_hash", "regions", "processes"}
    if absent := needed - set(state):
        raise UserError(f"{path} lacks {', '.join(sorted(absent))}: it is not a training checkpoint; name another one with "
                        "--resume, or start without")
    return state


def _made_with(path: Path, said: Any) -> dict[str, Any]:
    """The options of a checkpoint, whose names an earlier version of this program may have written."""
    try:
        return plain(configured(TrainConfig, **said))
    except (TypeError, UserError) as error:
        raise UserError(f"{path} was made by another version of this program ({error}); name another one with --resume, or "
                        "start without") from error


def plain(config: TrainConfig) -> dict:
    """The options as JSON holds them."""
    return config.model_dump(mode="json")
