"""Ours side by side with the methods that people would use instead, in a world where the truth about faces is known.

    python -m benchmarks.compare                        all methods: benchmarks/results/comparison.{json,md,png}
    python -m benchmarks.compare --only mapper          one of them anew; the others' figures stay
    python -m benchmarks.compare --faces 8 --results x  a quick look, written elsewhere

Every method edits the same unseen faces with every prompt at five strengths of its own, on the same generator and CLIP, and
`attention.evaluation.metrics` measures them all. Latent optimisation, two seconds a face and a setting, edits a subset:
the first --subset_faces faces and every third prompt, and is compared with ours on those.

"Wins" compares preservation at equal success, prompt by prompt: at the highest success that both methods reach, what each
still has outside of the true part, between the strengths by straight lines (strength 0 changes nothing). A method that
never succeeds at a prompt is not compared there.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, Field, field_validator, model_validator
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from attention.baselines import FOLDER, METHODS, Method
from attention.baselines.base import remake
from attention.config import DEVICE, FACES, SEED, Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.evaluation.generated import median_seconds
from attention.evaluation.metrics import COLUMNS, Asked, means, measure, plot_sweep
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder, write_atomically, write_text
from attention.files.reading import read_report
from attention.generator import sample_z
from attention.inversion.perceptual import load_lpips, lpips_available
from attention.sheets import edit_sheet
from attention.worlds.registry import load_world
from attention.worlds.truth import Faces
from attention.worlds.world import World

RESULTS = Path(__file__).parent / "results"
SLOW = ("optimisation",)            # methods that edit the subset
EVERY_PROMPT_OF_SLOW = 3
# What is preserved -> its value in a picture without any change, as `measure` counts it; whether more is better; its name.
PRESERVED = {"psnr_outside": (80.0, True, "PSNR"), "mse_outside": (0.0, False, "MSE"), "ssim_outside": (1.0, True, "SSIM"),
             "largest_outside": (0.0, False, "the largest change")}
SHOWN = ("success", "collateral", "psnr_outside", "ssim_outside", "mse_outside", "lpips_outside", "largest_outside", "iou",
         "identity", "clip_gain")           # columns of the table
OURS_ON_SUBSET = "ours on the faces and prompts of the optimisation"
SHEET_FACES, SHEET_PROMPTS = 3, ("grey hair", "red lipstick", "smiling", "glasses", "tanned skin", "beard")


class CompareConfig(Config):
    """Options."""

    only: str | None = option(None, "methods, separated by commas")
    prompts: str | None = option(None, "prompts, separated by commas; default: all that the world knows")
    faces: int = option(64, "unseen faces", min=1, max=FACES)
    subset_faces: int = option(8, "faces that slow methods edit", min=1, max=FACES)
    seed: int = option(4242, "of the faces: those of attention.evaluate", min=0, max=SEED)
    domain: str = option("drawn", "a world that knows the truth about its faces")
    checkpoints: Path = option(FOLDER / "drawn", "folder of the trained methods")
    results: Path = option(RESULTS, "folder to write to")
    device: str = option("auto", DEVICE)


Figures = dict[str, float | None]


class Sweep(BaseModel):
    """A method's figures at one strength: means, and by prompt."""

    strength: float
    mean: Figures
    prompts: dict[str, Figures]

    @field_validator("prompts")
    @classmethod
    def _can_be_compared(cls, prompts: dict[str, Figures]) -> dict[str, Figures]:
        for prompt, figures in prompts.items():
            if absent := [name for name in ("success", *PRESERVED) if name not in figures]:
                raise ValueError(f"{prompt!r} lacks {absent[0]}")
        return prompts


class Measured(BaseModel):
    """What is known of a method."""

    name: str
    given_mask: bool
    faces: int
    strength: float
    training: dict[str, float]
    seconds_per_edit: float
    minutes_of_this_measurement: float
    sweep: list[Sweep] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_its_default_strength(self) -> "Measured":
        if self.strength not in [row.strength for row in self.sweep]:
            raise ValueError(f"the sweep lacks the strength {self.strength}")
        return self


