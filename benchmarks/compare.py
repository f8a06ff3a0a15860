"""Ours side by side with the methods that people would use instead, on drawn faces, where the truth is known.

    python -m benchmarks.compare                        all methods: benchmarks/results/comparison.{json,md,png}
    python -m benchmarks.compare --only ours,mapper     some of them

Every method edits the same unseen faces with every prompt at five strengths of its own, on the same generator and CLIP, and
`attention.evaluation.metrics` measures them all. Latent optimisation, half a second a face and a setting, edits a subset:
the first --subset_faces faces and every third prompt.

"Wins" compares preservation at equal success, prompt by prompt: at the highest success that both methods reach, the PSNR
outside the true part that each still has there, between the strengths by straight lines (strength 0 changes nothing).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from attention.baselines import FOLDER, METHODS, Method
from attention.checkpoints import write_atomically
from attention.config import option, parse_config
from attention.domains import Domain, load_domain
from attention.drawn.concepts import BY_PHRASE
from attention.drawn.faces import FaceParams
from attention.drawn.reader import AttributeReader
from attention.errors import UserError, exit_with_message
from attention.evaluate import median_seconds
from attention.evaluation.metrics import COLUMNS, Truth, means, measure, plot_sweep
from attention.published import SHIPPED
from attention.sheets import edit_sheet

RESULTS = Path(__file__).parent / "results"
SLOW = ("optimisation",)            # methods that edit the subset
EVERY_PROMPT_OF_SLOW = 3
UNCHANGED = 80.0            # dB of a picture without any change, as `measure` counts it
SHEET_FACES, SHEET_PROMPTS = 3, ("grey hair", "red lipstick", "smiling", "glasses", "tanned skin", "beard")


@dataclass(frozen=True)
class CompareConfig:
    """Options."""

    only: str | None = option(None, "methods, separated by commas")
    prompts: str | None = option(None, "prompts, separated by commas; default: all that the world knows")
    faces: int = option(64, "unseen faces", min=1)
    subset_faces: int = option(8, "faces that slow methods edit", min=1)
    seed: int = option(4242, "of the faces: those of attention.evaluate", min=0)
    checkpoints: Path = option(FOLDER, "folder of the trained methods")
    results: Path = option(RESULTS, "folder to write to")
    device: str = option("auto", "cpu, cuda, cuda:N, or auto")


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, write, print; returns the path of comparison.json."""
    config = parse_config(CompareConfig, argv, __doc__)
    chosen = config.only.split(",") if config.only else list(METHODS)
    if unknown := [name for name in chosen if name not in METHODS]:
        raise UserError(f"--only names {unknown[0]!r}, expected some of {', '.join(METHODS)}")
    domain = load_domain("drawn", device=config.device)
    prompts = config.prompts.split(",") if config.prompts else domain.entry.prompts
    if unknown := [prompt for prompt in prompts if prompt not in BY_PHRASE]:
        raise UserError(f"--prompts names {unknown[0]!r}, expected some of {', '.join(domain.entry.prompts)}")
    methods = [METHODS[name](domain, config.checkpoints) for name in chosen]       # a missing file is told before the work
    reader = AttributeReader.load(SHIPPED / "reader.safetensors").to(domain.device)
    z = torch.randn(config.faces, domain.generator.style_dim, generator=torch.Generator().manual_seed(config.seed))
    params, w = FaceParams.from_z(z.numpy()), domain.w_from_z(z)

    report = {"faces": config.faces, "subset_faces": config.subset_faces, "threads": torch.get_num_threads(),
              "device": str(domain.device), "methods": {}}
    few = slice(config.subset_faces)
    subset = prompts[::EVERY_PROMPT_OF_SLOW], w[few], params.take(few)
    for method in methods:
        edits = subset if method.key in SLOW else (prompts, w, params)
        report["methods"][method.key] = run(method, domain, reader, *edits, config.checkpoints)
    if {"ours", *SLOW} <= set(chosen):
        report["ours_on_subset"] = run(methods[chosen.index("ours")], domain, reader, *subset, config.checkpoints)
    report["wins"], report["beats_all"] = wins(report)
    config.results.mkdir(parents=True, exist_ok=True)
    write(report, config.results)
    shown = [prompt for prompt in SHEET_PROMPTS if prompt in prompts] or prompts[:1]
    sheet = pictures(methods, shown, w[:SHEET_FACES], params.take(slice(SHEET_FACES)), domain)
    write_atomically(config.results / "comparison_edits.png", lambda path: sheet.save(path, format="PNG"))
    print(page(report))
    return config.results / "comparison.json"


