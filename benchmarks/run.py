"""What our forms of the published computations save: seconds and memory, ours against a plain implementation (plain.py).

    python -m benchmarks.run                                # published sizes; most of an hour on two CPU cores, 18 GiB
    python -m benchmarks.run --quick                        # smaller sizes, three minutes
    python -m benchmarks.run --only clip_input --repeats 20

For each item both sides first compute the same small case, and must agree. Then they run in turns in one process (models
with random weights: time and memory do not depend on their values), and once more each in a process of its own, whose peak
of memory above the loaded models is taken. Prints a table; writes OUT/benchmark.json, OUT/benchmark.md, OUT/scaling.png.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure

from attention.config import DEVICE, Config, option, parse_config
from attention.devices import checked_device
from attention.errors import UserError, exit_with_message
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder, write_atomically, write_text
from benchmarks import kmeans
from benchmarks.items import BLEND_SIDE, ITEMS, PROCESSES, REGIONS, Models, Pair, regions, step_image, training_step
from benchmarks.measure import check, figures, give_back, machine, measure, say, seconds_of

KMEANS, SCALING = "kmeans", "scaling"
NAMES = (*ITEMS, KMEANS, SCALING)
LOOSER = 0.01           # how much looser than the best of the full k-means runs our worst clusters may be


class BenchmarkConfig(Config):
    """Options."""

    quick: bool = option(False, "smaller sizes, fewer repeats")
    device: str = option("auto", DEVICE)
    only: Literal[NAMES] | None = option(None, "one item")      # type: ignore[valid-type]
    repeats: int | None = option(None, "runs of each side; default 5 and of steps 3, with --quick 3 and 1", min=1)
    out: Path = option(Path("runs/benchmark"), "folder to write to")


def main(argv: Sequence[str] | None = None) -> Path:
    """Check, measure, print and write; returns the JSON file."""
    config = parse_config(BenchmarkConfig, argv, __doc__)
    device, folder = checked_device(config.device), run_folder(config.out, "--out")
    report = {"quick": config.quick, "device": str(device), **machine(device), "items": {}}
    small = Models(64, device, prompts=2, faces=2, thin=config.quick, exact=True)
    names = [name for name in NAMES if not (config.quick and name == KMEANS)]    # which takes a minute at any size
    for name in [config.only] if config.only else names:
        if name == SCALING:
            report[SCALING] = scaling(config.quick, device)
            plot(report[SCALING], folder / "scaling.png")
        elif name == KMEANS:
            report["items"][name] = measure_kmeans(config.quick)
        else:
            item = ITEMS[name]
            say(f"{name}: comparing results")
            difference = check(name, item, small)
            say(f"{name}: the same to {difference:.0e}; measuring")
            models, repeats = sizes(name, config.quick, device)
            report["items"][name] = measure(name, item, models, config.repeats or repeats)
            report["items"][name] |= {"largest_difference": difference, "tolerance": item.tolerance}
        write(report, folder)
    print(table(report["items"]))
    return folder / "benchmark.json"


def sizes(name: str, quick: bool, device: torch.device) -> tuple[Models, int]:
    """The models that an item is measured on, and how often."""
    if not quick:
        return models_of(1024, device), ITEMS[name].repeats
    if ITEMS[name].heavy:
        return models_of(BLEND_SIDE, device, prompts=2), 1
    return models_of(256, device, faces=2), 3


@cache
def models_of(side: int, device: torch.device, prompts: int = PROCESSES, faces: int = 2) -> Models:
    """One for all items that share it: models take seconds to make."""
    return Models(side, device, prompts, faces)


# --- clustering


def measure_kmeans(quick: bool) -> dict:
    """Clustering, see kmeans.py; both sides run on the CPU, and it is the clusters' inertia that must agree."""
    say(f"{KMEANS}: measuring")
    faces, runs = (4, 2) if quick else (100, 10)
    row = kmeans_row(kmeans.compare(kmeans.published_points(faces), REGIONS, runs))
    say(f"{KMEANS}: plain {row['plain']['seconds']['median']:.3g} s, ours {row['ours']['seconds']['median']:.3g} s")
    return row