class Comparison(BaseModel):
    """comparison.json, as far as it is taken up again."""

    domain: str = "drawn"
    faces: int
    subset_faces: int
    seed: int
    prompts: list[str]
    methods: dict[str, Measured]
    ours_on_subset: Measured | None = None

    @model_validator(mode="after")
    def _has_all_prompts(self) -> "Comparison":
        for key, method in self.methods.items():
            wanted = self.prompts[::EVERY_PROMPT_OF_SLOW] if key in SLOW else self.prompts
            if any(set(row.prompts) != set(wanted) for row in method.sweep):
                raise ValueError(f"{key} was measured with other prompts")
        return self


def own_folder(cls: type[CompareConfig], given: Mapping[str, Any]) -> dict[str, Path]:
    """Where the trained methods of the world that is asked for lie, if no flag says it."""
    return {"checkpoints": FOLDER / Path(given.get("domain", "drawn")).stem}


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, write, print; returns the path of comparison.json."""
    config = parse_config(CompareConfig, argv, __doc__, own_folder)
    chosen = words(config.only) or list(METHODS)
    if unknown := [name for name in chosen if name not in METHODS]:
        raise UserError(f"--only names {unknown[0]!r}, expected some of {', '.join(METHODS)}")
    world = load_world(config.domain, device=config.device).preview()
    prompts = words(config.prompts) or list(world.prompts)
    if unknown := [prompt for prompt in prompts if prompt not in world.prompts]:
        raise UserError(f"--prompts names {unknown[0]!r}, expected some of {', '.join(world.prompts)}")
    z = sample_z(config.faces, world.generator.style_dim, config.seed)
    faces, w = world.truth.faces(z), world.w_from_z(z)                  # a world without the truth is told before the work,
    methods = [METHODS[name](world, config.checkpoints) for name in chosen]         # and so is a missing file
    costs = {method.key: training(method.key, world, config.checkpoints) for method in methods}

    run_folder(config.results, "--results")
    report = earlier(config, {"domain": world.name, "faces": config.faces, "subset_faces": config.subset_faces,
                              "seed": config.seed, "prompts": prompts, "threads": torch.get_num_threads(),
                              "device": str(world.device)})
    few = slice(config.subset_faces)
    subset = prompts[::EVERY_PROMPT_OF_SLOW], w[few], faces.take(few)
    for method in methods:
        edits = subset if method.key in SLOW else (prompts, w, faces)
        report["methods"][method.key] = run(method, world, *edits, costs[method.key])
        if method.key == "ours":
            report["ours_on_subset"] = run(method, world, *subset, costs[method.key])
        report["methods"] = {key: report["methods"][key] for key in METHODS if key in report["methods"]}
        write(report, config.results)                       # what is measured stays, whatever stops the next one
    shown = [prompt for prompt in SHEET_PROMPTS if prompt in prompts] or prompts[:1]
    methods = [METHODS[name](world, config.checkpoints) for name in report["methods"]]
    sheet = pictures(methods, shown, w[:SHEET_FACES], faces.take(slice(SHEET_FACES)), world)
    write_atomically(config.results / "comparison_edits.jpg", lambda path: sheet.save(path, format="JPEG", quality=85))
    print(page(report))
    return config.results / "comparison.json"


def words(text: str | None) -> list[str]:
    """What stands between the commas of a flag, once."""
    return list(dict.fromkeys(word.strip() for word in text.split(","))) if text else []


def earlier(config: CompareConfig, settings: dict) -> dict:
    """The report that is in the folder already, with its methods; or an empty one of these settings.

    Raises:
        UserError: it was measured with other settings, or is garbled.
    """
    path = config.results / "comparison.json"
    if not path.exists():
        return {"methods": {}, **settings}
    try:
        found = read_report(path, "a comparison", Comparison).model_dump()
    except UserError as error:
        raise UserError(f"{path} cannot be read as an earlier comparison ({error}); delete it, or name another folder with "
                        "--results") from None
    if other := [name for name in ("domain", "faces", "subset_faces", "seed", "prompts") if found[name] != settings[name]]:
        raise UserError(f"{path} was measured with other {other[0]} than these; name another folder with --results")
    if found["ours_on_subset"] is None:
        del found["ours_on_subset"]
    return {**found, **settings}


def run(method: Method, world: World, prompts: Sequence[str], w: Tensor, faces: Faces,
        cost: dict[str, float]) -> dict:
    """A method's figures by strength and prompt, on the faces of w (N, style_dim); `cost` is that of its training."""
    begun = time.monotonic()
    before, lpips = world.picture(w), load_lpips(device=world.device) if lpips_available() else None
    rows: dict[float, dict] = {strength: {} for strength in sorted(set(method.strengths))}
    seen = world.truth.read(before.clamp(-1, 1), faces)
    for prompt in tqdm(prompts, desc=method.name):
        asked = Asked.of(world.truth, faces, prompt, seen)
        for strength, figures in rows.items():
            images, gated = method.edit(w, prompt, strength, faces)                # all at once: sources are made once
            figures[prompt] = measure(before, images, gated, asked, world.clip,
                                      lpips if strength == method.strength else None)
    one = prompts[0], method.strength, faces.take(slice(1))
    return {"name": method.name, "given_mask": method.given_mask, "faces": len(w), "strength": method.strength,
            "training": cost,
            "seconds_per_edit": median_seconds(lambda: method.edit(w[:1].clone(), *one)),
            "minutes_of_this_measurement": (time.monotonic() - begun) / 60,
            "sweep": [{"strength": strength, "mean": means(figures), "prompts": figures}
                      for strength, figures in rows.items()]}


