"""The evaluation of an editor on unseen generated faces of which the truth is known; see attention/evaluate.py."""

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attention.config import EvaluateConfig
from attention.devices import autocast
from attention.errors import UserError
from attention.evaluation.kept import Figures, Kept, KeptBlock
from attention.evaluation.metrics import Asked, mean, means, measure, plot_sweep, table, together
from attention.evaluation.reports import REPORT, refuse_fewer, refuse_others, usual_folder
from attention.files.disk import run_folder, write_picture, write_text
from attention.files.published import download_command
from attention.generator import sample_z
from attention.inversion.perceptual import VGG_WEIGHTS, load_lpips, lpips_available
from attention.method.editor import Place, RegionEditor, Source
from attention.method.spatial_attention import threshold_for
from attention.sheets import edit_sheet, evenly
from attention.training.folder import EDITOR
from attention.training.runs import load_run, run_of, trained_steps
from attention.worlds.truth import Faces, Seen, balanced_accuracy
from attention.worlds.world import World

BLOCK = 64                  # faces that are in memory with all that edits read of them: 40 MB each at 1024 px
FACES_AT_ONCE = 16
SHEET_FACES, SHEET_PROMPTS = 4, 16
WRITTEN = (REPORT, "metrics.md", "edits.png", "sweep.png")
DECIDING = {"faces", "seed", "strength", "coverage", "precision"}       # options that figures depend on
Rows = dict[float, dict[str, Figures]]                                  # by strength and prompt
LPIPS = Callable[[Tensor, Tensor], Tensor]
TIMED_EDITS = 9         # of which the median counts


def evaluate(config: EvaluateConfig) -> Path:
    """Load a run, measure every prompt at every strength, write; returns the path of metrics.json.

    Raises:
        UserError: the run has no whole editor, or nothing is known of its world's faces.
    """
    strengths = sorted({*parse_strengths(config.strengths), config.strength})
    run = run_of(config.run)
    results = config.results or usual_folder(config.run)
    editor, world, _ = load_run(run, config.device, config.trust, config.ckpt, World.preview)
    run_folder(results, "--results" if config.results else "--run")     # what cannot be written is told before the work
    if config.results:
        refuse_others(results, WRITTEN, {"run": str(config.run)}, "--results")
    refuse_fewer(results, config.faces)
    editor_hash = hashlib.sha256((run / EDITOR).read_bytes()).hexdigest()
    kept = Kept.of(results, {"editor": editor_hash, "generator": world.generator_hash, "prompts": world.prompts,
                             "strengths": strengths, **config.model_dump(include=DECIDING)})

    z = sample_z(config.faces, world.generator.style_dim, config.seed)
    rows, unedited = measured(editor, world, z, strengths, config, kept)
    w = world.w_from_z(z[:SHEET_FACES])
    sweep: list[dict[str, Any]] = [{"strength": strength, "mean": means(rows[strength]),
                                    "prompts": rows[strength]} for strength in strengths]
    report = {"run": str(config.run), "faces": config.faces, "strength": config.strength, "coverage": config.coverage,
              "training_steps": trained_steps(run),
              "reader_balanced_accuracy": {"exact": world.truth.accuracies, "unedited": unedited},
              "seconds_per_edit": seconds_per_edit(editor, world, w[:1], config),
              "mean": means(rows[config.strength]), "prompts": rows[config.strength], "sweep": sweep}
    told = page(report)
    write_text(results / REPORT, json.dumps(report, indent=1))
    write_text(results / "metrics.md", told)
    write_picture(results / "edits.png", sheet(editor, world, w, config))
    curve = [(row["mean"]["success"] or 0.0, row["mean"]["psnr_outside"]) for row in sweep]
    plot_sweep({str(config.run): curve}, results / "sweep.png")
    kept.forget()
    print(told)
    print(f"pictures in {results / 'edits.png'}, the sweep in {results / 'sweep.png'}, figures in "
          f"{results / REPORT}")
    return results / REPORT


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


