"""The editor that training leaves in a run folder, what is written there of the options, and how both are read again."""

import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from attention.config import TrainConfig
from attention.errors import UserError
from attention.files.cluster_pickle import regions_from_pickle
from attention.files.disk import write_atomically
from attention.files.reading import parse_json, shown
from attention.files.regions import load_regions, regions_from_metadata
from attention.files.safetensors import read_safetensors, write_metadata, write_safetensors
from attention.generator import blended_layers, edited_layers
from attention.method.dose import Judge
from attention.method.editor import RegionEditor
from attention.method.mapper import MAPPERS
from attention.method.regions import UNKNOWN, RegionClusters, fit_command
from attention.processes import RUN_ID, launched, local_world_size
from attention.training.folder import EDITOR
from attention.worlds.registry import WORLDS, configured, load_world
from attention.worlds.world import World

KIND, REMAKE = "where2edit editor", "python -m attention.run_attention"
MOST_TEXTS = 10_000     # of a calibration
LONGEST_TEXT = 200      # signs, of one that finds another's place
FACES = 2048            # whose styles say how faces differ
# Options that may differ when a run goes on: where and how it runs, not what it computes.
FREE = {"run", "resume", "overwrite", "init", "device", "cluster_path", "save_intermediate_image_every", "description",
        "own_description_dir",
        "trust", "gpu_id", "multiprocessing_distributed", "use_cluster", "work_in_stylespace", "micro_batch", "precision",
        "compile"}
SHAPING = ("attention_layer", "cluster_layer", "cluster_num", "mapper", "max_change")     # what an editor is made of
PLACES = ("run", "domain", "ckpt", "clip_model", "captions", "own_description_dir", "cluster_path", "init",
          "resume")      # may name a file
BELOW = "<run>/"        # begins the path of a file in a run that lies below the run folder


# --- regions

def regions_of(config: TrainConfig, world: World) -> RegionClusters:
    """The regions that a run asks for: of --init, of its folder, or of --cluster_path, which may be the authors' pickle."""
    if config.init is not None:
        return _beginning(config, world).regions
    if config.cluster_path.suffix == ".pkl":
        return regions_from_pickle(config.cluster_path, config.cluster_layer - 1, world.name)
    return load_regions(config.cluster_path, refit(config))


def refit(config: TrainConfig) -> str:
    """The command that fits the regions that these options need: where they were looked for, unless others lie there."""
    path = config.cluster_path
    there = path.name == "regions.safetensors" and not path.exists()
    folder = path.parent if there else config.run
    command = fit_command(config.domain, config.cluster_layer - 1, config.cluster_num, folder, config.ckpt)
    elsewhere = folder / "regions.safetensors" != path
    return command + " --overwrite" * config.overwrite + "   # and leave --cluster_path out" * elsewhere


# --- the editor

TOWARD = 0.4                # of the way from a text to another, where nothing is said: more is the other