def training(key: str, world: World, checkpoints: Path) -> dict[str, float]:
    """Minutes of training, in all and for each prompt that it serves; nothing for a method without it, or where nobody
    wrote them down.

    Ours are those of the main job, regions and evaluation included, on two cores; others are processor minutes.
    """
    if key in ("ours", "true_part"):
        assert world.entry.editor is not None                       # the method has loaded it
        minutes = json.loads((world.entry.editor / "manifest.json").read_text()).get("minutes", {}).get("editor")
        if minutes is None:
            return {}
        return {"minutes": minutes, "minutes_per_prompt": minutes / len(world.prompts), "cores": 2}
    path = checkpoints / f"{key}.safetensors"
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        said = file.metadata()
    try:
        found = {name: float(said[name]) for name in ("minutes", "minutes_per_prompt")}
    except (KeyError, ValueError):
        found = {"minutes": math.nan}
    if not all(0 <= value < math.inf for value in found.values()):
        raise UserError(f"{path} does not say how many minutes its training took; make it again with: "
                        f"{remake(key, world)}")
    return found


def wins(report: dict, preserved: str) -> dict:
    """Who preserves more at equal success, by a key of PRESERVED.

    Returns:
        "methods": for each that changes something, its prompts with what ours and it preserve and whether ours preserves
        more (None: one of them never succeeds); "all": the prompts for which ours preserves more than every method that is
        not given the mask and is compared there.
    """
    methods = report["methods"]
    against: dict[str, dict] = {}
    for key, other in methods.items():
        if key in ("ours", "nothing") or "ours" not in methods:
            continue
        ours = report["ours_on_subset"] if key in SLOW else methods["ours"]
        prompts = {prompt: duel(curve(ours, prompt, preserved), curve(other, prompt, preserved), PRESERVED[preserved][1])
                   for prompt in other["sweep"][0]["prompts"]}
        against[key] = {"won": sum(row["won"] is True for row in prompts.values()),
                        "of": sum(row["won"] is not None for row in prompts.values()), "prompts": prompts}
    fair = [entry["prompts"] for key, entry in against.items() if not methods[key]["given_mask"]]
    outcomes = {prompt: [rows[prompt]["won"] for rows in fair if rows.get(prompt, {}).get("won") is not None]
                for prompt in (methods["ours"]["sweep"][0]["prompts"] if fair else ())}
    compared = {prompt: all(won) for prompt, won in outcomes.items() if won}
    lost = [prompt for prompt, won in compared.items() if not won]
    return {"methods": against, "all": {"won": len(compared) - len(lost), "of": len(compared), "lost": lost}}