def measured(editor: RegionEditor, world: World, z: Tensor, strengths: Sequence[float], config: EvaluateConfig,
             kept: Kept) -> tuple[Rows, dict[str, float]]:
    """The figures of every prompt at every strength on the faces of z (N, style_dim), block by block; and how well the
    reader reads these faces unedited, by phrase."""
    lpips = load_lpips(device=world.device) if lpips_available() else None
    if lpips is None:
        print(f"LPIPS is left out, {VGG_WEIGHTS} is missing; get it with: {download_command(VGG_WEIGHTS)}", file=sys.stderr)
    blocks: list[Rows] = []
    states, held = [], []
    for number, block in enumerate(z.split(BLOCK)):
        faces, sources = world.truth.faces(block), [editor.source(w) for w in world.w_from_z(block).split(FACES_AT_ONCE)]
        seen = world.truth.read(torch.cat([source.image for source in sources]).clamp(-1, 1), faces)
        blocks.append(measure_all(editor, world, sources, faces, seen, strengths, config, kept.of_block(number), lpips))
        states.append(faces.states())
        held.append(seen.holds())
    sizes = [len(block) for block in z.split(BLOCK)]
    rows = {strength: {prompt: together([block[strength][prompt] for block in blocks], sizes) for prompt in world.prompts}
            for strength in strengths}
    return rows, balanced_accuracy(world.truth.attributes, np.concatenate(states, axis=1), np.concatenate(held, axis=1))


@torch.no_grad()
def measure_all(editor: RegionEditor, world: World, sources: Sequence[Source], faces: Faces, seen: Seen,
                strengths: Sequence[float], config: EvaluateConfig, kept: KeptBlock, lpips: LPIPS | None) -> Rows:
    """The figures of every prompt at every strength, on a block of faces.

    Sources and masks are the same for all strengths. LPIPS, which takes longer than the edit, is measured at --strength.

    Args:
        seen: what the truth sees in the unedited faces.
        kept: what a stopped evaluation has measured; what is measured here goes there too.
    """
    before = torch.cat([source.image for source in sources])
    rows: Rows = {strength: {} for strength in strengths}
    by_name: dict[str, Tensor] = {}
    for prompt in tqdm(world.prompts, desc="prompts"):
        if not set(strengths) <= kept.figures.get(prompt, {}).keys():
            name = world.truth.part_name(prompt)
            if name not in by_name:
                by_name[name] = joined(locate(editor, world, sources, name, config.coverage))
            asked = Asked.of(world.truth, faces, prompt, seen)
            places = locate(editor, world, sources, prompt, config.coverage)
            gated, doses = joined(places), suited(editor, world, sources, places, prompt, config.precision)
            found = {}
            for strength in strengths:
                after = edited(editor, world, sources, places, doses, prompt, strength, config.precision)
                found[strength] = measure(before, after, gated, asked, world.clip,
                                          lpips if strength == config.strength else None, by_name[name])
            kept.add(prompt, found)
        for strength in strengths:
            rows[strength][prompt] = kept.figures[prompt][strength]
    return rows


@torch.no_grad()
def sheet(editor: RegionEditor, world: World, w: Tensor, config: EvaluateConfig) -> Image.Image:
    """Faces of w (N, style_dim) edited by prompts that are spread over all, with the masks."""
    sources, images, masks = [editor.source(w)], [], []
    chosen = evenly(list(world.prompts), SHEET_PROMPTS)
    for prompt in chosen:
        places = locate(editor, world, sources, prompt, config.coverage)
        doses = suited(editor, world, sources, places, prompt, config.precision)
        images.append(edited(editor, world, sources, places, doses, prompt, config.strength, config.precision))
        masks.append(places[0].mask)
    return edit_sheet(sources[0].image, chosen, images, masks)


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
    text, images = world.clip.encode_text([prompt]), []
    with autocast(precision, world.device):
        for source, place, dose in zip(sources, places, doses, strict=True):
            what = text.expand(len(source), -1)
            styles = editor.mapper(source.styles, what, strength * dose)
            images.append(editor.apply(source, styles, place.mask, keep_features=False, what=what).image)
    return torch.cat(images)


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
