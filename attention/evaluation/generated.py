"""The evaluation of an editor on unseen generated faces of which the truth is known; see attention/evaluate.py."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attention.config import EvaluateConfig
from attention.devices import autocast
from attention.errors import UserError
from attention.evaluation.metrics import Asked, mean, means, measure, plot_sweep, table
from attention.files.disk import run_folder, write_picture, write_text
from attention.files.published import download_command
from attention.generator import sample_z
from attention.inversion.perceptual import VGG_WEIGHTS, load_lpips, lpips_available
from attention.method.editor import Place, RegionEditor, Source
from attention.method.spatial_attention import threshold_for
from attention.sheets import edit_sheet, evenly
from attention.training.runs import load_run, run_of, trained_steps
from attention.worlds.truth import Faces, balanced_accuracy
from attention.worlds.world import World

FACES_AT_ONCE = 16
SHEET_FACES, SHEET_PROMPTS = 4, 16
TIMED_EDITS = 9         # of which the median counts


def evaluate(config: EvaluateConfig) -> Path:
    """Load a run, measure every prompt at every strength, write; returns the path of metrics.json.

    Raises:
        UserError: the run has no whole editor, or nothing is known of its world's faces.
    """
    strengths = sorted({*parse_strengths(config.strengths), config.strength})
    run = run_of(config.run)
    results = config.results or (config.run if run == config.run else Path("runs") / f"{config.run}-shipped")
    editor, world, _ = load_run(run, config.device, config.trust, config.ckpt, World.preview)
    run_folder(results, "--results" if config.results else "--run")     # what cannot be written is told before the work
    z = sample_z(config.faces, world.generator.style_dim, config.seed)
    faces, w = world.truth.faces(z), world.w_from_z(z)
    sources = [editor.source(part) for part in w.split(FACES_AT_ONCE)]
    before = torch.cat([source.image for source in sources])

    rows, sheet = measure_all(editor, world, sources, faces, strengths, config)
    sweep: list[dict[str, Any]] = [{"strength": strength, "mean": means(rows[strength]),
                                    "prompts": rows[strength]} for strength in strengths]
    unedited = balanced_accuracy(world.truth.attributes, faces.states(), world.truth.read(before, faces).holds())
    report = {"run": str(config.run), "faces": config.faces, "strength": config.strength, "coverage": config.coverage,
              "training_steps": trained_steps(run),
              "reader_balanced_accuracy": {"exact": world.truth.accuracies, "unedited": unedited},
              "seconds_per_edit": seconds_per_edit(editor, world, w[:1], config),
              "mean": means(rows[config.strength]), "prompts": rows[config.strength], "sweep": sweep}
    told = page(report)
    write_text(results / "metrics.json", json.dumps(report, indent=1))
    write_text(results / "metrics.md", told)
    write_picture(results / "edits.png", sheet)
    curve = [(row["mean"]["success"] or 0.0, row["mean"]["psnr_outside"]) for row in sweep]
    plot_sweep({str(config.run): curve}, results / "sweep.png")
    print(told)
    print(f"pictures in {results / 'edits.png'}, the sweep in {results / 'sweep.png'}, figures in "
          f"{results / 'metrics.json'}")
    return results / "metrics.json"


def parse_strengths(text: str) -> list[float]:
    """The numbers of --strengths.

    Raises:
        UserError: one of them is no number from 0 to 1.
    """
    try:
        strengths = [float(word) for word in text.split(",")]
    except ValueError:
        strengths = []
    if not strengths or not all(0 <= strength <= 1 for strength in strengths):      # nan fails too
        raise UserError(f"--strengths is {text!r}, expected numbers from 0 to 1 separated by commas, as in 0.05,0.1,0.2")
    return strengths


@torch.no_grad()
def measure_all(editor: RegionEditor, world: World, sources: Sequence[Source], faces: Faces, strengths: Sequence[float],
                config: EvaluateConfig) -> tuple[dict[float, dict[str, dict]], Image.Image]:
    """The figures of every prompt at every strength, {strength: {prompt: figures}}, and a sheet of edits at --strength.

    Sources and masks are the same for all strengths. LPIPS, which takes longer than the edit, is measured at --strength.
    """
    lpips = load_lpips(device=world.device) if lpips_available() else None
    if lpips is None:
        print(f"LPIPS is left out, {VGG_WEIGHTS} is missing; get it with: {download_command(VGG_WEIGHTS)}", file=sys.stderr)
    before = torch.cat([source.image for source in sources])
    rows: dict[float, dict[str, dict]] = {strength: {} for strength in strengths}
    shown, by_name, seen = {}, {}, world.truth.read(before.clamp(-1, 1), faces)
    for prompt in tqdm(world.prompts, desc="prompts"):
        asked, places = Asked.of(world.truth, faces, prompt, seen), locate(editor, world, sources, prompt, config.coverage)
        name = world.truth.part_name(prompt)
        if name not in by_name:
            by_name[name] = joined(locate(editor, world, sources, name, config.coverage))
        gated, doses = joined(places), suited(editor, world, sources, places, prompt, config.precision)
        for strength in strengths:
            after = edited(editor, world, sources, places, doses, prompt, strength, config.precision)
            rows[strength][prompt] = measure(before, after, gated, asked, world.clip,
                                             lpips if strength == config.strength else None, by_name[name])
            if strength == config.strength:
                shown[prompt] = (after[:SHEET_FACES], torch.cat([place.mask for place in places])[:SHEET_FACES])
    chosen = evenly(list(shown), SHEET_PROMPTS)
    return rows, edit_sheet(before[:SHEET_FACES], chosen, *zip(*(shown[prompt] for prompt in chosen), strict=True))


def locate(editor: RegionEditor, world: World, sources: Sequence[Source], text: str, coverage: float) -> list[Place]:
    """Where a text is about in every source."""
    where = world.clip.encode_text([text])
    return [editor.locate(source, where.expand(len(source), -1), threshold_for(coverage)) for source in sources]


def joined(places: Sequence[Place]) -> Tensor:
    """(N, 1, h, h) gated attention of all sources."""
    return torch.cat([place.gated for place in places])


def suited(editor: RegionEditor, world: World, sources: Sequence[Source], places: Sequence[Place], prompt: str,
           precision: str) -> list[Tensor]:
    """How much of a strength suits every source; (B, 1) of each."""
    what = world.clip.encode_text([prompt])
    with autocast(precision, world.device):
        return [editor.doses(source, what.expand(len(source), -1), place.mask)
                for source, place in zip(sources, places, strict=True)]


def edited(editor: RegionEditor, world: World, sources: Sequence[Source], places: Sequence[Place],
           doses: Sequence[Tensor], prompt: str, strength: float, precision: str) -> Tensor:
    """(N, 3, R, R): every source edited where it was located, the same pictures as RegionEditor's own."""
    what = world.clip.encode_text([prompt])
    with autocast(precision, world.device):
        return torch.cat([editor.apply(source, editor.mapper(source.styles, what.expand(len(source), -1), strength * dose),
                                       place.mask, keep_features=False).image
                          for source, place, dose in zip(sources, places, doses, strict=True)])


