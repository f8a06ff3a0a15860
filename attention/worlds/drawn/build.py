"""Make the shipped drawn world: generator, CLIP, attribute reader, then regions and editor by the main job itself.

    python -m attention.worlds.drawn.build                     # everything that is missing, about two hours on one core
    python -m attention.worlds.drawn.build --part clip         # one part anew
    python -m attention.worlds.drawn.build --part manifest     # figures and hashes of what is there

The generator's training resumes from build/drawn after an interruption; the other parts take minutes each. Writes
safetensors and manifest.json (seed, command, hashes, measured quality) to pretrained_models/drawn.
"""

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from attention.clip_models.tiny import TinyCLIP
from attention.config import ClusterConfig, Config, TrainConfig, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.files.disk import run_folder, write_atomically
from attention.files.generator import load_generator
from attention.files.published import INSTALLED, ROOT, SHIPPED
from attention.files.regions import save_regions
from attention.files.safetensors import write_safetensors
from attention.generator import Generator
from attention.images import to_image
from attention.training import loop as training
from attention.training.clustering import fit_regions
from attention.training.runs import ship_editor
from attention.worlds.drawn.concepts import CONCEPTS, truth_table
from attention.worlds.drawn.encoder import load_tower
from attention.worlds.drawn.faces import FaceParams, draw_faces
from attention.worlds.drawn.fit.clip import DrawnClipFit, fit_clip
from attention.worlds.drawn.fit.encoder import RECIPE as ENCODER_RECIPE
from attention.worlds.drawn.fit.encoder import fit_encoder, psnr_of_drawings
from attention.worlds.drawn.fit.generator import GeneratorFit, fit_generator, psnr_on_unseen
from attention.worlds.drawn.fit.reader import ReaderFit, fit_reader, measure
from attention.worlds.drawn.reader import AttributeReader
from attention.worlds.phrases import area_under_curve
from attention.worlds.registry import configured, world_of

COMMAND = "python -m attention.worlds.drawn.build"


class BuildConfig(Config):
    """Options of build."""

    part: Literal["missing", "generator", "clip", "reader", "encoder", "editor", "manifest"] = option(
        "missing", "what to make")
    work: Path = option(ROOT / "build/drawn", "folder of resume states and the editor's run")


def main(argv: Sequence[str] | None = None) -> Path:
    """Make the parts asked for, in order; returns the folder of the shipped files."""
    config = parse_config(BuildConfig, argv, __doc__)
    if INSTALLED:
        raise UserError(f"what is built becomes a part of the repository, but this copy is installed in {ROOT}; run it in "
                        "a checkout")
    config.work.mkdir(parents=True, exist_ok=True)
    path = SHIPPED / "manifest.json"
    minutes = json.loads(path.read_text()).get("minutes", {}) if path.exists() else {}
    builders = {"generator": _build_generator, "clip": _build_clip, "reader": _build_reader,
                "encoder": _build_encoder, "editor": _build_editor}
    for part in builders:
        if config.part == part or (config.part == "missing" and not (SHIPPED / f"{part}.safetensors").exists()):
            start = time.monotonic()
            builders[part](config.work)
            minutes[part] = round((time.monotonic() - start) / 60, 1)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(manifest(minutes), indent=1)))
    return SHIPPED


def _build_generator(work: Path) -> None:
    generator = fit_generator(work, GeneratorFit())
    write_safetensors(SHIPPED / "generator.safetensors", generator.state_dict(), {"kind": "generator"})


def _build_clip(work: Path) -> None:
    fit_clip(DrawnClipFit()).save(SHIPPED / "clip.safetensors")


def _build_reader(work: Path) -> None:
    reader = fit_reader(ReaderFit())
    measure(reader, _shipped_generator())
    reader.save(SHIPPED / "reader.safetensors")


def _build_encoder(work: Path) -> None:
    fit_encoder(_shipped_generator()).save(SHIPPED / "encoder.safetensors")


def _build_editor(work: Path) -> None:
    """The main job with the domain's defaults; its results are what is shipped."""
    run = work / "run"
    config = configured(ClusterConfig, run=run)
    save_regions(fit_regions(world_of(config), config), run_folder(run) / "regions.safetensors")
    training.run(configured(TrainConfig, run=run))
    ship_editor(run, SHIPPED, halved)


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision: half the size, the same edits."""
    return {name: value.half() for name, value in tensors.items()}


def manifest(minutes: dict[str, float]) -> dict:
    """What is shipped: how it was made, its hash, and its measured quality.

    Args:
        minutes: by part, how long its last build took; of a resumed generator, only the last call's time.
    """
    params = FaceParams.sample(512, seed=77)
    phrases = area_under_curve(TinyCLIP.load(SHIPPED / "clip.safetensors"), CONCEPTS, to_image(draw_faces(params).images),
                               truth_table(params))
    reader = AttributeReader.load(SHIPPED / "reader.safetensors")
    quality = {
        "generator": {"psnr_on_512_unseen_z_db": psnr_on_unseen(_shipped_generator())},
        "clip": {"mean_area_under_curve": sum(phrases.values()) / len(phrases), "by_phrase": phrases},
        "reader": {kind: sum(values.values()) / len(values) for kind, values in reader.accuracies.items()},
        "encoder": {"psnr_on_256_unseen_drawings_db": psnr_of_drawings(
            load_tower(SHIPPED / "encoder.safetensors"), _shipped_generator())},
    }
    recipes: dict[str, Any] = {
        "generator": GeneratorFit(), "clip": DrawnClipFit(), "reader": ReaderFit(), "encoder": ENCODER_RECIPE}
    files = {}
    for path in sorted(SHIPPED.glob("*.safetensors")):
        name = path.stem
        files[path.name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size,
                            "recipe": dataclasses.asdict(recipes[name]) if name in recipes else "the main job's defaults",
                            "quality": quality.get(name, {})}
    return {"command": COMMAND, "torch": torch.__version__, "python": platform.python_version(),
            "threads": torch.get_num_threads(), "minutes": minutes, "files": files}


def _shipped_generator() -> Generator:
    return load_generator(SHIPPED / "generator.safetensors")[0]


if __name__ == "__main__":
    exit_with_message(main)
