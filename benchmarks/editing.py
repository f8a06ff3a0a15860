"""How long a user of a shipped editor waits: for a command, for the first edit, for a further one, for a slider.

    python -m benchmarks.editing                # drawn faces
    python -m benchmarks.editing --run faces    # and their early pictures, which a slider shows while it moves

Prints a table of medians and writes benchmarks/results/editing_RUN.json. On the CPU, with the threads that torch takes.
Commands are counted in seconds of the processor: what else the machine does adds little to them.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from attention.__main__ import COMMANDS
from attention.config import Config, option, parse_config
from attention.editing.session import Editor, load_editor
from attention.errors import exit_with_message
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder, write_text
from attention.files.published import ROOT
from attention.method.defaults import COVERAGE, STRENGTH

SEED, FIRST = 7, "beard"
STARTS = 3                  # of every command
Result = TypeVar("Result")


class EditingConfig(Config):
    """Options."""

    run: str = option("drawn", "name of a shipped editor, or the folder of a run")
    repeats: int = option(20, "runs of each action; the median counts", min=1)
    out: Path = option(Path("benchmarks/results"), "folder to write to")


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print and write; returns the JSON file."""
    config = parse_config(EditingConfig, argv, __doc__)
    folder = run_folder(config.out, "--out")                            # what cannot be written is told before the work
    report = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
              "processor": platform.machine(), "run": config.run, "repeats": config.repeats,
              "seconds": measure(config.run, config.repeats)}
    print(table(report))
    path = folder / f"editing_{Path(config.run).name}.json"
    write_text(path, json.dumps(report, indent=1) + "\n")
    return path


def measure(run: str, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each command and action, down to the picture: median, least and most of its runs."""
    found = {}
    found["load"], [editor] = timed([lambda: load_editor(run, device="cpu")])           # first, for it says what is missing
    found |= {f"{name} --help": [processor_seconds([name, "--help"]) for _ in range(STARTS)] for name in COMMANDS}
    with TemporaryDirectory() as folder:
        edit = ["edit", "--run", run, "--seed", str(SEED), "--what", FIRST, "--out", str(Path(folder) / "edit.png")]
        found["edit"] = [processor_seconds(edit) for _ in range(STARTS)]
    found["first edit"], _ = timed([lambda: editor.open_seed(SEED).edit(FIRST).image])    # CLIP is loaded only now
    shown = {"": editor} if editor.early is editor else {"": editor, ", early": editor.early}
    for size, own in shown.items():
        for name, actions in actions_of(own, repeats).items():
            found[name + size], _ = timed(actions)
    return {name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in found.items()}


def processor_seconds(words: Sequence[str]) -> float:
    """Of where2edit with these words, all of its processes and threads together."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "attention", *words], check=True, cwd=ROOT, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def actions_of(editor: Editor, repeats: int) -> dict[str, list[Callable[[], object]]]:
    """What a user does after the first edit, `repeats` times each; no text was said before."""
    opened = editor.open_seed(SEED)
    edited = opened.edit(FIRST)
    prompts = editor.world.prompts
    # Any text takes the same time, so they may be nonsense as long as each is new.
    texts = [prompts[number % len(prompts)] + " face" * (1 + number // len(prompts)) for number in range(3 * repeats)]
    values = [0.02 + 0.9 * number / repeats for number in range(repeats)]

    def said(*text: str) -> object:
        return opened.edit(*text).image

    def face(seed: int) -> object:
        return editor.open_seed(seed).image

    def moved(strength: float, coverage: float) -> object:
        return edited.retouch(strength, coverage).image

    return {
        "an edit: new text": [partial(said, text) for text in texts[:repeats]],
        "an edit: new text, new place": [partial(said, what, where) for what, where in zip(
            texts[repeats:2 * repeats], texts[2 * repeats:], strict=True)],
        "another face": [partial(face, seed) for seed in range(SEED + 1, SEED + 1 + repeats)],
        "strength only": [partial(moved, value, COVERAGE) for value in values],
        "coverage only": [partial(moved, STRENGTH, value) for value in values],
    }


def timed(actions: Sequence[Callable[[], Result]]) -> tuple[list[float], list[Result]]:
    """Seconds of each action, and what it gave."""
    seconds, results = [], []
    for action in actions:
        start = time.perf_counter()
        results.append(action())
        seconds.append(time.perf_counter() - start)
    return seconds, results


def table(report: dict) -> str:
    """The report as Markdown."""
    rows = {name: {key: 1000 * value for key, value in found.items()} for name, found in report["seconds"].items()}
    columns = {"median": ("median ms", ".0f"), "min": ("least", ".0f"), "max": ("most", ".0f")}
    return (f"{report['threads']} threads, {report['cores']} cores, torch {report['torch']}, {report['repeats']} runs\n\n"
            f"{markdown(rows, 'action', columns)}")


if __name__ == "__main__":
    exit_with_message(main)