def duel(ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]], more: bool) -> dict:
    """What two curves preserve at the highest success that both reach; more (or less) of it is better."""
    level = min(max(success for success, _ in points) for points in (ours, theirs))
    kept, other = (preserved_at(level, points, more) for points in (ours, theirs))
    won = (kept > other if more else kept < other) if level > 0 else None
    return {"success": level, "ours": kept, "theirs": other, "won": won}


def curve(method: dict, prompt: str, preserved: str) -> list[tuple[float, float]]:
    """(success, what is preserved) of a prompt over the sweep, from strength 0 on; without faces for it, only that."""
    rows = [row["prompts"][prompt] for row in method["sweep"]]
    known = [(row["success"], row[preserved]) for row in rows if row["success"] is not None]
    return [(0.0, PRESERVED[preserved][0]), *known]


def preserved_at(level: float, points: Sequence[tuple[float, float]], more: bool = True) -> float:
    """The best that a curve, with straight lines between its points, preserves where it has at least this success."""
    reached = [kept for success, kept in points if success >= level]
    for (low, first), (high, second) in pairwise(points):
        if min(low, high) < level <= max(low, high):
            reached.append(first + (second - first) * (level - low) / (high - low))
    return max(reached) if more else min(reached)


def write(report: dict, folder: Path) -> None:
    """JSON, Markdown and the plot."""
    report["wins"] = {preserved: wins(report, preserved) for preserved in PRESERVED}
    write_text(folder / "comparison.json", json.dumps(rounded(report), separators=(",", ":")))
    write_text(folder / "comparison.md", page(report))
    curves = {entry["name"]: [(row["mean"]["success"], row["mean"]["psnr_outside"]) for row in entry["sweep"]]
              for entry in report["methods"].values()}
    plot_sweep(curves, folder / "comparison.png")


def pictures(methods: Sequence[Method], prompts: Sequence[str], w: Tensor, faces: Faces, world: World) -> Image.Image:
    """A block for every prompt: faces down, methods across with their masks, each at its default strength."""
    blocks = []
    for prompt in prompts:
        images, found = zip(*(method.edit(w, prompt, method.strength, faces) for method in methods), strict=True)
        masks = [torch.ones(len(w), 1, 8, 8) if mask is None else mask for mask in found]
        blocks.append(edit_sheet(world.picture(w), [f"{prompt}: {method.key}" for method in methods], images, masks))
    sheet = Image.new("RGB", (blocks[0].width, sum(block.height for block in blocks)), "white")
    for number, block in enumerate(blocks):
        sheet.paste(block, (0, number * block.height))
    return sheet


def page(report: dict) -> str:
    """The table as Markdown, every method at its default strength, and who wins at equal success."""
    by_psnr, entries = wins(report, "psnr_outside")["methods"], dict(report["methods"])
    for key in SLOW:
        if key in entries and "ours_on_subset" in report:
            entries["ours_on_subset"] = {**report["ours_on_subset"], "name": OURS_ON_SUBSET}
    rows = {}
    for key, entry in entries.items():
        trained, won = entry["training"], by_psnr.get(key)
        rows[entry["name"] + (f" ({entry['faces']} faces, every third prompt)" if key in SLOW else "")] = {
            **next(row["mean"] for row in entry["sweep"] if row["strength"] == entry["strength"]),
            "seconds": entry["seconds_per_edit"],
            "minutes": f"{trained['minutes_per_prompt']:.2f}{' (two cores)' * ('cores' in trained)}" if trained else None,
            "won": f"{won['won']} of {won['of']}" if won else None}
    columns = {name: COLUMNS[name] for name in SHOWN} | {
        "seconds": ("s an edit", ".3f"), "minutes": ("training, min a prompt", ""), "won": ("ours preserves more", "")}
    told = markdown(rows, "method", columns) + "\n"
    for key, (_, _, name) in PRESERVED.items():
        beaten = wins(report, key)["all"]
        if beaten["of"]:
            lost = f" (not: {', '.join(beaten['lost'])})" if beaten["lost"] else ""
            told += (f"\nBy {name}, ours preserves more at equal success than every method that is not given the mask for "
                     f"{beaten['won']} of {beaten['of']} prompts{lost}.\n")
    return told


def rounded(value):
    """Numbers of a report to five digits, so that the file stays small."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    exit_with_message(main)