class Calibration(NamedTuple):
    """What suits each text: {text: number} for `Mapper.amount`, `Mapper.kept` and `kept_last`, `SpatialAttention.offset`,
    `above`, `below` and `surer`, `RegionEditor.enough`, `spared`, `structure` and `reach`, {text: text that finds its
    place} for `SpatialAttention.shift`, and {text: text toward which it is changed} for `Mapper.shift`, by so much of the
    way as `shares` says or TOWARD; empty if nobody measured."""

    amounts: Mapping[str, float] = MappingProxyType({})
    offsets: Mapping[str, float] = MappingProxyType({})
    enough: Mapping[str, float] = MappingProxyType({})
    places: Mapping[str, str] = MappingProxyType({})
    toward: Mapping[str, str] = MappingProxyType({})
    kept: Mapping[str, float] = MappingProxyType({})
    kept_last: Mapping[str, float] = MappingProxyType({})
    shares: Mapping[str, float] = MappingProxyType({})
    spared: Mapping[str, float] = MappingProxyType({})
    structure: Mapping[str, float] = MappingProxyType({})
    reach: Mapping[str, float] = MappingProxyType({})
    above: Mapping[str, float] = MappingProxyType({})
    below: Mapping[str, float] = MappingProxyType({})
    surer: Mapping[str, float] = MappingProxyType({})

    def tables(self) -> dict[str, str]:
        """As a file's metadata has them."""
        return {name: json.dumps(dict(table)) for name, table in self._asdict().items() if table}

    def teach(self, editor: RegionEditor, world: World) -> None:
        """Let an editor of a world know these alone."""
        numbers = {editor.mapper.amount: self.amounts, editor.attention.offset: self.offsets, editor.enough: self.enough,
                   editor.mapper.kept: self.kept, editor.mapper.kept_last: self.kept_last, editor.spared: self.spared,
                   editor.structure: self.structure, editor.reach: self.reach, editor.attention.above: self.above,
                   editor.attention.below: self.below, editor.attention.surer: self.surer}
        for by_text, table in numbers.items():
            by_text.forget()
            if table:
                by_text.set(world.clip.encode_text(list(table)), torch.tensor(list(table.values()))[:, None])
        shifts = ((editor.attention.shift, self.places, [1.0] * len(self.places)),
                  (editor.mapper.shift, self.toward, [self.shares.get(text, TOWARD) for text in self.toward]))
        for shift, others, share in shifts:
            shift.forget()
            if others:
                said, other = (world.clip.encode_text(list(some)) for some in (others, others.values()))        # (N, D)
                mixed = torch.lerp(said, other, said.new_tensor(share)[:, None])
                shift.set(said, mixed / mixed.norm(dim=1, keepdim=True) * other.norm(dim=1, keepdim=True) - said)


UNMEASURED = Calibration()
# Of the numbers of a Calibration.
BOUNDS = {"amounts": (1e-3, 10.0), "offsets": (-20.0, 20.0), "enough": (0.5, 1.0), "kept": (0.0, 30.0),
          "kept_last": (0.0, 30.0), "shares": (0.0, 1.0), "spared": (0.0, 1.0), "structure": (0.0, 1.0),
          "reach": (0.0, 8.0), "above": (0.0, 1.0), "below": (0.0, 1.0), "surer": (0.0, 20.0)}


def build_editor(config: TrainConfig, world: World, regions: RegionClusters) -> RegionEditor:
    """An untrained editor of a run's configuration, its weights seeded; --max_change 0 leaves styles unbounded.

    Raises:
        UserError: a layer is no conv layer, or the regions were fitted for something else.
    """
    layer, cluster_layer = config.attention_layer - 1, config.cluster_layer - 1
    for index in (layer, cluster_layer):
        blended_layers(world.generator.layers, index)                       # refuses a layer that is not a conv layer
    regions.check(layer=cluster_layer, generator_hash=world.generator_hash, remake=refit(config),
                  channels=world.generator.layers[cluster_layer].out_channels, num_regions=config.cluster_num)
    count = len(edited_layers(world.generator.layers, layer))
    faces = world.generator.styles(world.sample_w(FACES, config.seed))[:count] if config.max_change else None
    torch.manual_seed(config.seed)
    editor = RegionEditor(world.generator, regions, layer, world.clip.dim, config.mapper, faces, config.max_change)
    return editor.to(world.device)


def save_editor(editor: RegionEditor, config: TrainConfig, world: World, path: Path, steps: int,
                calibration: Calibration = UNMEASURED) -> None:
    """Write mapper and attention with all that is needed to rebuild them, as safetensors, after so many steps."""
    said = {name: value for name, value in plain(config).items() if name not in FREE}     # the same edits, the same file
    metadata = {"kind": KIND, "config": json.dumps(said), "steps": str(steps),
                "generator_hash": world.generator_hash, "regions": json.dumps(editor.regions.metadata)}
    write_safetensors(path, editor.state_dict(), metadata | calibration.tables())


