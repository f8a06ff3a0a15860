"""Measure an editor on drawn faces, where the truth is known to the pixel.

    python -m attention.evaluate --run runs/drawn
    python -m attention.evaluate --run runs/drawn --strengths 0.1       # no sweep, a quarter of the time

Every prompt of the domain edits the same unseen faces, at every strength of the sweep. Writes RUN/metrics.json, .md (the
table, at --strength, which is also printed), RUN/edits.png and RUN/sweep.png. Pictures count as a screen shows them:
  success       share of the faces that lacked the attribute for which the attribute reader now sees it
  collateral    share of a face's other attributes that the reader sees changed, of those that were plainly true or false
  PSNR, SSIM,   of edit against source outside the prompt's true part, grown by 2 px, the inside taken from the source;
    MSE, LPIPS    pixels in [0, 1]; LPIPS where the weights of VGG-16 are here
  largest out   largest change of a channel there, mean over faces
  in / out      mean absolute change inside and outside the true part, pictures in [-1, 1]
  IoU           of the gated mask (before its blur) with the true part, where = the prompt; again with the part's name
  identity      share of faces whose place, width and height the reader sees unchanged
  CLIP gain     rise of the cosine similarity to the prompt
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.checkpoints import write_atomically
from attention.config import EvaluateConfig, parse_config
from attention.domains import Domain
from attention.drawn.concepts import BY_PHRASE, PART_NAMES
from attention.drawn.faces import FaceParams
from attention.drawn.reader import AttributeReader, accuracy
from attention.editor import RegionEditor, Source, autocast
from attention.errors import UserError, exit_with_message
from attention.evaluation.metrics import Truth, iou, mean, means, measure, plot_sweep, table
from attention.perceptual import VGG_WEIGHTS, load_lpips, lpips_available
from attention.published import SHIPPED, download_command
from attention.runs import load_run
from attention.sheets import edit_sheet, evenly
from attention.spatial_attention import blur_mask, threshold_attention, threshold_for

FACES_AT_ONCE = 16
SHEET_FACES, SHEET_PROMPTS = 4, 16
TIMED_EDITS = 9         # of which the median counts


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, load, measure every prompt at every strength, write; returns the path of metrics.json."""
    config = parse_config(EvaluateConfig, argv, __doc__)
    strengths = sorted({*parse_strengths(config.strengths), config.strength})
    editor, domain, trained = load_run(config.run, config.device, config.trust)
    if not domain.entry.drawn:
        raise UserError(f"{config.run} edits {domain.name}, but this evaluation needs the truth that only drawn faces "
                        "have; evaluate a run of --domain drawn")
    reader = AttributeReader.load(SHIPPED / "reader.safetensors").to(domain.device)
    z = torch.randn(config.faces, domain.generator.style_dim, generator=torch.Generator().manual_seed(config.seed))
    params, w = FaceParams.from_z(z.numpy()), domain.w_from_z(z)
    sources = [editor.source(part) for part in w.split(FACES_AT_ONCE)]
    before = torch.cat([source.image for source in sources])

    rows, sheet = measure_all(editor, domain, reader, sources, params, strengths, config)
    sweep = [{"strength": strength, "mean": means(rows[strength]), "prompts": rows[strength]} for strength in strengths]
    report = {"run": str(config.run), "faces": config.faces, "strength": config.strength, "coverage": config.coverage,
              "training_steps": trained.step, "reader_balanced_accuracy_on_drawings": reader.accuracies["drawings"],
              "reader_balanced_accuracy_on_unedited": accuracy(reader, before, params),
              "seconds_per_edit": seconds_per_edit(editor, domain, w[:1], config),
              "mean": means(rows[config.strength]), "prompts": rows[config.strength], "sweep": sweep}
    told = page(report)
    write_atomically(config.run / "metrics.json", lambda path: path.write_text(json.dumps(report, indent=1)))
    write_atomically(config.run / "metrics.md", lambda path: path.write_text(told))
    write_atomically(config.run / "edits.png", lambda path: sheet.save(path, format="PNG"))
    curve = [(row["mean"]["success"] or 0.0, row["mean"]["psnr_outside"]) for row in sweep]
    plot_sweep({str(config.run): curve}, config.run / "sweep.png")
    print(told)
    print(f"pictures in {config.run / 'edits.png'}, the sweep in {config.run / 'sweep.png'}, figures in "
          f"{config.run / 'metrics.json'}")
    return config.run / "metrics.json"


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
def measure_all(editor: RegionEditor, domain: Domain, reader: AttributeReader, sources: Sequence[Source],
                params: FaceParams, strengths: Sequence[float],
                config: EvaluateConfig) -> tuple[dict[float, dict[str, dict]], Image.Image]:
    """The figures of every prompt at every strength, {strength: {prompt: figures}}, and a sheet of edits at --strength.

    Sources and masks are the same for all strengths. LPIPS, which takes longer than the edit, is measured at --strength.
    """
    lpips = load_lpips(device=domain.device) if lpips_available() else None
    if lpips is None:
        print(f"LPIPS is left out, {VGG_WEIGHTS} is missing; get it with: {download_command(VGG_WEIGHTS)}", file=sys.stderr)
    before = torch.cat([source.image for source in sources])
    rows, shown, by_name = {strength: {} for strength in strengths}, {}, {}
    for prompt in tqdm(domain.entry.prompts, desc="prompts"):
        concept = BY_PHRASE[prompt]
        truth, maps = Truth.of(params, concept), gated_maps(editor, domain, sources, prompt, config.coverage)
        if concept.part not in by_name:
            name = PART_NAMES[concept.part][0]
            by_name[concept.part] = torch.cat(gated_maps(editor, domain, sources, name, config.coverage))
        named, gated = iou(by_name[concept.part], truth.part.to(domain.device)), torch.cat(maps)
        for strength in strengths:
            after = edited(editor, domain, sources, maps, prompt, strength, config.precision)
            figures = measure(before, after, gated, truth, concept, reader, domain.clip,
                              lpips if strength == config.strength else None)
            rows[strength][prompt] = {**figures, "iou_part_name": named}
            if strength == config.strength:
                shown[prompt] = (after[:SHEET_FACES], blur_mask(gated[:SHEET_FACES]))
    chosen = evenly(list(shown), SHEET_PROMPTS)
    return rows, edit_sheet(before[:SHEET_FACES], chosen, *zip(*(shown[prompt] for prompt in chosen), strict=True))


