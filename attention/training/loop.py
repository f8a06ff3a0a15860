"""Training: one loop, one step, the same functions on every world."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from attention.config import TrainConfig
from attention.errors import UserError
from attention.files.disk import run_folder, write_picture
from attention.files.regions import save_regions
from attention.generator import blended_layers
from attention.method import losses
from attention.method.editor import RegionEditor, autocast
from attention.method.regions import RegionClusters
from attention.processes import launched, rank, world_size
from attention.sheets import edit_sheet, evenly
from attention.training import distributed
from attention.training.captions import PhraseSampler, read_phrases
from attention.training.run_log import RunLog, check_finite, plot_metrics
from attention.training.runs import build_editor, forget_later, plain, regions_of, resume, save_checkpoint
from attention.training.step import Learner, draw, gradients
from attention.worlds.registry import world_of
from attention.worlds.world import World

SHEET_FACES, SHEET_PROMPTS = 4, 16
LOG_EVERY = 10


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
    run_folder(config.run)
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
        The run folder: regions, editor and checkpoints (runs.py), metrics and plot (run_log.py), samples/.
    """
    with distributed.group(world.device):
        return _train(config, world, regions or regions_of(config, world))


def _train(config: TrainConfig, world: World, regions: RegionClusters) -> Path:
    losses.require_two_prompts(config.batch_size * world_size())
    first = rank() == 0
    regions = regions.to(world.device)
    editor = build_editor(config, world, regions)
    optimiser = torch.optim.Adam([{"params": editor.mapper.parameters()}, {"params": editor.attention.parameters()}])
    sampler = PhraseSampler(_phrases(config, world), config.seed)
    start, checkpoint = resume(config, world, editor, optimiser)
    if first:
        forget_later(config.run, start)
        save_regions(regions, config.run / "regions.safetensors")
        log = RunLog(config.run, plain(config), start)
    bar = tqdm(range(start, config.step), desc="training", initial=start, total=config.step, disable=not first)
    done, learner, totals = start, None, []
    with stop_requests() as came:
        try:
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
                done = step + 1
                totals.append(values["total"])
                if first and (step % LOG_EVERY == 0 or done == config.step):
                    log.scalars(step, values)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
                stop = distributed.any_process(bool(came)) or done == config.step
                if first and (stop or done % config.save_intermediate_image_every == 0):
                    checkpoint = save_checkpoint(config, world, editor, optimiser, done, float(np.mean(totals)))
                    totals.clear()
                    _show(config, world, editor, log, done)
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
        if number == signal.SIGINT and came and not launched():     # torchrun repeats what it is sent
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(config: TrainConfig, world: World, editor: RegionEditor, log: RunLog, done: int) -> None:
    """Write the sample sheet after `done` steps, as a file and to TensorBoard."""
    sheet = sample_sheet(world, editor, config.seed + 1_000_003, config.description)
    write_picture(config.run / "samples" / f"{done:06d}.png", sheet)
    log.picture(done - 1, "samples", sheet)


def _phrases(config: TrainConfig, world: World) -> Iterable[str]:
    """What prompts are made of: the captions' phrases where a corpus is given, else the world's own prompts."""
    return world.prompts if config.captions is None else read_phrases(config.captions, world.clip.fits)


def sample_sheet(world: World, editor: RegionEditor, seed: int, description: str | None = None) -> Image.Image:
    """A few unseen faces under `description` and some of the world's prompts: source, then edit and mask of each."""
    prompts = [*filter(None, [description]), *evenly(world.prompts, SHEET_PROMPTS)]
    with torch.no_grad():
        source = editor.source(world.sample_w(SHEET_FACES, seed))
        text = world.clip.encode_text(prompts)
        edits = [editor(source, row.expand(SHEET_FACES, -1), row.expand(SHEET_FACES, -1)) for row in text]
    return edit_sheet(source.image, prompts, [edit.image for edit in edits], [edit.mask for edit in edits])
