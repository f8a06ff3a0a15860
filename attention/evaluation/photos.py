"""The evaluation of an editor on real, aligned pictures; see attention/evaluate_real.py."""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attention.config import RealConfig
from attention.devices import autocast
from attention.errors import UserError
from attention.evaluation.celeba_mask import PUBLISHED_PROMPTS, CelebAMask, labels_of, published_labels
from attention.evaluation.real import (
    Features,
    Judges,
    Originals,
    distances,
    join,
    load_inception,
    macro_jaccard,
    picture_paths,
    pixels_shared,
    read_pictures,
)
from attention.evaluation.reports import REPORT, refuse_others, usual_folder
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder, write_picture, write_text
from attention.files.published import missing
from attention.images import area_resize
from attention.inversion import load_recogniser
from attention.inversion.perceptual import load_lpips
from attention.method.editor import RegionEditor
from attention.method.spatial_attention import threshold_for
from attention.sheets import edit_sheet, evenly
from attention.training.runs import load_run, run_of, trained_steps
from attention.worlds.world import World

WRITTEN = (REPORT, "table.md", "edits.png")
PICTURES_AT_ONCE = 4
SHEET_PROMPTS, SHEET_SIDE = 15, 256     # with the inversions two blocks of eight
ENOUGH_FOR_FID = 2048       # fewer pictures than features: their covariance has no full rank
AGAINST_REAL, FLOOR = "edits against the real pictures", "inversions (nothing edited) against the real pictures"
PUBLISHED_VARIANT = "published variant: edits against their own originals (can be won by doing nothing)"
# Key of a prompt's figures -> heading. Their sizes differ too much for a format each, see `_written`.
HEADINGS = {"clip_improved": "CLIP", "clip_gain": "gain", "identity_inverted": "identity", "identity_photo": "of photo",
            "iou": "IoU",
            **{f"{name.lower()}_{of}": f"{name} {against}" for of, against in (("inverted", "inv"), ("photo", "photo"))
               for name in ("MSE", "PSNR", "SSIM", "LPIPS")}}
DISTANCES = {"fid": ("FID", ".2f"), "kid": ("KID", ""), "kid_subset_size": ("KID subset", ""),
             "inception_score": ("IS", ""), "pictures": ("pictures", ""), "reference": ("reference", "")}


def evaluate(config: RealConfig) -> Path:
    """Load, measure, write; returns the path of metrics.json.

    Raises:
        UserError: an empty folder, labels of other pictures, weights that are asked for and missing, a world without
            encoder, figures of other photos where these would go: before anything is computed.
    """
    folder = config.results or usual_folder(config.run) / "real"
    refuse_others(folder, WRITTEN, {"run": str(config.run), "photos": str(config.photos)}, "--results")
    paths = picture_paths(config.photos)[:config.pictures]
    others = picture_paths(config.real) if config.real else None
    if config.fid and min(len(paths), len(others or paths)) < 2:
        raise UserError(f"{config.photos} or --real holds one picture, but FID and KID need at least 2 on each side; give "
                        "a larger folder, or leave them out with --no_fid")
    masks = CelebAMask(config.masks) if config.masks else None
    if masks is not None:
        masks.check(path.stem for path in paths)
    run = run_of(config.run)
    editor, world, _ = load_run(run, config.device, config.trust, config.ckpt)
    world.encoder                                              # noqa: B018  (loaded now, so that it fails now)
    inception = _inception(config, world)
    left_out: list[str] = []
    judges = Judges(
        world.clip, _optional("identity", config.arcface, lambda path: load_recogniser(path).to(world.device), left_out),
        _optional("LPIPS", config.vgg, lambda path: load_lpips(path, world.device), left_out))
    run_folder(folder, "--results" if config.results else "--run")

    evaluation = Evaluation(config, editor, world, judges, masks, _prompts(config, world), inception)
    real, skipped_real = _features_of(others, world.generator.resolution, inception)
    evaluation.edit_all(paths)
    for reason in (*evaluation.skipped.values(), *skipped_real.values()):
        print(f"skipped: {reason}", file=sys.stderr)
    if masks is not None:
        left_out += [f"labels: {place!r} is no part that CelebAMask-HQ has labels for, so nothing is measured against one"
                     for place in ([config.where] if config.where else evaluation.prompts) if labels_of(place) is None]
    report = {"run": str(config.run), "training_steps": trained_steps(run), "photos": str(config.photos),
              "pictures": evaluation.count, "skipped": evaluation.skipped, "real": str(config.real or config.photos),
              "skipped_real": skipped_real, "strength": config.strength, "coverage": config.coverage,
              "where": config.where or "each prompt", "refine": config.refine, "left_out": left_out,
              "distances": evaluation.distances(real), **evaluation.figures()}
    sheet = evaluation.sheet()
    write_text(folder / REPORT, json.dumps(report, indent=1))
    write_text(folder / "table.md", table(report))
    write_picture(folder / "edits.png", sheet)
    print(table(report))
    print(f"pictures in {folder / 'edits.png'}, figures in {folder / REPORT}")
    return folder / REPORT