def gated_maps(editor: RegionEditor, domain: Domain, sources: Sequence[Source], place: str,
               coverage: float) -> list[Tensor]:
    """The gated attention of every source to a text, each (B, 1, h, h)."""
    text = domain.clip.encode_text([place])
    return [threshold_attention(editor.attend(source, text.expand(len(source), -1))[1], threshold_for(coverage))
            for source in sources]


def edited(editor: RegionEditor, domain: Domain, sources: Sequence[Source], maps: Sequence[Tensor], prompt: str,
           strength: float, precision: str) -> Tensor:
    """(N, 3, R, R): every source edited inside its gated map, the same pictures as RegionEditor's own."""
    text = domain.clip.encode_text([prompt])
    with autocast(precision, domain.device):
        return torch.cat([editor.forward_with_mask(source, text.expand(len(source), -1), blur_mask(gated), strength).image
                          for source, gated in zip(sources, maps, strict=True)])


@torch.no_grad()
def seconds_per_edit(editor: RegionEditor, domain: Domain, w: Tensor, config: EvaluateConfig) -> dict:
    """What a user waits for one face w (1, style_dim) and one text until the picture is in main memory: with the source
    known from an earlier edit, and made from w first."""
    known = editor.source(w)

    def edit(source: Source) -> Tensor:
        text = domain.clip.encode_text([domain.entry.prompts[0]])
        with autocast(config.precision, domain.device):
            return editor(source, text, text, config.strength, threshold_for(config.coverage)).image.cpu()

    return {"source_known": median_seconds(lambda: edit(known)), "from_w": median_seconds(lambda: edit(editor.source(w))),
            "threads": torch.get_num_threads(), "device": str(domain.device)}


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
    accuracies = [mean(list(report[f"reader_balanced_accuracy_on_{kind}"].values())) for kind in ("drawings", "unedited")]
    accuracies = ["unknown" if value is None else f"{value:.3f}" for value in accuracies]       # of one face there is none
    seconds = report["seconds_per_edit"]
    return "\n\n".join([
        f"{report['faces']} unseen faces, strength {report['strength']}, coverage {report['coverage']}:",
        table({**report["prompts"], "**mean**": report["mean"]}, "prompt"),
        "Means over the prompts by strength:",
        table({str(row["strength"]): row["mean"] for row in report["sweep"]}, "strength"),
        f"The reader's own balanced accuracy: {accuracies[0]} on held-out drawings, {accuracies[1]} on these faces "
        "unedited.",
        f"Seconds per edit: {seconds['source_known']:.3f} with the source known, {seconds['from_w']:.3f} from w "
        f"({seconds['device']}, {seconds['threads']} threads).",
    ]) + "\n"


if __name__ == "__main__":
    exit_with_message(main)
