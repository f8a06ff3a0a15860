"""Train the methods that ours is compared with, each into one small file.

    python -m attention.baselines.fit                       all of them, one after the other
    python -m attention.baselines.fit --only directions     one: mapper, directions, pixels or no_attention
    python -m attention.baselines.fit --domain faces --only mapper --step 100 --resume auto      go on after a stop

They see the early pictures that the world's own editor is trained on, where there are such. What an earlier fit has left
is replaced by --overwrite alone.

Writes pretrained_models/baselines/WORLD/NAME.safetensors, whose header says the command, the seed, the steps and the
minutes of processor time, which other programs beside it do not lengthen.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from attention.baselines import FOLDER, PixelAttention, WithoutAttention
from attention.baselines.base import COMMAND
from attention.baselines.directions import KIND as DIRECTIONS_KIND
from attention.baselines.directions import layer_directions
from attention.baselines.latents import MAPPERS_KIND, LatentMapper, train_mapper
from attention.baselines.regional import EDITOR_KIND, train_variant, variant_config
from attention.config import DEVICE, SEED, STEPS, Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.files.disk import run_folder, write_text
from attention.files.reading import read_text, shown
from attention.files.safetensors import packed, read_safetensors, write_safetensors
from attention.generator import LayerSpec, conv_layers
from attention.worlds.registry import WORLDS, load_world
from attention.worlds.world import World

MAPPER_STEPS = 250          # of every prompt
DIRECTION_FACES = 20        # the paper takes 100
VARIANTS = ("pixels", "no_attention")       # of ours, which learn by its settings
PIECE = "where2edit part of a baseline"


class FitConfig(Config):
    """Options."""

    only: Literal["mapper", "directions", "pixels", "no_attention"] | None = option(None, "train one method")
    domain: str = option("drawn", "the world to train in")
    folder: Path = option(FOLDER / "drawn", "folder of the files")
    run: Path = option(Path("runs/baselines/drawn"), "folder of the runs of pixels and no_attention")
    step: int | None = option(None, "steps (faces for directions) instead of the method's own", min=1,
                              max=STEPS)
    resume: Literal["auto"] | None = option(None, "go on from what a stopped fit has left in --run")
    overwrite: bool = option(False, "replace what an earlier fit has left in --folder and --run")
    seed: int = option(0, "of weights and faces", min=0, max=SEED)
    device: str = option("auto", DEVICE)


def own_folders(cls: type[FitConfig], given: Mapping[str, Any]) -> dict[str, Path]:
    """The default folders of the world that is asked for."""
    name = Path(given.get("domain", "drawn")).stem
    return {"folder": FOLDER / name, "run": Path("runs/baselines") / name}


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Train what is asked for; returns the files."""
    config = parse_config(FitConfig, argv, __doc__, own_folders)
    world = load_world(config.domain, device=config.device).early()
    run_folder(config.run)
    run_folder(config.folder, "--folder")               # told before hours of training, not after
    names = [name for name in FITS if config.only in (None, name)]
    if world.name not in WORLDS and (variants := [name for name in names if name in VARIANTS]):
        raise UserError(f"--domain {shown(config.domain)} is a file, and {variants[0]} is trained in {', '.join(WORLDS)} "
                        "alone; leave it out by --only mapper or --only directions")
    files = {name: config.folder / f"{name}.safetensors" for name in names}
    done = {name for name, file in files.items() if config.resume and not config.overwrite and file.exists()}
    for name in names:
        if name in done:
            warnings.warn(f"{shown(files[name])} is there already, and stays", stacklevel=2)
        else:
            refuse_earlier(name, config)
    return [files[name] if name in done else fit(name, config, world) for name in names]


def refuse_earlier(name: str, config: FitConfig) -> None:
    """Refuse to fit where an earlier fit has left its file or, unless it is gone on with, a part.

    Raises:
        UserError: names it.
    """
    file, parts = config.folder / f"{name}.safetensors", config.run / name
    if parts.exists() and not parts.is_dir():
        raise UserError(f"{shown(parts)} is a file, expected the folder of a fit's parts; name another folder with --run")
    if config.overwrite:
        return
    if file.exists():
        raise UserError(f"{shown(file)} is there already, and would be replaced; name another --folder, or replace it by "
                        "--overwrite")
    if config.resume is None and any(parts.glob("*")):
        raise UserError(f"{shown(parts)} holds parts of an earlier fit; go on with them by --resume auto, or replace "
                        "them by --overwrite")