def kmeans_row(found: dict) -> dict:
    """What `kmeans.compare` found, as of the other items.

    Raises:
        UserError: our clusters are looser.
    """
    looser = found["inertia_ratio_of_our_worst"] - 1
    if not looser <= LOOSER:
        raise UserError(f"{KMEANS}: the inertia of our clusters is {looser:.1%} above the best of {found['full_runs']} "
                        f"full runs, but at most {LOOSER:.0%} is allowed; look at both with: python -m benchmarks.kmeans")
    return {"what": f"k-means of {found['points'][0]:,} points, plain: {found['full_runs']} full runs", "side": None,
            "target": "20; 0.4", "largest_difference": looser, "tolerance": LOOSER,
            **figures({"plain": [found["seconds_full"]], "ours": [found["seconds_ours"]]},
                      {"plain": found["gib_full"], "ours": found["gib_ours"]})}


# --- scaling


def scaling(quick: bool, device: torch.device) -> dict[str, dict[str, list[float]]]:
    """Seconds of both sides against the side of the picture, the number of regions and that of prompts, one run each.

    With `quick` in thin networks, whose proportions are others.
    """
    sides: tuple[int, ...] = (64, 128, 256, 512, 1024)
    step_side, note = 256, ""
    if quick:
        sides, step_side, note = sides[:3], 64, ", thin networks"

    def models(side: int) -> Models:
        return Models(side, device, thin=quick)

    panels: dict[str, tuple[Sequence[int], Callable[[int], Pair]]] = {
        f"side of the picture (a step{note})": (sides, lambda side: step_image(models(side))),
        f"regions (assigning and means{note})": (
            (5, 10, 20, 50, 100, 200), lambda number: regions(models(BLEND_SIDE), number)),
        f"prompts (a step at {step_side} px{note})": (
            (1, 2, 4, 8), lambda count: training_step(models(step_side), PROCESSES // count, count, "text")),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for title, (values, build) in panels.items():
        found[title] = {"x": list(values), "plain": [], "ours": []}
        for x in values:
            give_back(device)
            pair = build(x)
            pair.ours()                                                     # warms up
            for one in ("plain", "ours"):
                found[title][one].append(seconds_of(getattr(pair, one), device))
            say(f"{title}: {x}: plain {found[title]['plain'][-1]:.3g} s, ours {found[title]['ours'][-1]:.3g} s")
    return found


def plot(panels: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One panel beside the other, both axes logarithmic."""
    figure = Figure(figsize=(4 * len(panels), 3.5), layout="constrained")
    for axis, (title, found) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for side, mark in (("plain", "s--"), ("ours", "o-")):
            axis.loglog(found["x"], found[side], mark, label=side)
        axis.set_xticks(found["x"], [f"{x:g}" for x in found["x"]])
        axis.xaxis.minorticks_off()
        axis.set_xlabel(title)
        axis.set_ylabel("seconds")
        axis.grid(alpha=0.3)
        axis.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


# --- report


def table(items: dict[str, dict]) -> str:
    """Markdown, a row for each item."""
    columns = {"side": ("px", ""), "plain_s": ("plain, s", ".3g"), "ours_s": ("ours, s", ".3g"),
               "faster": ("times faster (min to max)", ""), "plain_gib": ("plain, GiB", ".3g"),
               "ours_gib": ("ours, GiB", ".3g"), "memory_ratio": ("share of memory", ".2f"), "target": ("target", "")}
    rows = {item["what"]: {**item, "faster": "{median:.2f} ({min:.2f} to {max:.2f})".format(**item["time_ratio"]),
                           **{f"{side}_s": item[side]["seconds"]["median"] for side in ("plain", "ours")},
                           **{f"{side}_gib": item[side]["gib"] for side in ("plain", "ours")}} for item in items.values()}
    return markdown(rows, "what", columns)


def write(report: dict, folder: Path) -> None:
    """What is known so far, as JSON and as Markdown."""
    said = report["machine"]
    notes = ("Plain is the published algorithm in float32 (benchmarks/plain.py). Seconds are medians; times faster is the "
             "median over pairs of neighbouring runs. GiB are peaks above the loaded models, the share is ours by plain. "
             "Targets: times faster at least; share at most.")
    where = (f"{said['gpu'] or said['cpu']}, {said['threads']} threads on {said['cores']} cores, "
             f"{said['ram_gib']:.0f} GiB; torch {report['versions']['torch']}; commit {report['commit']}")
    page = f"{table(report['items'])}\n\n{notes} {where}.\n"
    write_text(folder / "benchmark.json", json.dumps(report, indent=1))
    write_text(folder / "benchmark.md", page)


if __name__ == "__main__":
    exit_with_message(main)
