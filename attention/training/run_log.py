"""What a run leaves to look at: config.json, metrics.jsonl, TensorBoard's scalars and pictures, plot.png.

    tensorboard --logdir runs
    python -c "from attention.training.run_log import plot_metrics; plot_metrics('runs/drawn')"      # plot.png, any time
"""

import json
import math
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, TypeAdapter
from torch.utils.tensorboard import SummaryWriter

from attention.errors import UserError
from attention.files.disk import write_atomically, write_text
from attention.files.published import ROOT
from attention.files.reading import read_json, readable
from attention.processes import group_of_processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "where2edit")
PANELS_ACROSS, PANEL_INCHES, DOTS_PER_INCH = 3, (3.6, 2.2), 100
LOG_SCALE_SPAN = 100.0          # two decades


class RunLog:
    """The record of one run folder; only the first process keeps one.

    A step counts from 0. What an earlier run logged at or past `start` is dropped: a new run begins empty, and one that
    was interrupted and resumed has every step once, in order.

    Args:
        folder: the run folder; made where it is missing.
        config: every option by name; paths become texts.
        start: the first step that is still to be run.
    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int = 0):
        self.folder, self.start = Path(folder), start
        record = {**config, "command": sys.argv, "folder": str(Path.cwd()), "git": git_state(ROOT),
                  "threads": torch.get_num_threads(), "processes": group_of_processes(),
                  "versions": {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}}
        write_text(self.folder / "config.json", json.dumps(record, indent=1, default=str))
        kept = [line for line in read_metrics(self.folder) if line["step"] < start]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self._metrics = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")

    @cached_property
    def _board(self) -> SummaryWriter:
        leave_errors_to_the_next_call()
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of one step by name; they are in the files when this returns."""
        with self._writing("metrics.jsonl"):
            self._metrics.write(json.dumps({"step": step, **values}) + "\n")
            self._metrics.flush()
        with self._writing("tensorboard"):
            for name, value in values.items():
                self._board.add_scalar(f"training/{name}", value, step)
            self._board.flush()

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Show a picture in TensorBoard. `step` is the last one that shaped it, so that a run resumed after it keeps it."""
        with self._writing("tensorboard"):
            self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
            self._board.flush()

    def close(self) -> None:
        """Close the files; also right after an interruption. What cannot be written any more was told before."""
        with suppress(OSError, ValueError):
            self._metrics.close()
        if "_board" in vars(self):
            with suppress(OSError, ValueError):
                self._board.close()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """TensorBoard's own thread meets a full disk or a folder that is gone, and tells at the next call."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self.folder / name} could not be written ({reason}); make room, or put the folder back, and "
                            "go on with --resume auto") from error


@cache
def leave_errors_to_the_next_call() -> None:
    """Let TensorBoard's thread end without a traceback: what stopped it is raised again where the next value is logged."""
    usual = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            usual(failed)

    threading.excepthook = hook


def read_config(folder: Path) -> dict[str, Any]:
    """The record of a run's config.json; empty where there is none that can be read."""
    try:
        found = read_json(Path(folder) / "config.json", "the options of a run")
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _with_step(line: dict[str, float]) -> dict[str, float]:
    if not (line.get("step", -1) >= 0 and float(line["step"]).is_integer()):
        raise ValueError("no step")
    return {**line, "step": int(line["step"])}


LINE = TypeAdapter(Annotated[dict[str, float], AfterValidator(_with_step)])


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl in order, without those that were cut short or hold anything but a step and
    numbers by name; none where there is no file.

    Raises:
        UserError: it is no file that can be read.
    """
    path = Path(folder) / "metrics.jsonl"
    lines: list[dict[str, float]] = []
    if not os.path.lexists(path):
        return lines
    with readable(path, "the values that a run has logged").open(encoding="utf-8", errors="replace") as file:
        for text in file:
            with suppress(ValueError, RecursionError):
                lines.append(LINE.validate_json(text))
    return lines


def plot_metrics(folder: Path) -> Path:
    """Draw a run's plot.png from its metrics.jsonl alone, at any time; returns its path.

    Raises:
        UserError: the folder has no metrics.jsonl, or it has no whole line.
    """
    lines = read_metrics(folder)
    if not lines:
        raise UserError(f"{Path(folder) / 'metrics.jsonl'} has no whole line to plot; train first: "
                        f"python -m attention.run_attention --run {folder}")
    path = Path(folder) / "plot.png"
    write_atomically(path, lambda temporary: metrics_figure(lines).savefig(temporary, format="png"))
    return path


def metrics_figure(lines: Sequence[Mapping[str, float]]) -> "Figure":
    """One panel for each name in the lines but "step", in the order of their first appearance, titled with the name.

    Values that are all positive and span more than two decades are on a logarithmic scale.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  (half a second and a cache of fonts that only drawing needs)

    names = [name for name in dict.fromkeys(chain.from_iterable(lines)) if name != "step"]
    rows, (width, height) = math.ceil(len(names) / PANELS_ACROSS), PANEL_INCHES
    figure = Figure((width * PANELS_ACROSS, height * rows), DOTS_PER_INCH)
    # A layout found by measuring every label takes half a second, at the end of every run.
    figure.subplots_adjust(left=0.2 / PANELS_ACROSS, right=1 - 0.03 / PANELS_ACROSS, wspace=0.28,
                           bottom=0.22 / rows, top=1 - 0.12 / rows, hspace=0.45)
    figure.supxlabel("step", fontsize="medium", y=0.01, va="bottom")
    for place, name in enumerate(names, start=1):
        steps, values = zip(*[(line["step"], line[name]) for line in lines if name in line], strict=True)
        panel = figure.add_subplot(rows, PANELS_ACROSS, place)
        panel.plot(steps, values, linewidth=1, marker="." if len(values) == 1 else "")
        panel.set_title(name, fontsize="medium")
        panel.tick_params(labelsize="small")
        panel.grid(alpha=0.3)
        finite = [value for value in values if math.isfinite(value)]
        if finite and min(finite) > 0 and max(finite) / min(finite) > LOG_SCALE_SPAN:
            panel.set_yscale("log")
    return figure


def check_finite(step: int, values: Mapping[str, float], last_checkpoint: Path | None) -> None:
    """Stop a run whose loss has become nan or infinite; meant for before the weights are moved by it.

    Raises:
        UserError: names the step, every value that is not finite, and what to go on from.
    """
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    good = ("no checkpoint was written yet" if last_checkpoint is None else
            f"the last good one is {last_checkpoint}, go on with --resume {last_checkpoint} --precision fp32")
    raise UserError(f"training stopped at step {step} because {', '.join(wrong)}, expected finite numbers; {good}; or "
                    "start again with a lower --lr")


def package_version(name: str) -> str:
    """The version of an installed package; "source" for one that runs without being installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "source"


def git_state(root: Path) -> dict[str, Any] | None:
    """The commit that `root` is a checkout of, and whether anything differs from it; None where that cannot be said."""
    if not (root / ".git").exists():            # a repository further up knows nothing of an installed or unpacked copy
        return None
    try:
        return {"commit": _git(root, "rev-parse", "HEAD"), "uncommitted": _git(root, "status", "--porcelain") != ""}
    except (OSError, subprocess.CalledProcessError):        # git is not there, or refuses, or nothing is committed yet
        return None


def _git(root: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]           # looks only, locks nothing
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
