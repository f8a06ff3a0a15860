"""Make the shipped parts of the world of real-looking faces: early pictures, segments, CLIP, encoder, layout, editor.

    python -m attention.worlds.faces.build                     # everything that is missing
    python -m attention.worlds.faces.build --part clip         # one part anew
    python -m attention.worlds.faces.build --part reworded     # the shipped CLIP reads another phrase than one given up
    python -m attention.worlds.faces.build --part edits        # lessons: what the editor that is shipped now does
    python -m attention.worlds.faces.build --part refined      # the shipped CLIP and editor learn on by these
    python -m attention.worlds.faces.build --part manifest     # figures and hashes of what is there

Needs `python -m attention.download faces mesh` and the extra truth. Pictures to learn from go to build/faces, shard by
shard: after an interruption the same command goes on. Several of it share the work with --first and --last.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from attention.clip_models.tiny import TinyCLIP
from attention.config import CalibrateConfig, ClusterConfig, Config, TrainConfig, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.evaluation.calibration import calibrate
from attention.extras import need
from attention.files.disk import run_folder, write_atomically, write_text
from attention.files.generator import early_generator, load_generator, save_head
from attention.files.published import INSTALLED, MOBILE_FILE, ROOT, SHIPPED_FACES, WEIGHTS
from attention.files.regions import save_regions
from attention.files.safetensors import packed
from attention.generator import MobileStyleGAN
from attention.images import to_image
from attention.inversion.invert import psnr_of_inversions
from attention.inversion.layout import load_layout
from attention.inversion.small import load_small
from attention.training import loop as training
from attention.training.clustering import fit_regions
from attention.training.folder import EDITOR
from attention.training.runs import load_run, read_editor, ship_editor
from attention.worlds.faces.concepts import CONCEPTS
from attention.worlds.faces.fit.again import GIVEN_UP, LESSONS, TAUGHT, reconcile
from attention.worlds.faces.fit.clip import RECIPE, REFINED, REWORDED, fit_clip, joined, refine_clip, reword_clip
from attention.worlds.faces.fit.early import LAYERS, EarlyFit, fit_early, lessons, psnr_of_early
from attention.worlds.faces.fit.encoder import RECIPE as ENCODER_RECIPE
from attention.worlds.faces.fit.encoder import fit_encoder, make_photos, photos
from attention.worlds.faces.fit.layout import RECIPE as LAYOUT_RECIPE
from attention.worlds.faces.fit.layout import fit_layout, overlaps
from attention.worlds.faces.fit.pictures import EDITS, PHOTOS, Measured, make_edits, make_shard, make_shards, measured
from attention.worlds.faces.fit.segments import fit_segments, save_segments
from attention.worlds.faces.measures import truth_table
from attention.worlds.faces.mesh import FaceMesh
from attention.worlds.faces.parts import Segments
from attention.worlds.phrases import area_under_curve
from attention.worlds.registry import configured, world_of
from attention.worlds.world import World

COMMAND = "python -m attention.worlds.faces.build"
NEVER = 2.0             # of a run's share after which attention learns
UNSEEN = 2              # the last shards: never learned from, so that the CLIP can be judged by them
HEADS = dict(zip(("early.safetensors", "preview.safetensors"), LAYERS, strict=True))


class BuildConfig(Config):
    """Options of build."""

    part: Literal["missing", "heads", "segments", "pictures", "edits", "clip", "reworded", "refined", "encoder",
                  "layout", "editor", "manifest"] = option("missing", "what to make")
    work: Path = option(ROOT / "build/faces", "folder of pictures and of the editor's run")
    shards: int = option(40, "sets of 250 faces and 250 changed ones to learn from; the last are kept to judge by",
                         min=UNSEEN + 1, max=9999)
    edits: int = option(8, "sets of 250 edits to learn from", min=1, max=9999)
    photos: int = option(57, "sets of 1,000 faces for the encoder to learn from; the last are kept to judge by",
                         min=UNSEEN + 1, max=9999)
    editor: Path = option(SHIPPED_FACES, "run folder of the editor of --part edits")
    first: int = option(0, "shard to begin at", min=0, max=9999)
    last: int = option(9999, "shard to end before", min=0, max=9999)


def main(argv: Sequence[str] | None = None) -> Path:
    """Make the parts asked for, in order; returns the folder of the shipped files.

    Raises:
        UserError: an installed copy, or a package or file that is missing.
    """
    config = parse_config(BuildConfig, argv, __doc__)
    if INSTALLED:
        raise UserError(f"what is built becomes a part of the repository, but this copy is installed in {ROOT}; run it in "
                        "a checkout")
    need("truth", "building the world of faces")
    SHIPPED_FACES.mkdir(parents=True, exist_ok=True)
    if config.part == "edits":
        _build_edits(config)
    if config.part == "reworded":
        _reword()
    if config.part == "refined":
        _refine(config)
    builders = {"heads": (_build_heads, "preview"), "segments": (_build_segments, "segments"),
                "pictures": (_build_pictures, "clip"), "clip": (_build_clip, "clip"),
                "encoder": (_build_encoder, "encoder"), "layout": (_build_layout, "layout"),
                "editor": (_build_editor, "editor")}
    for part, (build, file) in builders.items():
        if config.part == part or (config.part == "missing" and not (SHIPPED_FACES / f"{file}.safetensors").exists()):
            build(config)
    if config.part in ("missing", "manifest"):
        write_text(SHIPPED_FACES / "manifest.json", json.dumps(manifest(config), indent=1))
    return SHIPPED_FACES


def _generator() -> tuple[MobileStyleGAN, str]:
    path = WEIGHTS / MOBILE_FILE
    generator, name = load_generator(path)
    if not isinstance(generator, MobileStyleGAN):
        raise UserError(f"{path} holds a {type(generator).__name__}, expected a MobileStyleGAN; delete it and run: "
                        "python -m attention.download faces")
    return generator, name


def _build_heads(config: BuildConfig) -> None:
    generator, _ = _generator()
    taught = lessons(generator, EarlyFit())
    for name, layer in HEADS.items():
        save_head(SHIPPED_FACES / name, fit_early(generator, layer, taught[layer]))


def _build_segments(config: BuildConfig) -> None:
    save_segments(fit_segments(*_generator()), SHIPPED_FACES / "segments.safetensors")


def _build_pictures(config: BuildConfig) -> None:
    generator = early_generator(_generator()[0], SHIPPED_FACES / "early.safetensors")
    numbers = _numbers(config, "shards")
    segments, mesh = Segments(SHIPPED_FACES / "segments.safetensors", torch.device("cpu")), FaceMesh()
    make_shards(config.work / "pictures", {f"{number:04d}": number for number in numbers},
                lambda number: make_shard(generator, segments, mesh, number))


def _numbers(config: BuildConfig, flag: str) -> range:
    """Of the shards that --first and --last leave to this process."""
    count = getattr(config, flag)
    numbers = range(config.first, min(config.last, count))
    if not numbers:
        raise UserError(f"no shard lies from --first {config.first} to before --last {config.last} of --{flag} {count}, "
                        "which are counted from 0")
    return numbers


def _build_edits(config: BuildConfig) -> None:
    """Lessons by an earlier editor; the next CLIP learns from all that are there."""
    numbers = _numbers(config, "edits")
    editor, world, _ = load_run(config.editor, seen=World.early)
    segments, mesh = Segments(SHIPPED_FACES / "segments.safetensors", world.device), FaceMesh()
    make_shards(config.work / "pictures", {f"{EDITS}{number:04d}": number for number in numbers},
                lambda number: make_edits(editor, lambda prompt: world.clip.encode_text([prompt]), world.prompts, segments,
                                          mesh, number))


def _pictures(config: BuildConfig, unseen: bool) -> Measured:
    folder, names = config.work / "pictures", [f"{number:04d}" for number in range(config.shards)]
    edits = [path.stem for path in sorted(folder.glob(f"{EDITS}*.npz")) if not path.stem.endswith("-measured")]
    return joined(measured(folder, names[-UNSEEN:] if unseen else [*names[:-UNSEEN], *edits]))


def _build_clip(config: BuildConfig) -> None:
    fit_clip(_pictures(config, unseen=False)).save(SHIPPED_FACES / "clip.safetensors", torch.float16)


def _reword() -> None:
    """The shipped CLIP reads the phrase that was taught in place of the one that is given up."""
    path = SHIPPED_FACES / "clip.safetensors"
    reword_clip(TinyCLIP.load(path), TAUGHT, GIVEN_UP).save(path, torch.float16)


def _refine(config: BuildConfig) -> None:
    """The shipped CLIP looks again, the shipped editor follows it, and some texts are changed as that one changes them.
    What suits texts, and where they mean, stays.

    What an interrupted time has left in --work is gone on with; a whole one leaves nothing there, or the next would begin
    at its end.
    """
    shipped, work, run = SHIPPED_FACES / "clip.safetensors", config.work / "refined", SHIPPED_FACES
    read_editor(run / EDITOR)                           # no whole one is told before the work
    clip = work / "clip.safetensors"
    if not clip.exists():
        seen, pictures = TinyCLIP.load(shipped), _pictures(config, unseen=False)
        run_folder(work, "--work")
        refine_clip(seen, pictures).save(clip, torch.float16)
    write_atomically(shipped, lambda path: shutil.copyfile(clip, path))
    for number, lesson in enumerate(LESSONS):
        begun, run, phrases = run, work / f"lesson-{number}", work / f"lesson-{number}.txt"
        lesson.write(phrases)
        training.run(configured(TrainConfig, domain="faces", run=run, init=str(begun), captions=phrases, resume="auto",
                                step=lesson.steps, lr=lesson.rate, attention_start=NEVER))
    (pupil, world, _), (before, *_), (after, *_) = (load_run(folder, seen=World.preview)
                                                    for folder in (SHIPPED_FACES, SHIPPED_FACES, run))
    reconcile(pupil.mapper.requires_grad_(True), before.mapper, after.mapper, world)
    learned = {f"mapper.{name}": value for name, value in pupil.mapper.state_dict().items()}
    ship_editor(run, SHIPPED_FACES, lambda tensors: packed({**tensors, **learned}))
    shutil.rmtree(work)


def _build_encoder(config: BuildConfig) -> None:
    generator, folder = early_generator(_generator()[0], SHIPPED_FACES / "early.safetensors"), config.work / "pictures"
    make_shards(folder, {f"{PHOTOS}{number:04d}": number for number in _numbers(config, "photos")},
                lambda number: make_photos(generator, number))
    if config.last >= config.photos:
        encoder = fit_encoder(generator, config.work, range(config.photos - UNSEEN))
        encoder.save(SHIPPED_FACES / "encoder.safetensors", torch.int8)


def _build_layout(config: BuildConfig) -> None:
    taught = _pictures(config, unseen=False)
    layout = fit_layout(load_small(SHIPPED_FACES / "encoder.safetensors"), taught.pixels, taught.labels)
    layout.save(SHIPPED_FACES / "layout.safetensors", torch.int8)


def _build_editor(config: BuildConfig) -> None:
    """The main job with the domain's defaults; its results are what is shipped."""
    run = config.work / "run"
    cluster = configured(ClusterConfig, domain="faces", run=run)
    save_regions(fit_regions(world_of(cluster), cluster), run_folder(run) / "regions.safetensors")
    training.run(configured(TrainConfig, domain="faces", run=run))
    calibrate(CalibrateConfig(run=run, precision="bf16"))
    ship_editor(run, SHIPPED_FACES, packed)