def fit(name: str, config: FitConfig, world: World) -> Path:
    """Train one method and write its file."""
    spent, started = config.run / f"{name}.minutes", time.process_time()
    before = earlier_minutes(spent) if config.resume else 0.0
    try:
        kind, tensors, said = FITS[name](config, world)
    except (KeyboardInterrupt, SystemExit):
        write_text(spent, f"{before + (time.process_time() - started) / 60:.1f}\n")
        raise
    minutes = before + (time.process_time() - started) / 60
    metadata = {"kind": kind, "command": f"{COMMAND} --only {name}", "seed": str(config.seed),
                "generator_hash": world.generator_hash, "minutes": f"{minutes:.1f}",
                "minutes_per_prompt": f"{minutes / len(world.prompts):.2f}",
                "threads": str(torch.get_num_threads()), **said}
    path = config.folder / f"{name}.safetensors"
    write_safetensors(path, packed(tensors), metadata)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {minutes:.1f} minutes")
    return path


def earlier_minutes(path: Path) -> float:
    """Processor minutes that a stopped fit has had; what was killed could not say its own.

    Raises:
        UserError: the file is garbled.
    """
    if not path.exists():
        return 0.0
    what = "the minutes that a stopped fit has had"
    try:
        minutes = float(read_text(path, what))
    except ValueError:                                      # a UserError is one
        minutes = math.nan
    if not 0 <= minutes < math.inf:
        raise UserError(f"{path} should say {what}, and holds no such number; delete it, or leave --resume out")
    return minutes


Fitted = tuple[str, dict[str, Tensor], dict[str, str]]      # kind of file, tensors, more for its header


def piece(path: Path, config: FitConfig, said: dict[str, str], like: Mapping[str, Tensor],
          make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """A part of a long fit, kept in a file of the run; with --resume it is taken from there, if it was made alike.

    Args:
        like: tensors of the names and shapes that it has.
    Raises:
        UserError: what is there says that it was made alike, and holds something else.
    """
    said = {"kind": PIECE, "seed": str(config.seed), **said}
    if config.resume and path.exists():
        tensors, found = read_safetensors(path, PIECE, f"{COMMAND} --overwrite")
        if found == said:
            if {name: one.shape for name, one in tensors.items()} != {name: one.shape for name, one in like.items()}:
                raise UserError(f"{shown(path)} does not hold what this fit makes; delete it, or begin anew by --overwrite")
            return tensors
    tensors = make()
    write_safetensors(path, tensors, said)
    return tensors


def fit_mapper(config: FitConfig, world: World) -> Fitted:
    """A latent mapper for each of the world's prompts."""
    steps, tensors = config.step or MAPPER_STEPS, dict[str, Tensor]()
    like = LatentMapper(world.generator.style_dim).state_dict()
    for number, prompt in enumerate(tqdm(world.prompts, desc="mappers")):
        said = {"prompt": prompt, "steps": str(steps), "generator_hash": world.generator_hash}
        mapper = piece(config.run / "mapper" / f"{number:02d}.safetensors", config, said, like,
                       partial(one_mapper, world, prompt, steps, config.seed))
        tensors |= {f"{number}.{name}": value for name, value in mapper.items()}
    return MAPPERS_KIND, tensors, {"prompts": json.dumps(world.prompts), "steps": str(steps)}


def one_mapper(world: World, prompt: str, steps: int, seed: int) -> dict[str, Tensor]:
    return dict(train_mapper(world, prompt, steps, seed).state_dict())


def fit_directions(config: FitConfig, world: World) -> Fitted:
    """The direction of every style channel; it serves all prompts."""
    faces, found = config.step or DIRECTION_FACES, []
    widths = [style.shape[1] for style in world.generator.styles(world.sample_w(1, config.seed))]
    for layer in tqdm(conv_layers(world.generator.layers), desc="layers"):
        said = {"faces": str(faces), "generator_hash": world.generator_hash}
        like = {"directions": torch.empty(widths[layer.index], world.clip.dim)}
        made = piece(config.run / "directions" / f"{layer.index:02d}.safetensors", config, said, like,
                     partial(one_layer, world, layer, faces, config.seed))
        found.append(made["directions"])
    return DIRECTIONS_KIND, {"directions": torch.cat(found)}, {"faces": str(faces)}


def one_layer(world: World, layer: LayerSpec, faces: int, seed: int) -> dict[str, Tensor]:
    return {"directions": layer_directions(world, layer, faces, seed)}


def fit_pixels(config: FitConfig, world: World) -> Fitted:
    """Ours without regions."""
    tensors = train_variant(PixelAttention, world, config.run / "pixels", config.seed, config.step, config.resume)
    return EDITOR_KIND, tensors, {"steps": str(config.step or variant_config(PixelAttention, world).step)}


def fit_no_attention(config: FitConfig, world: World) -> Fitted:
    """Ours without attention."""
    tensors = train_variant(WithoutAttention, world, config.run / "no_attention", config.seed, config.step, config.resume)
    return EDITOR_KIND, tensors, {"steps": str(config.step or variant_config(WithoutAttention, world).step)}


FITS: dict[str, Callable[[FitConfig, World], Fitted]] = {
    "mapper": fit_mapper, "directions": fit_directions, "pixels": fit_pixels, "no_attention": fit_no_attention}


if __name__ == "__main__":
    exit_with_message(main)
