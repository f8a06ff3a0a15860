"""Training: one loop, one step, the same functions on every world."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attention.config import TrainConfig
from attention.devices import autocast
from attention.errors import UserError
from attention.files.disk import write_picture
from attention.files.regions import save_regions
from attention.generator import blended_layers
from attention.method import losses
from attention.method.editor import RegionEditor
from attention.method.regions import RegionClusters
from attention.processes import launched, rank, world_size
from attention.sheets import edit_sheet
from attention.training import distributed
from attention.training.captions import PhraseSampler, prompts_for, sheet_prompts
from attention.training.checkpoints import forget_later, resume, save_checkpoint
from attention.training.folder import claimed, clear_run, refuse_inputs, refuse_run, refuse_strange
from attention.training.run_log import RunLog, check_finite, plot_metrics
from attention.training.runs import UNMEASURED, Calibration, build_editor, command_again, plain, regions_of, start_from
from attention.training.step import Learner, draw, gradients
from attention.worlds.registry import world_of
from attention.worlds.world import World

SHEET_FACES, SHEET_PROMPTS, SHEET_SEED = 4, 16, 1_000_003       # the seed counts from the run's
LOG_EVERY = 10
FIRST_SAVED, SAVED_EVERY = 60, 600      # seconds until the first checkpoint and sheet, and between them, at most


def run(config: TrainConfig) -> Path:
    """Train in this process, alone or as one of several, what the options say; returns the run folder.

    Raises:
        UserError: options that contradict the weights or the machine; before anything is computed.
    """
    world = world_of(config)
    blended_layers(world.generator.layers, config.attention_layer - 1)      # refuses a layer that is not a conv layer
    autocast(config.precision, world.device)                                # refuses fp16 on a CPU
    if config.compile:
        world.generator.synthesis = compiled(world.generator.synthesis)             # type: ignore[method-assign]
    return train(config, world)


def compiled(synthesis: Callable) -> Callable:
    """The function through torch.compile. Styles stay outside: torch 2.14.1 compiles `EqualLinear` wrongly on a CPU.

    Raises:
        UserError: there is no C++ compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise UserError("--compile needs a C++ compiler, and none of c++, g++ and clang++ is here; install one or leave "
                        "--compile out")
    return torch.compile(synthesis)


def train(config: TrainConfig, world: World, regions: RegionClusters | None = None) -> Path:
    """Train mapper and attention and write a run folder; in several processes, the first one writes.

    Args:
        config: options, see `worlds.registry.configured`.
        world: loaded world.
        regions: None takes those that the run asks for, see `runs.regions_of`.
    Returns:
        The run folder: regions, editor and checkpoints (runs.py, checkpoints.py), metrics and plot (run_log.py), samples/.
    Raises:
        KeyboardInterrupt: Ctrl-C came, after the step under way was saved. SIGTERM and SIGUSR1 raise SystemExit.
    """
    with claimed(config.run) if rank() == 0 else nullcontext(), distributed.group(world.device):
        return _train(config, world, regions or regions_of(config, world))


def _train(config: TrainConfig, world: World, regions: RegionClusters) -> Path:
    losses.require_two_prompts(config.batch_size * world_size())
    regions = regions.to(world.device)
    editor = build_editor(config, world, regions)
    calibration = UNMEASURED if config.init is None else start_from(editor, config, world)
    optimiser = torch.optim.Adam([{"params": editor.mapper.parameters()}, {"params": editor.attention.parameters()}],
                                 fused=True)
    sampler = prompts_for(config, world)
    if config.weight("perceptual") > 0:
        world.perceptual                                        # noqa: B018  (loaded now, so that it fails now)
    start, checkpoint = resume(config, world, editor, optimiser, sampler)
    keeper = _Keeper(config, world, editor, optimiser, sampler, calibration, start, checkpoint) if rank() == 0 else None
    if keeper is not None:
        save_regions(regions, config.run / "regions.safetensors")
    bar = tqdm(range(start, config.step), desc="training", initial=start, total=config.step, disable=keeper is None)
    done, learner, came = start, None, 0
    with stop_requests() as asked, keeper or nullcontext():
        for step in bar:
            learns = step / config.step >= config.attention_start
            if learner is None or learns != editor.attention.initial.requires_grad:
                editor.attention.requires_grad_(learns)
                learner = Learner.of(config, world, editor)
            values = gradients(learner, draw(learner, sampler, step))
            check_finite(step, values, checkpoint)
            optimiser.param_groups[0]["lr"] = optimiser.param_groups[1]["lr"] = losses.learning_rate(
                step / config.step, config.lr)
            optimiser.step()
            check_finite(step, {"the largest weight": largest(editor.parameters())}, checkpoint)
            done = step + 1
            came = distributed.any_process(asked[0] if asked else 0)
            if keeper is not None:
                keeper.after(done, values, bool(came))
                checkpoint = keeper.checkpoint
                bar.set_postfix(keeper.shown)
            if came:
                break
    if keeper is not None and done > start:
        plot_metrics(config.run)
    if came:
        if keeper is not None:
            print(f"stopped: {checkpoint} holds {done} of {config.step} steps" + (
                f"; go on with: {command_again(config)}" if done < config.step else ""), file=sys.stderr)
        if came == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + came)
    return config.run