def manifest(config: BuildConfig) -> dict[str, Any]:
    """What is shipped: how it was made, its hash, and its measured quality."""
    generator, _ = _generator()
    quality: dict[str, Any] = {name: {"psnr_of_48_unseen_faces_db": psnr_of_early(
        generator, early_generator(generator, SHIPPED_FACES / name).head)} for name in HEADS}       # type: ignore[attr-defined]
    unseen = _pictures(config, unseen=True)
    if (SHIPPED_FACES / "encoder.safetensors").exists():
        early = early_generator(generator, SHIPPED_FACES / "early.safetensors")
        faces = photos(config.work / "pictures", [config.photos - 1])
        quality["encoder.safetensors"] = {"psnr_of_1000_unseen_faces_db": psnr_of_inversions(
            load_small(SHIPPED_FACES / "encoder.safetensors"), early, to_image(faces.pixels))}
    phrases = area_under_curve(TinyCLIP.load(SHIPPED_FACES / "clip.safetensors"), CONCEPTS, to_image(unseen.pixels),
                               truth_table(unseen.numbers))
    quality["clip.safetensors"] = {"mean_area_under_curve": float(np.mean(list(phrases.values()))), "by_phrase": phrases,
                                   "pictures": len(unseen.pixels)}
    if (SHIPPED_FACES / "layout.safetensors").exists():
        layout = load_layout(SHIPPED_FACES / "layout.safetensors", load_small(SHIPPED_FACES / "encoder.safetensors"))
        quality["layout.safetensors"] = {"overlap_on_unseen_pictures": overlaps(layout, unseen.pixels, unseen.labels),
                                         "pictures": len(unseen.pixels)}
    recipes: dict[str, Any] = {**dict.fromkeys(HEADS, asdict(EarlyFit())), "encoder.safetensors": asdict(ENCODER_RECIPE),
                               "layout.safetensors": asdict(LAYOUT_RECIPE),
                               "clip.safetensors": {name: asdict(recipe) for name, recipe in
                                                    (("fit", RECIPE), ("reworded", REWORDED), ("refined", REFINED))}}
    files = {}
    for path in sorted(SHIPPED_FACES.glob("*.safetensors")):
        files[path.name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size,
                            "recipe": recipes.get(path.name, ""),
                            "quality": quality.get(path.name, {})}
    return {"command": COMMAND, "torch": torch.__version__, "python": platform.python_version(),
            "threads": torch.get_num_threads(), "files": files}


if __name__ == "__main__":
    exit_with_message(main)
