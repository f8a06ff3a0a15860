"""The worlds by name, and what a command takes of them: its defaults, then the world itself.

    config = parse_config(TrainConfig, argv, __doc__, world_defaults)         # flag > recipe > world > default
    world = world_of(config)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention.clip_models import kind_of
from attention.config import Config, Options, TrainConfig, WorldConfig, settings_of
from attention.errors import UserError
from attention.processes import rank, world_size
from attention.worlds.base import Part, WorldEntry
from attention.worlds.drawn.world import DRAWN
from attention.worlds.faces.world import FACES
from attention.worlds.ffhq import FFHQ
from attention.worlds.toml import read_toml

if TYPE_CHECKING:
    from attention.worlds.world import World

WORLDS: dict[str, WorldEntry] = {entry.name: entry for entry in (FFHQ, DRAWN, FACES)}
BEST = FACES.name           # of the worlds whose editors are shipped


def usual_world() -> str:
    """Where editing begins: BEST, if its generator is there, else the world that needs no download."""
    return BEST if os.path.isfile(WORLDS[BEST].generator) else DRAWN.name      # False also where nobody may look


def usual_run(cls: type[Config], given: Mapping[str, Any]) -> dict[str, Any]:
    """The default of --run of what edits, for `parse_config`."""
    return {"run": Path(usual_world())}


def recipes() -> dict[str, dict[str, Any]]:
    """What --recipe stands for. The published program as it was left has image embeddings as targets, one of seven places
    for all prompts, the attention frozen throughout, features enlarged for clustering, and a gather that keeps only a
    process's own gradient, which is then averaged."""
    released = dict(target="image", shared_where=True, attention_start=1.15, enlarge=2, lambda_clip=1 / world_size())
    return {"paper": {}, "released": released}


def world_entry(name: str) -> WorldEntry:
    """The entry of a known world, or of one that a TOML file describes.

    Raises:
        UserError: no world has this name, or the file is missing or wrong.
    """
    if name.endswith(".toml"):
        return read_toml(Path(name))
    if name not in WORLDS:
        raise UserError(f"--domain is {name!r}, expected one of {', '.join(WORLDS)}, or a TOML file that describes a "
                        "world (pretrained_models/example.toml)")
    return WORLDS[name]


def world_defaults(cls: type[Options], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe and the world say, in place of the fields' own defaults; and defaults that follow from other options.

    Args:
        given: what the flags say.
    """
    name = given.get("domain") or ("ffhq" if given.get("ckpt") else "drawn")
    entry, recipe = world_entry(name), recipes().get(given.get("recipe", "paper"), {})
    values: dict[str, Any] = {key: value for key, value in {**entry.settings, **recipe}.items() if key in settings_of(cls)}
    values |= {"precision": "fp16"} if given.get("amp") else {}
    values |= {"domain": name, "run": Path("runs") / Path(name).stem, "captions": entry.captions}
    own = {key: field.default for key, field in cls.model_fields.items()}
    final = {**own, **values, **given}
    values |= {"cluster_path": Path(final["run"]) / "regions.safetensors", "cluster_layer": final["attention_layer"],
               "micro_batch": final["batch_size"]}
    return {key: value for key, value in values.items() if key in cls.model_fields}


def configured(cls: type[Options], **given: Any) -> Options:
    """Options as a command line would make them of these flags."""
    given = {key: value for key, value in given.items() if value is not None}
    return cls(**{**world_defaults(cls, given), **given})


def load_world(name: str = "drawn", ckpt: Path | None = None, device: str = "auto", clip_model: str | None = None,
               trust: bool = False, truncation: float | None = None) -> World:
    """Load a world's generator, frozen; everything else is loaded when first used.

    Args:
        name: a key of WORLDS, or a TOML file that describes a world.
        ckpt: another generator of the same kind than the entry's.
        device: "auto", "cpu", "cuda" or "cuda:N".
        clip_model: another CLIP than the entry's: a file, or a name that open_clip knows.
        trust: run a CLIP archive (a program) that is not OpenAI's by its hash.
        truncation: of sampled latents, in place of the entry's.
    Raises:
        UserError: an unknown name or device, or a file that is missing or of another kind.
    """
    from attention.devices import checked_device
    from attention.files.generator import load_generator
    from attention.worlds.world import World
    entry = world_entry(name)
    if clip_model is not None:
        entry = replace(entry, clip=Part(kind_of(clip_model), clip_model))
    if truncation is not None:
        entry = replace(entry, truncation=truncation)
    place = checked_device(device)
    generator, generator_hash = load_generator(Path(ckpt or entry.generator))
    return World(entry, generator.to(place), generator_hash, place, trust)


def world_of(config: WorldConfig) -> World:
    """Load the world of a configuration, with its early pictures, and hold its generator against --stylegan_size and
    --channel_multiplier.

    Raises:
        UserError: as `load_world`; or a flag says something else than the weights.
    """
    from attention.generator import published_channels
    clip_model, trust = (config.clip_model, config.trust) if isinstance(config, TrainConfig) else (None, False)
    world = load_world(config.domain, config.ckpt, config.device, clip_model, trust, config.truncation)
    generator, path = world.generator, config.ckpt or world.entry.generator
    if world.entry.encoder is None and rank() == 0:
        without_truth = "; attention.evaluate cannot either, because nothing is known of its faces but how they look"
        warnings.warn(f"the world {world.name} has no encoder: its editor takes seeds and no photos, and "
                      f"attention.evaluate_real cannot measure it{'' if world.has_truth else without_truth}", stacklevel=2)
    if config.stylegan_size not in (None, generator.resolution):
        raise UserError(f"--stylegan_size is {config.stylegan_size}, but {path} holds a generator of "
                        f"{generator.resolution} px; leave the flag out, or give the other file with --ckpt")
    multiplier = config.channel_multiplier
    if multiplier is not None and published_channels(generator.resolution, multiplier) != generator.channels:
        widths = ", ".join(f"{width} at {side} px" for side, width in generator.channels.items() if side >= 64)
        raise UserError(f"--channel_multiplier is {multiplier}, but the maps in {path} have other widths ({widths}); "
                        "leave the flag out, or give the other file with --ckpt")
    return world.early()