def run(method: Method, domain: Domain, reader: AttributeReader, prompts: Sequence[str], w: Tensor, params: FaceParams,
        checkpoints: Path) -> dict:
    """A method's figures by strength and prompt, on faces w (N, style_dim) of `params`."""
    begun = time.monotonic()
    before = unedited(domain, w)
    rows: dict[float, dict] = {strength: {} for strength in sorted(set(method.strengths))}
    for prompt in tqdm(prompts, desc=method.name):
        truth = Truth.of(params, BY_PHRASE[prompt])
        for strength, figures in rows.items():
            images, gated = method.edit(w, prompt, strength, params)               # all at once: sources are made once
            figures[prompt] = measure(before, images, gated, truth, BY_PHRASE[prompt], reader, domain.clip)
    one = prompts[0], method.strength, params.take(slice(1))
    return {"name": method.name, "given_mask": method.given_mask, "faces": len(w), "strength": method.strength,
            "training": training(method.key, checkpoints, len(domain.entry.prompts)),
            "seconds_per_edit": median_seconds(lambda: method.edit(w[:1].clone(), *one)),
            "minutes_of_this_measurement": (time.monotonic() - begun) / 60,
            "sweep": [{"strength": strength, "mean": means(figures), "prompts": figures}
                      for strength, figures in rows.items()]}


@torch.no_grad()
def unedited(domain: Domain, w: Tensor) -> Tensor:
    """The pictures (B, 3, R, R) of w (B, style_dim)."""
    return domain.generator.synthesis(domain.generator.styles(w), feature_side=0).image


def training(key: str, checkpoints: Path, prompts: int) -> dict[str, float]:
    """Minutes of training, in all and for each prompt that it serves; nothing for a method without training.

    Ours are those of the main job on two cores, regions and evaluation included; others are processor minutes.
    """
    if key in ("ours", "true_part"):
        minutes = json.loads((SHIPPED / "manifest.json").read_text())["minutes"]["editor"]
        return {"minutes": minutes, "minutes_per_prompt": minutes / prompts}
    path = checkpoints / f"{key}.safetensors"
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        said = file.metadata()
    return {name: float(said[name]) for name in ("minutes", "minutes_per_prompt")}


def wins(report: dict) -> tuple[dict[str, dict], dict]:
    """For each method that changes something, prompt by prompt: what ours and it preserve at equal success, and whether
    ours preserves more; and the prompts for which ours preserves more than every method that is not given the mask."""
    methods, against = report["methods"], {}
    for key, other in methods.items():
        if key in ("ours", "nothing") or "ours" not in methods:
            continue
        ours, prompts = report["ours_on_subset"] if key in SLOW else methods["ours"], {}
        for prompt in other["sweep"][0]["prompts"]:
            both = [curve(ours, prompt), curve(other, prompt)]
            level = min(max(success for success, _ in points) for points in both)
            kept, theirs = (preserved_at(level, points) for points in both)
            prompts[prompt] = {"success": level, "ours": kept, "theirs": theirs, "won": kept >= theirs}
        against[key] = {"won": sum(row["won"] for row in prompts.values()), "of": len(prompts), "prompts": prompts}
    fair = [entry["prompts"] for key, entry in against.items() if not methods[key]["given_mask"]]
    names = list(methods["ours"]["sweep"][0]["prompts"]) if fair else []
    beaten = [name for name in names if all(prompts[name]["won"] for prompts in fair if name in prompts)]
    return against, {"won": len(beaten), "of": len(names), "lost": [name for name in names if name not in beaten]}