def ship_editor(run: Path, folder: Path, smaller: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Copy a run's regions and its editor to where those of a world are shipped, without the place of its captions.

    Args:
        smaller: what is done to mapper and attention, so that they take less space.
    """
    tensors, metadata = read_safetensors(run / EDITOR, KIND, remake(run))
    regions = {name: value for name, value in tensors.items() if name.startswith("regions.")}
    others = {name: value for name, value in tensors.items() if name not in regions}
    said = {name: value for name, value in json.loads(metadata["config"]).items() if name != "captions"}
    write_safetensors(folder / EDITOR, {**smaller(others), **regions}, {**metadata, "config": json.dumps(said)})
    write_atomically(folder / "regions.safetensors", lambda path: shutil.copyfile(run / "regions.safetensors", path))


def run_of(name: str | Path) -> Path:
    """A run folder itself, or that of the shipped editor of a world by its name, such as "drawn"."""
    entry = WORLDS.get(str(name))
    if entry is not None and entry.editor is not None and not (Path(name) / EDITOR).exists():
        return entry.editor
    return Path(name)


def editor_file(name: str | Path) -> Path:
    """The editor.safetensors of a run folder, of the shipped editor of a world by its name, or the file itself."""
    path = Path(name)
    return path if path.suffix == ".safetensors" else run_of(name) / EDITOR


class Saved(NamedTuple):
    """An editor's file: its tensors, the options it was trained with, its regions, the hash of its generator, and what
    suits each text, if it was calibrated."""

    tensors: dict[str, Tensor]
    config: TrainConfig
    regions: RegionClusters
    generator_hash: str
    calibration: Calibration


def remake(run: Path, domain: str = "") -> str:
    """The command that trains the editor of a run folder again, of its domain as far as that is known."""
    return f"{REMAKE} --run {shown(run)}" + f" --domain {shown(domain)}" * bool(domain)


def read_editor(path: Path) -> Saved:
    """Read an editor's file.

    Raises:
        UserError: it is no whole editor.
    """
    tensors, metadata = read_safetensors(path, KIND, remake(path.parent))
    try:
        said = parse_json(metadata["config"], "its options are no JSON", "a table of options")
        config = configured(TrainConfig, **_known(said, path.parent))
        regions = parse_json(metadata["regions"], "what it says of regions is no JSON", "a table")
        found = regions_from_metadata(tensors["regions.centroids"], regions, path)              # type: ignore[arg-type]
        calibration = Calibration(**{name: _by_text(metadata, name) for name in BOUNDS}, places=_others(metadata, "places"),
                                  toward=_others(metadata, "toward"))
        return Saved(tensors, config, found, metadata["generator_hash"], calibration)
    except (TypeError, KeyError, ValueError, AttributeError) as error:           # a UserError is a ValueError
        raise UserError(f"{path} was made by another version of this program, or what it names is gone ({shown(error)}); "
                        f"put that back, or train it again: {remake(path.parent)}") from error


def _table(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """A table of a Calibration, its values still unchecked."""
    said = parse_json(metadata.get(name, "{}"), f"what it says of {name} is no JSON", "a table")
    if not isinstance(said, dict) or len(said) > MOST_TEXTS:
        raise TypeError(f"its {name} are no table of at most {MOST_TEXTS} texts")
    return said


def _others(metadata: Mapping[str, str], name: str) -> dict[str, str]:
    """A table of other texts of a Calibration, checked."""
    said = _table(metadata, name)
    for text, value in said.items():
        if not isinstance(value, str) or not 0 < len(value) <= LONGEST_TEXT:
            raise ValueError(f"{name} has {shown(value)!r} for {text[:40]!r}, expected a text")
    return said


def _by_text(metadata: Mapping[str, str], name: str) -> dict[str, float]:
    """A table of numbers of a Calibration, checked."""
    said, (least, most) = _table(metadata, name), BOUNDS[name]
    for text, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{name} has {value!r} for {text[:40]!r}, expected a number from {least:g} to {most:g}")
    return said


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write an editor's file again with another calibration; an empty one for none.

    Raises:
        UserError: the file is no whole editor.
    """
    _, metadata = read_safetensors(path, KIND, remake(path.parent))
    others = {name: value for name, value in metadata.items() if name not in Calibration._fields}
    write_metadata(path, {**others, **calibration.tables()})


def load_run(folder: Path, device: str = "auto", trust: bool = False, ckpt: Path | None = None,
             seen: Callable[[World], World] | None = None) -> tuple[RegionEditor, World, TrainConfig]:
    """Rebuild the editor of a run folder, frozen, with its world and configuration.

    Args:
        trust: run a CLIP archive that is not OpenAI's; it is the caller's word, never the folder's.
        ckpt: where its generator lies now.
        seen: World.preview or World.early: with smaller, earlier pictures of its generator, where its world has such.
    Raises:
        UserError: the folder has no whole editor, or its generator is not the one that the editor was trained on.
    """
    path = Path(folder) / EDITOR
    tensors, config, regions, known_hash, calibration = read_editor(path)
    if config.mapper not in MAPPERS:
        raise UserError(f"{path} has the mapper {shown(config.mapper)!r}, but this program knows {', '.join(MAPPERS)}; "
                        f"train it again: {remake(path.parent, config.domain)}")
    generator = ckpt or config.ckpt
    if generator is not None and not os.path.isfile(generator):
        named = "--ckpt" if ckpt else f"{path} was trained on the generator"
        how = "no regular file" if os.path.lexists(generator) else "missing"
        raise UserError(f"{named} {shown(generator)}, which is {how}; say where it lies now with --ckpt")
    world = load_world(config.domain, generator, device, config.clip_model, trust, config.truncation)
    if known_hash not in (UNKNOWN, world.generator_hash):
        raise UserError(f"{path} was trained on the generator {known_hash}, but {shown(generator or config.domain)} has "
                        f"{world.generator_hash}; give the right one with --ckpt, or train it again: "
                        f"{remake(path.parent, config.domain)}")
    world = seen(world) if seen else world
    if (steps := trained_steps(folder)) < config.step:
        warnings.warn(f"{path} is unfinished: it has {steps} of {config.step} steps", stacklevel=2)
    editor = build_editor(config, world, regions.to(world.device))
    fill(editor, tensors, path)
    calibration.teach(editor, world)
    editor.judge, editor.follows_edges = judge_of(world), world.entry.follows_edges
    return editor.requires_grad_(False).eval(), world, config


def judge_of(world: World) -> Judge | None:
    """What finds the doses of a world's edits; None where every face gets the same strength."""
    return Judge(world.clip.encode_image, world.smallest) if world.entry.dosed else None


def trained_steps(folder: Path) -> int:
    """Steps that the editor of a run folder has really had; of a file that does not say, the steps of its options.

    Raises:
        UserError: the folder has no whole editor.
    """
    path = Path(folder) / EDITOR
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get("steps", "")
    except Exception as error:          # safetensors raises its own kinds
        raise UserError(f"{path} is not a complete safetensors file ({error}); make it again with: "
                        f"{remake(path.parent)}") from error
    return int(said) if re.fullmatch("[0-9]{1,10}", said) else read_editor(path).config.step


def fill(editor: RegionEditor, tensors: Mapping[str, Any], path: Path) -> None:
    """Give an editor the tensors of a file, of which each must be there, fit and be finite.

    Raises:
        UserError: they are another editor's, or damaged.
    """
    wanted = editor.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{shown(name)} is unexpected" for name in tensors if name not in wanted]
    wrong += [f"{name} {problem}" for name, tensor in wanted.items() if name in tensors
              for problem in misfit(tensors[name], tensor)]
    if wrong:
        raise UserError(f"{path} does not fit: {'; '.join(wrong[:3])}{', ...' * (len(wrong) > 3)}; give the options and "
                        f"the generator that it was trained with, or train it again: {remake(path.parent)}")
    editor.load_state_dict(dict(tensors))


def misfit(found: object, wanted: Tensor) -> list[str]:
    """What is wrong with a value from a file in a tensor's place: nothing, or one thing."""
    if not isinstance(found, Tensor) or found.is_floating_point() != wanted.is_floating_point():
        return ["is no tensor of floats" if wanted.is_floating_point() else "is no tensor of whole numbers"]
    if found.shape != wanted.shape:
        return [f"is {tuple(found.shape)} instead of {tuple(wanted.shape)}"]
    return [] if bool(torch.isfinite(found).all()) else ["holds values that are not finite"]


def start_from(editor: RegionEditor, config: TrainConfig, world: World) -> Calibration:
    """Give an untrained editor the weights of the one that --init names, and tell it what suits each text there, so that
    what it learns from now on suits that too. Returns the latter.

    Raises:
        UserError: that one is made otherwise, or of another generator; each difference is named.
    """
    saved = _beginning(config, world)
    fill(editor, saved.tensors, editor_file(str(config.init)))
    saved.calibration.teach(editor, world)
    return saved.calibration


def _beginning(config: TrainConfig, world: World) -> Saved:
    """The editor that --init names, if this run's is of the same make."""
    path = editor_file(str(config.init))
    saved = read_editor(path)
    differs = [f"--{name} {getattr(saved.config, name)} there, {getattr(config, name)} here" for name in SHAPING
               if getattr(saved.config, name) != getattr(config, name)]
    if saved.generator_hash not in (UNKNOWN, world.generator_hash):
        differs.append(f"the generator {saved.generator_hash} there, {world.generator_hash} here")
    if differs:
        raise UserError(f"--init {shown(path)} is an editor of another make: {'; '.join(differs)}; use the same")
    return saved


# --- options

def plain(config: TrainConfig) -> dict[str, Any]:
    """The options as JSON holds them; a file by its absolute path, or by <run>/... if it lies below the run folder."""
    said, top = config.model_dump(mode="json"), os.path.abspath(config.run)
    for name in PLACES:
        value = said[name]
        if isinstance(getattr(config, name), Path) or _is_file_option(name, value):
            path = os.path.abspath(value)
            said[name] = BELOW + os.path.relpath(path, top) if path.startswith(top + os.sep) else path
    return said


def _is_file_option(name: str, value: str | None) -> bool:
    """Whether a text that may be a name is a file's path: worlds are TOML files, and names are no files here."""
    return value is not None and (value.endswith(".toml") if name == "domain" else os.path.exists(value))


def options_of(said: object, run: Path) -> TrainConfig:
    """The inverse of `plain`; what a file does not say has the general default.

    Raises:
        UserError, TypeError: unknown options, or values of another kind.
    """
    return TrainConfig(**_known(said, run))


def command_again(config: TrainConfig) -> str:
    """The command line that goes on with a run: its own flags, as far as they are no defaults, and --resume auto."""
    said = {name: value for name, value in config.model_dump(mode="json").items() if value is not None}
    given: dict[str, Any] = {name: said[name] for name in ("domain", "ckpt", "run") if name in said}
    for names in (("recipe",), ("attention_layer", "batch_size"), said):     # other defaults follow from the first three
        usual = configured(TrainConfig, **given).model_dump(mode="json")
        given |= {name: said[name] for name in names if said[name] != usual[name]}
    flags = [f"--{'' if value else 'no_'}{name}" if isinstance(value, bool) else f"--{name}={value}"
             for name, value in given.items() if name not in ("resume", "overwrite", "init")]
    by_torchrun = launched() and os.environ.get("TORCHELASTIC_RUN_ID") != RUN_ID
    begin = ["torchrun", f"--nproc_per_node={local_world_size()}"] if by_torchrun else ["python"]
    return shlex.join([*begin, "-m", "attention.run_attention", *flags, "--resume=auto"])


def _known(said: object, run: Path) -> dict[str, Any]:
    """Options from a file, none but ours, and the places below the run folder where they are now."""
    if not isinstance(said, dict):
        raise TypeError(f"its options are a {type(said).__name__}, expected a table")
    if strange := [name for name in said if name not in TrainConfig.model_fields]:
        raise UserError(f"it has the unknown option {shown(strange[0])}")
    return {name: str(run / value.removeprefix(BELOW)) if isinstance(value, str) and value.startswith(BELOW) else value
            for name, value in said.items()}
