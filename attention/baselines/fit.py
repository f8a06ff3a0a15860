"""Train the methods that ours is compared with, each into one small file.

    python -m attention.baselines.fit                       all of them, one after the other
    python -m attention.baselines.fit --only directions     one: mapper, directions, pixels or no_attention

Writes pretrained_models/baselines/WORLD/NAME.safetensors, whose header says the command, the seed, the steps and the
minutes of processor time, which other programs beside it do not lengthen.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from attention.baselines import FOLDER, PixelAttention, WithoutAttention
from attention.baselines.base import COMMAND
from attention.baselines.directions import KIND as DIRECTIONS_KIND
from attention.baselines.directions import channel_directions
from attention.baselines.latents import MAPPERS_KIND, mapper_tensors, train_mapper
from attention.baselines.regional import EDITOR_KIND, train_variant, variant_config
from attention.config import DEVICE, Config, option, parse_config
from attention.errors import exit_with_message
from attention.files.disk import run_folder
from attention.files.safetensors import packed, write_safetensors
from attention.worlds.registry import load_world
from attention.worlds.world import World

MAPPER_STEPS = 250          # of every prompt
DIRECTION_FACES = 20        # the paper takes 100


class FitConfig(Config):
    """Options."""

    only: Literal["mapper", "directions", "pixels", "no_attention"] | None = option(None, "train one method")
    domain: str = option("drawn", "the world to train in")
    folder: Path = option(FOLDER / "drawn", "folder of the files")
    run: Path = option(Path("runs/baselines/drawn"), "folder of the runs of pixels and no_attention")
    step: int | None = option(None, "steps (faces for directions) instead of the method's own", min=1)
    seed: int = option(0, "of weights and faces", min=0)
    device: str = option("auto", DEVICE)


def own_folders(cls: type[FitConfig], given: Mapping[str, Any]) -> dict[str, Path]:
    """The default folders of the world that is asked for."""
    name = Path(given.get("domain", "drawn")).stem
    return {"folder": FOLDER / name, "run": Path("runs/baselines") / name}


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Train what is asked for; returns the files."""
    config = parse_config(FitConfig, argv, __doc__, own_folders)
    world = load_world(config.domain, device=config.device)
    run_folder(config.run)
    run_folder(config.folder, "--folder")               # told before hours of training, not after
    return [fit(name, config, world) for name in FITS if config.only in (None, name)]


def fit(name: str, config: FitConfig, world: World) -> Path:
    """Train one method and write its file."""
    started = time.process_time()
    kind, tensors, said = FITS[name](config, world)
    minutes = (time.process_time() - started) / 60
    metadata = {"kind": kind, "command": f"{COMMAND} --only {name}", "seed": str(config.seed),
                "generator_hash": world.generator_hash, "minutes": f"{minutes:.1f}",
                "minutes_per_prompt": f"{minutes / len(world.prompts):.2f}",
                "threads": str(torch.get_num_threads()), **said}
    path = config.folder / f"{name}.safetensors"
    write_safetensors(path, packed(tensors), metadata)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {minutes:.1f} minutes")
    return path


Fitted = tuple[str, dict[str, Tensor], dict[str, str]]      # kind of file, tensors, more for its header


def fit_mapper(config: FitConfig, world: World) -> Fitted:
    """A latent mapper for each of the world's prompts."""
    steps, prompts = config.step or MAPPER_STEPS, world.prompts
    mappers = [train_mapper(world, prompt, steps, config.seed) for prompt in tqdm(prompts, desc="mappers")]
    return MAPPERS_KIND, mapper_tensors(mappers), {"prompts": json.dumps(prompts), "steps": str(steps)}


def fit_directions(config: FitConfig, world: World) -> Fitted:
    """The direction of every style channel; it serves all prompts."""
    faces = config.step or DIRECTION_FACES
    return DIRECTIONS_KIND, {"directions": channel_directions(world, faces, config.seed)}, {"faces": str(faces)}


def fit_pixels(config: FitConfig, world: World) -> Fitted:
    """Ours without regions."""
    tensors = train_variant(PixelAttention, world, config.run / "pixels", config.seed, config.step)
    return EDITOR_KIND, tensors, {"steps": str(config.step or variant_config(PixelAttention, world).step)}


def fit_no_attention(config: FitConfig, world: World) -> Fitted:
    """Ours without attention."""
    tensors = train_variant(WithoutAttention, world, config.run / "no_attention", config.seed, config.step)
    return EDITOR_KIND, tensors, {"steps": str(config.step or variant_config(WithoutAttention, world).step)}


FITS: dict[str, Callable[[FitConfig, World], Fitted]] = {
    "mapper": fit_mapper, "directions": fit_directions, "pixels": fit_pixels, "no_attention": fit_no_attention}


if __name__ == "__main__":
    exit_with_message(main)