class _Keeper:
    """What the first process keeps of a run: its log, its checkpoints and its sample sheets.

    Attributes:
        checkpoint: the newest one.
        shown: the values of the last logged step, short.
    """

    def __init__(self, config: TrainConfig, world: World, editor: RegionEditor, optimiser: torch.optim.Optimizer,
                 sampler: PhraseSampler, calibration: Calibration, start: int, checkpoint: Path | None):
        self.config, self.world, self.editor, self.optimiser, self.sampler = config, world, editor, optimiser, sampler
        self.calibration = calibration
        self.checkpoint = checkpoint
        self.shown: dict[str, str] = {}
        self.totals: list[float] = []
        if start == 0:
            refuse_run(config.run, config.overwrite, "a new training", tried=config.resume is not None)
            refuse_strange(config.run, config.overwrite)
            refuse_inputs(config.run, [*vars(config).values(), *world.entry.files])
            clear_run(config.run)
        else:
            forget_later(config.run, start)
        self.log = RunLog(config.run, plain(config), start)
        self.sheet = sheet_prompts(config, world, SHEET_PROMPTS)
        self.due = time.monotonic() + FIRST_SAVED

    def __enter__(self) -> "_Keeper":
        return self

    def __exit__(self, *error: object) -> None:
        self.log.close()

    def after(self, done: int, values: Mapping[str, float], stop: bool) -> None:
        """Log the step that was just done, and save where that is due, or the run ends here."""
        self.totals.append(values["total"])
        last = done == self.config.step
        if (done - 1) % LOG_EVERY == 0 or last:
            self.log.scalars(done - 1, values)
            self.shown = {name: f"{value:.3g}" for name, value in values.items()}
        every = self.config.save_intermediate_image_every
        regular = last or stop or (every > 0 and done % every == 0)
        if regular or (every > 0 and time.monotonic() > self.due):
            self._save(done, regular)

    def _save(self, done: int, regular: bool) -> None:
        """Write checkpoint and sample sheet after `done` steps, if they hold finite values; else good files stay."""
        sheet, brightest = sample_sheet(self.world, self.editor, self.config.seed + SHEET_SEED, self.sheet,
                                        self.config.attention_description)
        moments = [value for state in self.optimiser.state.values() for value in state.values()]
        check_finite(done - 1, {"the largest value of the sample sheet": brightest,
                                "the largest value of the optimiser": largest(moments)}, self.checkpoint)
        self.checkpoint = save_checkpoint(self.config, self.world, self.editor, self.optimiser, self.sampler, done,
                                          float(np.mean(self.totals)), regular, self.calibration)
        if regular:
            self.totals.clear()
        if self.config.save_intermediate_image_every > 0:
            write_picture(self.config.run / "samples" / f"{done:06d}.png", sheet)
            self.log.picture(done - 1, "samples", sheet)
        self.due = time.monotonic() + SAVED_EVERY


def largest(tensors: Iterable[Tensor]) -> float:
    """The largest absolute value in some tensors; not finite if any value is not."""
    found = [torch.stack(tensor.detach().aminmax()) for tensor in tensors]
    return float(torch.stack(found).abs().max()) if found else 0.0


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list of the signals that came: SIGTERM and SIGUSR1, which cluster schedulers send before they kill, and Ctrl-C.

    The step under way ends first, so that what is saved is whole; a second Ctrl-C does not wait.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and came and not launched():     # torchrun repeats what it is sent
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sample_sheet(world: World, editor: RegionEditor, seed: int, prompts: list[str],
                 where: str | None = None) -> tuple[Image.Image, float]:
    """A few unseen faces under some prompts, each at its own place or all at `where`: source, then edit and mask of each.

    Returns:
        The sheet, and the largest absolute value in its edits: not finite if they show nothing.
    """
    with torch.no_grad():
        source = editor.source(world.sample_w(SHEET_FACES, seed))
        what = world.clip.encode_text(prompts)
        place = what if where is None else world.clip.encode_text([where] * len(prompts))
        rows = zip(what.split(1), place.split(1), strict=True)
        edits = [editor(source, *(text.expand(SHEET_FACES, -1) for text in row)) for row in rows]
    pictures = [edit.image for edit in edits]
    return edit_sheet(source.image, prompts, pictures, [edit.mask for edit in edits]), largest(pictures)
