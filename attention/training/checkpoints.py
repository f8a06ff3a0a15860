"""The checkpoints of a run: all that its next step depends on. A checkpoint may come from anywhere, and is read as such."""

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from attention.config import STEPS, TrainConfig
from attention.errors import UserError
from attention.files.disk import write_atomically
from attention.files.reading import readable, shown
from attention.files.torch_files import atomic_torch_save, read_torch_file
from attention.method.editor import RegionEditor
from attention.method.losses import REGION_RAMP
from attention.processes import group_of_processes, rank, restarts, world_size
from attention.training import distributed
from attention.training.captions import PhraseSampler
from attention.training.folder import CHECKPOINTS, EDITOR, holds_run
from attention.training.run_log import read_config
from attention.training.runs import FREE, UNMEASURED, Calibration, fill, misfit, options_of, plain, save_editor
from attention.worlds.world import World

KEPT = 3                # newest checkpoints that stay, beside the best
# Options that name what a checkpoint holds itself (domain, generator_hash, prompts), wherever the files lie now.
HELD = {"domain", "ckpt", "captions"}


class Checkpoint(BaseModel):
    """What a checkpoint holds. `score` is the mean total loss since the one before, `prompts` says what was drawn from."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    editor: dict[str, Tensor]
    optimiser: dict[str, Any]
    step: int = Field(ge=0, le=STEPS)
    score: float
    config: dict[str, Any]
    domain: str
    generator_hash: str
    regions: dict[str, str]
    processes: int = Field(ge=1)
    prompts: str = ""


def save_checkpoint(config: TrainConfig, world: World, editor: RegionEditor, optimiser: torch.optim.Optimizer,
                    sampler: PhraseSampler, step: int, score: float, regular: bool = True,
                    calibration: Calibration = UNMEASURED) -> Path:
    """Write RUN/editor.safetensors and RUN/checkpoints/STEP.pt; the newest KEPT stay, and the best as best.pt.

    Every random number comes from the seed and the number of the step, in each process, so there are no random states to
    keep.

    Args:
        step: steps done.
        score: the mean total loss since the last regular checkpoint; the lowest is the best, once all losses have their
            weight.
        regular: it may become the best; one that time alone asked for has seen too few steps for a comparison.
        calibration: what suits each text, as far as that is known.
    """
    save_editor(editor, config, world, config.run / EDITOR, step, calibration)
    folder = config.run / CHECKPOINTS
    path, best = folder / f"{step:06d}.pt", folder / "best.pt"
    atomic_torch_save({"editor": editor.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "score": score,
                       "config": plain(config), "domain": world.name, "generator_hash": world.generator_hash,
                       "regions": editor.regions.metadata, "processes": world_size(),
                       "prompts": prompts_hash(sampler)}, path)
    before = _whole(best)
    # While the ramps rise, later totals contain more: they are no comparison.
    if before is None or (regular and (score < before.score or before.step <= REGION_RAMP[1] * config.step)):
        write_atomically(best, lambda temporary: shutil.copyfile(path, temporary))
    for old in newest(folder)[KEPT:]:
        old.unlink()
    return path


def prompts_hash(sampler: PhraseSampler) -> str:
    """16 hex digits that name what prompts are drawn from, wherever it came from."""
    said = json.dumps([sampler.phrases, sampler.counts.tolist()])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def newest(folder: Path) -> list[Path]:
    """The numbered checkpoints of a folder, the newest first; whatever has another name is none."""
    found = [path for path in folder.glob("*.pt") if re.fullmatch("[0-9]{6,10}", path.stem) and path.is_file()]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def forget_later(run: Path, step: int) -> None:
    """Remove the checkpoints beyond `step`, which the steps from there on make again, and what a killed process left
    half-written."""
    folder = run / CHECKPOINTS
    later = [path for path in newest(folder) if int(path.stem) > step]
    best = folder / "best.pt"
    if best.is_file() and ((found := _whole(best)) is None or found.step > step):
        later.append(best)
    for path in [*later, *run.glob(".*.partial"), *folder.glob(".*.partial")]:
        path.unlink()


def resume(config: TrainConfig, world: World, editor: RegionEditor, optimiser: torch.optim.Optimizer,
           sampler: PhraseSampler) -> tuple[int, Path | None]:
    """Go on where --resume says: `auto` takes the newest whole checkpoint of the run, else it names the file.

    A process that torchrun started again after a failure goes on by itself.

    Returns:
        Steps done, and the checkpoint; 0 and None to start anew.
    Raises:
        UserError: the file is no whole checkpoint, or was made with other options, each of which is named; or going on
            from it would replace later steps that lie in the run folder.
    """
    path = distributed.from_first(lambda: _asked_for(config))
    if path is None:
        return 0, None
    state = read_checkpoint(path)
    made = compare(config, world, editor, sampler, state, path)
    _refuse_loss(config, state, path)
    _fill_optimiser(optimiser, state.optimiser, path)
    fill(editor, state.editor, path)
    _say(f"going on after step {state.step} from {path}")
    if config.step > made.step:
        _say(f"--step {config.step} instead of {made.step}: learning rate and ramps count {config.step} from here on")
    return state.step, path


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint, every field of its kind.

    Raises:
        UserError: the file is missing, cut short, or something else.
    """
    if os.path.isdir(path):
        raise UserError(f"--resume {shown(path)} is a folder; go on with its run by --run {shown(path)} --resume auto, or "
                        f"start from its editor by --init {shown(path)}")
    state = read_torch_file(readable(path, "--resume auto or a checkpoint such as runs/drawn/checkpoints/best.pt"))
    folder = shown(path.with_suffix(""))
    if any(str(name).removeprefix("module.") == "initial_state" for name in state):
        raise UserError(f"{shown(path)} is the authors' trained mapper, not a checkpoint; start from it with: "
                        f"python -m attention.convert {shown(path)}, then --init {folder} instead of --resume")
    otherwise = "it is not a whole training checkpoint; name another one with --resume, or start without"
    try:
        return Checkpoint(**{str(name): value for name, value in state.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name, found = ".".join(shown(key, 40) for key in first["loc"]), first["input"]
        if first["type"] == "missing":
            raise UserError(f"{shown(path)} lacks {name}: {otherwise}") from None
        value = shown(found, 40) if isinstance(found, str | int | float) else f"a {type(found).__name__}"
        raise UserError(f"{shown(path)} has {value} for {name} ({first['msg']}): {otherwise}") from None


def _asked_for(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from."""
    # A restart goes on with what this very group of processes began, not with a run that was there before.
    again = restarts() > 0 and read_config(config.run).get("processes") == group_of_processes()
    if again or config.resume == "auto":
        return _newest_whole(config.run / CHECKPOINTS)
    return None if config.resume is None else Path(config.resume)


def _newest_whole(folder: Path) -> Path | None:
    for path in newest(folder):
        try:
            read_checkpoint(path)
            return path
        except UserError as error:
            _say(f"passed over: {error}")
    _say(f"no checkpoint in {folder}: starting anew")
    return None


def _whole(path: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(path) if path.is_file() else None
    except UserError:
        return None


def compare(config: TrainConfig, world: World, editor: RegionEditor, sampler: PhraseSampler, state: Checkpoint,
             path: Path) -> TrainConfig:
    """The options that a checkpoint was made with, if this run can go on from it.

    Raises:
        UserError: they cannot be read, or are others; each difference is named.
    """
    try:
        options = options_of(state.config, path.parent.parent)
        made = plain(options)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:         # a UserError is a ValueError
        raise UserError(f"{shown(path)} was made by another version of this program, or is damaged ({shown(error)}); name "
                        "another one with --resume, or start without") from error
    known = HELD if state.prompts else HELD - {"captions"}
    wanted = {name: value for name, value in plain(config).items() if name not in FREE | known}
    if max(options.step, state.step) <= config.step:
        del wanted["step"]              # more steps than before
    wanted["clip_model"], made["clip_model"] = (os.path.basename(said["clip_model"] or "") for said in (wanted, made))
    pairs = [(f"--{name}", made.get(name), value) for name, value in wanted.items()]
    pairs += [("the domain", state.domain, world.name), ("the generator", state.generator_hash, world.generator_hash),
              *((f"the regions' {name}", state.regions.get(name), here) for name, here in editor.regions.metadata.items()),
              ("processes", state.processes, world_size()),
              ("the prompts", state.prompts, prompts_hash(sampler) if state.prompts else "")]
    differs = [f"{what} {shown(there)} there, {shown(here)} here" for what, there, here in pairs if there != here]
    centroids = state.editor.get("regions.centroids")
    if centroids is None or not torch.equal(centroids, editor.regions.centroids.cpu()):
        differs.append("the regions are other ones")
    if differs:
        raise UserError(f"{shown(path)} was made with other options: {'; '.join(differs)}; use the same, or another --run")
    return options


def _refuse_loss(config: TrainConfig, state: Checkpoint, path: Path) -> None:
    """Refuse to go on from a named checkpoint where that would remove what it does not hold."""
    folder = config.run / CHECKPOINTS
    later = [other for other in newest(folder) if int(other.stem) > state.step]
    foreign = not (folder.is_dir() and os.path.samefile(path.parent, folder))
    named = config.resume != "auto" and not restarts() and not config.overwrite
    if named and rank() == 0 and (later or (foreign and holds_run(config.run))):
        there = later[0].name if later else EDITOR
        raise UserError(f"--run {shown(config.run)} holds a run already ({there}), which going on from {shown(path)} would "
                        "replace; go on from its newest step by --resume auto, replace it by --overwrite, or name another "
                        "folder with --run")


def _fill_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """Give Adam its moments; its settings are this run's own."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    moments = saved.get("state")
    if not isinstance(moments, dict) or not all(
            type(number) is int and 0 <= number < len(weights) and _are_moments(found, weights[number])
            for number, found in moments.items()):
        raise UserError(f"{shown(path)} holds an optimiser's state that is not finite or not of its editor; name another "
                        "one with --resume, or start without")
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def _are_moments(found: Any, weight: Tensor) -> bool:
    wanted = {"step": torch.zeros(()), "exp_avg": weight, "exp_avg_sq": weight}
    return (isinstance(found, dict) and set(found) == set(wanted)
            and not any(misfit(found[name], like) for name, like in wanted.items())
            and float(found["step"]) > 0 and bool((found["exp_avg_sq"] >= 0).all()))


def _say(text: str) -> None:
    if rank() == 0:         # all processes read the same checkpoint
        print(text, file=sys.stderr)
