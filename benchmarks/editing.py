"""How long a user of the shipped editor of drawn faces waits: for the first edit, for a further one, for a slider.

    python -m benchmarks.editing

Prints a table of medians and writes benchmarks/results/editing.json. On the CPU, with the threads that torch takes.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from attention.config import Config, option, parse_config
from attention.editing.session import Editor, load_editor
from attention.errors import exit_with_message
from attention.evaluation.tables import markdown
from attention.files.disk import write_text
from attention.files.published import ROOT
from attention.method.defaults import COVERAGE, STRENGTH

TARGET = 0.060              # seconds of an edit after the first, on two cores
SEED, FIRST = 7, "beard"


class EditingConfig(Config):
    """Options."""

    repeats: int = option(20, "runs of each action; the median counts", min=1)
    out: Path = option(Path("benchmarks/results/editing.json"), "JSON to write")


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, print and write; returns the JSON file."""
    config = parse_config(EditingConfig, argv, __doc__)
    report = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
              "processor": platform.machine(), "repeats": config.repeats, "target_seconds": TARGET,
              "seconds": measure(config.repeats)}
    print(table(report))
    write_text(config.out, json.dumps(report, indent=1) + "\n")
    return config.out


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each action, down to the picture: median, least and most of its runs."""
    found = {"start Python and load": timed([start])[0]}
    found["load"], [editor] = timed([lambda: load_editor("drawn", device="cpu")])
    found["first edit"], _ = timed([lambda: editor.open_seed(SEED).edit(FIRST).image])    # CLIP is loaded only now
    for name, actions in actions_of(editor, repeats).items():
        found[name], _ = timed(actions)
    return {name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in found.items()}


def start() -> None:
    """Load the editor in a process of its own, with all that Python imports for it."""
    subprocess.run([sys.executable, "-c", "import attention; attention.load_editor('drawn', device='cpu')"], check=True,
                   cwd=ROOT)


def actions_of(editor: Editor, repeats: int) -> dict[str, list[Callable[[], object]]]:
    """What a user does after the first edit, `repeats` times each; no text was said before."""
    opened = editor.open_seed(SEED)
    edited = opened.edit(FIRST)
    prompts = editor.world.prompts
    # Any text takes the same time, so they may be nonsense as long as each is new.
    texts = [prompts[number % len(prompts)] + " face" * (1 + number // len(prompts)) for number in range(3 * repeats)]
    values = [0.02 + 0.9 * number / repeats for number in range(repeats)]
    return {
        "an edit: new text": [lambda text=text: opened.edit(text).image for text in texts[:repeats]],
        "an edit: new text, new place": [
            lambda what=what, where=where: opened.edit(what, where).image
            for what, where in zip(texts[repeats:2 * repeats], texts[2 * repeats:], strict=True)],
        "another face": [lambda seed=seed: editor.open_seed(seed).image for seed in range(SEED + 1, SEED + 1 + repeats)],
        "strength only": [lambda value=value: edited.retouch(value, COVERAGE).image for value in values],
        "coverage only": [lambda value=value: edited.retouch(STRENGTH, value).image for value in values],
    }


def timed(actions: Sequence[Callable[[], object]]) -> tuple[list[float], list[object]]:
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