class Evaluation:
    """What is known of the edits so far; pictures themselves are kept of the first batch only, small, for the sheet."""

    def __init__(self, config: RealConfig, editor: RegionEditor, world: World, judges: Judges, masks: CelebAMask | None,
                 prompts: Sequence[str], inception: Callable[[Tensor], Features] | None):
        self.config, self.editor, self.world, self.judges = config, editor, world, judges
        self.masks, self.prompts, self.inception = masks, prompts, inception
        with torch.no_grad():
            self.what = world.clip.encode_text(list(prompts))                                   # (P, D)
            self.where = self.what if config.where is None else world.clip.encode_text([config.where] * len(prompts))
        self.skipped: dict[str, str] = {}
        self.count = 0
        self.rows: dict[str, dict[str, list[float]]] = {prompt: defaultdict(list) for prompt in prompts}
        self.inversion: dict[str, list[float]] = defaultdict(list)
        self.features: dict[str, list[Features]] = {"photos": [], "inversions": [], "edits": []}
        self.shown: dict[str, tuple[Tensor, Tensor]] = {}            # title -> pictures and masks
        # Of the published measure, which is one figure of all its prompts, each of which names its own place.
        published = masks is not None and config.where is None and set(PUBLISHED_PROMPTS) <= set(prompts)
        self.shared = dict.fromkeys(PUBLISHED_PROMPTS if published else (), (0, 0))

    def edit_all(self, paths: Sequence[Path]) -> None:
        """Invert, edit and measure every picture that can be read."""
        side = self.world.generator.resolution
        with tqdm(total=len(paths), desc="pictures") as bar:
            for names, photos in read_pictures(paths, side, PICTURES_AT_ONCE, self.skipped):
                whole = [i for i, name in enumerate(names) if self._has_whole_labels(name)]
                if whole:
                    self._edit([names[i] for i in whole], photos[whole])
                self.count += len(whole)
                bar.update(self.count + len(self.skipped) - bar.n)
        if self.count == 0:
            raise UserError(f"none of the {len(paths)} pictures could be used; the first: "
                            f"{next(iter(self.skipped.values()))}")

    def _has_whole_labels(self, path: Path) -> bool:
        """Whether a picture's labels can be read, if there are labels; if not, it is skipped."""
        try:
            return self.masks is None or self.masks.labels(path.stem) is not None
        except UserError as error:
            self.skipped[path.name] = str(error)
            return False

    def _edit(self, names: Sequence[Path], photos: Tensor) -> None:
        """One batch (B, 3, R, R)."""
        w = torch.cat([self.world.invert(photo[None], self.config.refine).w for photo in photos])
        originals = Originals(photos, self.editor.source(w), self.judges)
        labels = self._labels(names)
        _extend(self.inversion, originals.inversion())
        self._remember("photos", photos)
        self._remember("inversions", originals.source.image)
        for name, pictures in originals.pictures().items():
            self._show(name, pictures, torch.zeros_like(pictures[:, :1]))
        for prompt, what, where in zip(self.prompts, self.what, self.where, strict=True):
            with torch.no_grad(), autocast(self.config.precision, self.world.device):
                edit = self.editor(originals.source, what.expand(len(w), -1), where.expand(len(w), -1),
                                   self.config.strength, threshold_for(self.config.coverage))
            _extend(self.rows[prompt], originals.measure(edit, what, self._part(labels, prompt)))
            if prompt in self.shared:
                assert labels is not None and edit.place is not None
                part = torch.isin(labels, torch.tensor(published_labels(prompt), device=labels.device))
                together, either = (int(count.sum()) for count in pixels_shared(edit.place.gated, part))
                self.shared[prompt] = self.shared[prompt][0] + together, self.shared[prompt][1] + either
            self._remember("edits", edit.image)
            self._show(prompt, edit.image, edit.mask)

    def _labels(self, names: Sequence[Path]) -> Tensor | None:
        """(B, R, R) of CelebAMask-HQ, if there are labels."""
        if self.masks is None:
            return None
        side = [self.world.generator.resolution] * 2
        found = [torch.from_numpy(self.masks.labels(path.stem)) for path in names]
        return torch.cat([F.interpolate(labels[None, None], size=side, mode="nearest-exact")[0]
                          for labels in found]).to(self.world.device)

    def _part(self, labels: Tensor | None, prompt: str) -> Tensor | None:
        """(B, R, R) bool, where a prompt's part is, if that is known."""
        ids = labels_of(self.config.where or prompt)
        return None if labels is None or ids is None else torch.isin(labels, torch.tensor(ids, device=labels.device))

    def _remember(self, name: str, pictures: Tensor) -> None:
        if self.inception is not None:
            self.features[name].append(self.inception(pictures))

    def _show(self, title: str, pictures: Tensor, mask: Tensor) -> None:
        if self.count == 0:
            self.shown[title] = area_resize(pictures, min(SHEET_SIDE, pictures.shape[-1])).cpu(), mask.cpu()

    def distances(self, real: Features | None) -> dict[str, dict[str, float]]:
        """Of edits and inversions to real pictures (the photos if None), and of edits to their own originals."""
        if self.inception is None:
            return {}
        photos, inversions, edits = (join(parts) for parts in self.features.values())
        # Every edit has its original in the reference, as published: of several edits, several times.
        own = {layer: values.repeat(len(self.prompts), 1) for layer, values in inversions.items()}
        return {AGAINST_REAL: distances(edits, real or photos), FLOOR: distances(inversions, real or photos),
                PUBLISHED_VARIANT: distances(edits, own)}

    def figures(self) -> dict[str, Any]:
        """The means over pictures: of the inversion, of every prompt, and over prompts."""
        prompts = {prompt: {name: _mean(values) for name, values in row.items()} | {"labelled": _count(row.get("iou", []))}
                   for prompt, row in self.rows.items()}
        names = dict.fromkeys(name for row in prompts.values() for name in row if name != "labelled")
        mean = {name: _mean([row.get(name) for row in prompts.values()]) for name in names}
        return {"inversion": {name: _mean(values) for name, values in self.inversion.items()}, "mean": mean,
                "published_jaccard": macro_jaccard(self.shared) if self.shared else None, "prompts": prompts}

    def sheet(self) -> Image.Image:
        """Photos, their inversions and edits of the first batch."""
        chosen = ["inverted", *evenly(self.prompts, SHEET_PROMPTS)]
        edits, masks = zip(*(self.shown[name] for name in chosen), strict=True)
        return edit_sheet(self.shown["photo"][0], chosen, edits, masks)


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: what it is of, distances, and a row a prompt with the mean last; "-" is not known."""
    names = [*report["skipped"], *(f"{name} of {report['real']}" for name in report["skipped_real"])]
    skipped = f"{len(names)} skipped{': ' if names else ''}{', '.join(names)}"
    inversion = ", ".join(f"{name} {_written(value)}" for name, value in report["inversion"].items())
    lines = [f"{report['pictures']} pictures of {report['photos']}, {skipped}; strength {report['strength']}, coverage "
             f"{report['coverage']}, where: {report['where']}", "", f"inversion against the photo: {inversion}", "",
             *(f"left out: {reason}" for reason in report["left_out"])]
    if report["distances"]:
        lines += _distances_table(report["distances"])
    if report["published_jaccard"]:
        lines += ["", "macro Jaccard as published (each part's IoU over the pixels of all pictures together, the mean over "
                      f"the {len(PUBLISHED_PROMPTS)} parts): {_written(report['published_jaccard']['macro'])}"]
    rows = {prompt: {name: _written(value) for name, value in row.items()} | {"labelled": row.get("labelled")}
            for prompt, row in {**report["prompts"], "**mean**": report["mean"]}.items()}
    columns = {name: (heading, "") for name, heading in {**HEADINGS, "labelled": "labelled"}.items()}
    return "\n".join([*lines, "", markdown(rows, "prompt", columns)]) + "\n"


def _distances_table(distances: dict[str, dict[str, float]]) -> list[str]:
    """The lines of FID, KID and IS, and a warning where they say little."""
    rows = {name: {**row, "kid": f"{row['kid']:.5f} ± {row['kid_std']:.5f}",
                   "inception_score": f"{row['inception_score']:.3f} ± {row['inception_score_std']:.3f}"}
            for name, row in distances.items()}
    lines = ["", markdown(rows, "distributions", DISTANCES)]
    if min(min(row["pictures"], row["reference"]) for row in distances.values()) < ENOUGH_FOR_FID:
        lines += ["", f"FID is biased upwards below {ENOUGH_FOR_FID} pictures a side: compare it at equal numbers only, or "
                      "take KID"]
    return lines


def _inception(config: RealConfig, world: World) -> Callable[[Tensor], Features] | None:
    if not config.fid:
        return None
    try:
        return load_inception(config.inception, world.device)
    except UserError as error:
        raise UserError(f"{error}, or leave FID, KID and IS out with --no_fid") from error


def _optional(what: str, path: Path, load: Callable[[Path], Any], left_out: list[str]) -> Any:
    """What `load` makes of a file; if that is missing, None and a line in `left_out` that says how to get it."""
    if path.is_file():
        return load(path)
    left_out.append(f"{what}: {missing(path)}")
    return None


def _features_of(paths: Sequence[Path] | None, side: int, inception: Callable[[Tensor], Features] | None,
                 ) -> tuple[Features | None, dict[str, str]]:
    """The features of a folder's pictures, if both are there, and which of them were skipped."""
    skipped: dict[str, str] = {}
    if paths is None or inception is None:
        return None, skipped
    return join([inception(batch) for _, batch in read_pictures(paths, side, PICTURES_AT_ONCE, skipped)]), skipped


def _prompts(config: RealConfig, world: World) -> list[str]:
    """The texts to edit by, each once."""
    if config.prompts is None:
        return list(world.prompts)
    given = PUBLISHED_PROMPTS if config.prompts == "published" else config.prompts.split(";")
    texts = list(dict.fromkeys(text.strip() for text in given if text.strip()))
    if not texts:
        raise UserError(f"--prompts is {config.prompts!r}, expected texts between semicolons, such as \"grey hair; beard\"")
    return texts


def _extend(columns: dict[str, list[float]], figures: dict[str, Tensor]) -> None:
    for name, values in figures.items():
        columns[name] += values.tolist()


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and not np.isnan(value)]


def _count(values: Sequence[float]) -> int:
    return len(_known(values))


def _mean(values: Sequence[float | None]) -> float | None:
    known = _known(values)
    return float(np.mean(known)) if known else None


def _written(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