@torch.no_grad()
def seconds_per_edit(editor: RegionEditor, world: World, w: Tensor, config: EvaluateConfig) -> dict:
    """What a user waits for one face w (1, style_dim) and one text until the picture is in main memory: with the source
    known from an earlier edit, and made from w first."""
    known = editor.source(w)

    def edit(source: Source) -> Tensor:
        text = world.clip.encode_text([world.prompts[0]])
        with autocast(config.precision, world.device):
            return editor(source, text, text, config.strength, threshold_for(config.coverage)).image.cpu()

    return {"source_known": median_seconds(lambda: edit(known)), "from_w": median_seconds(lambda: edit(editor.source(w))),
            "threads": torch.get_num_threads(), "device": str(world.device)}


def median_seconds(action: Callable[[], object], runs: int = TIMED_EDITS) -> float:
    """Median of some runs, after one that warms up."""
    action()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def page(report: dict) -> str:
    """A report as Markdown: the table of prompts, that of the sweep, the reader's own accuracy, the time of an edit."""
    means_of = [mean(list(report["reader_balanced_accuracy"][kind].values())) for kind in ("exact", "unedited")]
    accuracies = ["unknown" if value is None else f"{value:.3f}" for value in means_of]         # of one face there is none
    seconds = report["seconds_per_edit"]
    return "\n\n".join([
        f"{report['faces']} unseen faces, strength {report['strength']}, coverage {report['coverage']}:",
        table({**report["prompts"], "**mean**": report["mean"]}, "prompt"),
        "Means over the prompts by strength:",
        table({str(row["strength"]): row["mean"] for row in report["sweep"]}, "strength"),
        f"The reader's own balanced accuracy: {accuracies[0]} on pictures whose truth is exact, {accuracies[1]} on these "
        "faces unedited.",
        f"Seconds per edit: {seconds['source_known']:.3f} with the source known, {seconds['from_w']:.3f} from w "
        f"({seconds['device']}, {seconds['threads']} threads).",
    ]) + "\n"