def curve(method: dict, prompt: str) -> list[tuple[float, float]]:
    """(success, PSNR outside) of a prompt over the sweep, from strength 0 on."""
    rows = [row["prompts"][prompt] for row in method["sweep"]]
    return [(0.0, UNCHANGED), *((row["success"] or 0.0, row["psnr_outside"]) for row in rows)]


def preserved_at(level: float, points: Sequence[tuple[float, float]]) -> float:
    """The highest PSNR at which a curve, with straight lines between its points, has at least this success."""
    best = max(psnr for success, psnr in points if success >= level)
    for (low, first), (high, second) in pairwise(points):
        if min(low, high) < level <= max(low, high):
            best = max(best, first + (second - first) * (level - low) / (high - low))
    return best


def write(report: dict, folder: Path) -> None:
    """JSON, Markdown and the plot."""
    write_atomically(folder / "comparison.json", lambda path: path.write_text(json.dumps(rounded(report), indent=1)))
    write_atomically(folder / "comparison.md", lambda path: path.write_text(page(report)))
    curves = {entry["name"]: [(row["mean"]["success"], row["mean"]["psnr_outside"]) for row in entry["sweep"]]
              for entry in report["methods"].values()}
    plot_sweep(curves, folder / "comparison.png")


def pictures(methods: Sequence[Method], prompts: Sequence[str], w: Tensor, params: FaceParams,
             domain: Domain) -> Image.Image:
    """A block for every prompt: faces down, methods across with their masks, each at its default strength."""
    blocks = []
    for prompt in prompts:
        images, masks = zip(*(method.edit(w, prompt, method.strength, params) for method in methods), strict=True)
        masks = [torch.ones(len(w), 1, 8, 8) if mask is None else mask for mask in masks]
        blocks.append(edit_sheet(unedited(domain, w), [f"{prompt}: {method.key}" for method in methods], images, masks))
    sheet = Image.new("RGB", (blocks[0].width, sum(block.height for block in blocks)), "white")
    for number, block in enumerate(blocks):
        sheet.paste(block, (0, number * block.height))
    return sheet


def page(report: dict) -> str:
    """The tables as Markdown: every method at its default strength, and who wins at equal success."""
    rows = {}
    for key, entry in report["methods"].items():
        figures = next(row["mean"] for row in entry["sweep"] if row["strength"] == entry["strength"])
        won = report["wins"].get(key)
        name = entry["name"] + (f" ({entry['faces']} faces, some prompts)" if key in SLOW else "")
        rows[name] = {**{name: figures[name] for name in SHOWN}, "seconds": entry["seconds_per_edit"],
                               "minutes": entry["training"].get("minutes_per_prompt"),
                               "won": f"{won['won']} of {won['of']}" if won else None}
    head = ["method", *(COLUMNS[name][0] for name in SHOWN), "s an edit", "training, min a prompt", "ours preserves more"]
    lines = [head, ["---"] * len(head)]
    for name, row in rows.items():
        cells = ["-" if row[key] is None else format(row[key], COLUMNS[key][1]) for key in SHOWN]
        lines.append([name, *cells, f"{row['seconds']:.3f}", "-" if row["minutes"] is None else f"{row['minutes']:.2f}",
                      row["won"] or "-"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    beats = report["beats_all"]
    lost = f" (not: {', '.join(beats['lost'])})" if beats["lost"] else ""
    return (f"{table}\n\nAt equal success ours preserves more than every method that is not given the mask for "
            f"{beats['won']} of {beats['of']} prompts{lost}.\n")


SHOWN = ("success", "collateral", "psnr_outside", "ssim_outside", "largest_outside", "iou", "identity", "clip_gain")


def rounded(value):
    """Numbers of a report to five digits, so that the file stays small."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    exit_with_message(main)
