"""Flags from dataclasses: a field's type, default and metadata are the flag, so a default is written once.

    @dataclass(frozen=True)
    class Example:
        batch_size: int = field(default=8, metadata={"help": "prompts a step", "min": 2})
        use_cluster: bool = field(default=False, metadata={"help": "pool the attention over regions"})
        attention_layer: int | None = None              # not given: resolve() asks the recipe, then the domain

    config = resolve(parse_config(Example, ["--batch_size", "16"], "Example."), recipe, domain, general)
"""

import argparse
import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from attention.errors import UserError

Config = TypeVar("Config")

KINDS = {int: "a whole number", float: "a number", str: "a text", Path: "a path", bool: "a switch"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def parse_config(cls: type[Config], argv: Sequence[str] | None, description: str | None = None) -> Config:
    """Make a config dataclass from command-line flags.

    Every field is one flag of the same name, underscores kept. Types: int, float, str, Path, bool (a switch, with
    --no_NAME unless its default is off), each also as `... | None`. A field without a default is a required flag.
    Metadata: "help", "min", "max", "choices"; the bounds are included. "published" is another spelling of the
    flag; "idle" says why a published flag changes nothing here, which is printed when it is given.

    Args:
        cls: the dataclass.
        argv: the arguments without the program's name; None takes those of this process.
        description: shown by --help as it is, usually the module's docstring.
    Raises:
        UserError: an unknown flag, a missing or a wrong value; the message names the flag and what it expects.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                     allow_abbrev=False, argument_default=argparse.SUPPRESS)
    kinds = _kinds(cls)
    for field in dataclasses.fields(cls):
        _add_flag(parser, field, kinds[field.name])
    given, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if rest:
        raise UserError(_unknown_flag(rest[0], [f"--{name}" for name in kinds]))
    values = {name: _convert(name, value, kinds[name]) for name, value in vars(given).items()}
    for field in dataclasses.fields(cls):
        if "idle" in field.metadata and field.name in values:
            print(f"--{field.name} changes nothing here: {field.metadata['idle']}", file=sys.stderr)
    return check_config(cls(**values))


def resolve(config: Config, *layers: Mapping[str, Any]) -> Config:
    """Fill the fields that are still None from the first layer that has a value for them.

    The order of the layers is the precedence: resolve(flags, recipe, domain, general). Entries of a layer that are
    not fields are passed over, because one domain entry serves several configs.

    Raises:
        UserError: a value from a layer breaks the bounds of its field.
    """
    missing = [field.name for field in dataclasses.fields(config) if getattr(config, field.name) is None]
    found = {name: next((layer[name] for layer in layers if layer.get(name) is not None), None) for name in missing}
    return check_config(dataclasses.replace(config, **found))


def check_config(config: Config) -> Config:
    """Return the config if every field is within its metadata's "min", "max" and "choices" (None is "not given").

    Raises:
        UserError: naming the flag, the value and what was expected.
    """
    for field in dataclasses.fields(config):
        value, rule = getattr(config, field.name), field.metadata
        if value is None:
            continue
        if "choices" in rule and value not in rule["choices"]:
            raise UserError(f"--{field.name} is {value}, expected {_choices(rule)}")
        # "not >=" rather than "<": nan fails every comparison and is refused.
        if ("min" in rule and not value >= rule["min"]) or ("max" in rule and not value <= rule["max"]):
            raise UserError(f"--{field.name} is {value}, expected {_limits(rule)}")
    return config


def _limits(rule: Mapping[str, Any]) -> str:
    return " and ".join(f"{word} {rule[key]}" for key, word in (("min", "at least"), ("max", "at most")) if key in rule)


def _choices(rule: Mapping[str, Any]) -> str:
    return f"one of {', '.join(map(str, rule['choices']))}"


def _kinds(cls: type) -> dict[str, type]:
    """Field name -> int, float, str, Path or bool, with `| None` taken off."""
    hints = typing.get_type_hints(cls)
    kinds = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            members = [member for member in typing.get_args(hint) if member is not type(None)]
            hint = members[0] if len(members) == 1 else hint
        if hint not in KINDS:
            raise TypeError(f"{cls.__name__}.{field.name} is {hint}; a flag is one of {[k.__name__ for k in KINDS]}")
        kinds[field.name] = hint
    return kinds


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, kind: type) -> None:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    required = default is dataclasses.MISSING
    rule = field.metadata
    notes = [_limits(rule), _choices(rule) if "choices" in rule else "",
             "required" if required else "" if default is None else f"default {default}"]
    text = f"{rule.get('help', '')} ({'; '.join(filter(None, notes))})".replace(" ()", "")
    text = text.strip().replace("%", "%%")                      # argparse formats help with %
    names = [f"--{field.name}", *([rule["published"]] if "published" in rule else [])]
    if kind is bool:
        switch = parser.add_mutually_exclusive_group(required=required)
        switch.add_argument(*names, dest=field.name, action="store_true", help=text)
        if default is not False:
            switch.add_argument(f"--no_{field.name}", dest=field.name, action="store_false", help=f"not {field.name}")
    else:
        parser.add_argument(*names, dest=field.name, metavar=kind.__name__.upper(), help=text, required=required)


def _convert(name: str, text: str | bool, kind: type) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"--{name} is {text!r}, expected {KINDS[kind]}") from None
    if kind is float and not math.isfinite(value):
        raise UserError(f"--{name} is {text!r}, expected a finite number")
    return value


def _unknown_flag(word: str, flags: list[str]) -> str:
    if not word.startswith("-"):
        return f"{word!r} belongs to no flag; every value follows its flag, as in {flags[0]} VALUE (see --help)"
    close = difflib.get_close_matches(word, flags, 1)
    return f"{word} is not a flag here; " + (f"did you mean {close[0]}?" if close else "see --help for the flags")


def option(default: Any, help: str, **rule: Any) -> Any:
    """A field with its flag's help and bounds."""
    return dataclasses.field(default=default, metadata={"help": help, **rule})


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """Options that regions and training share: which generator, which layer, where to write.

    In this and the next two, None means: the recipe's value, else the domain's, else GENERAL's.
    """

    recipe: str = option("paper", "paper (all terms, attention learns from 15 %) or released (as published)",
                         choices=("paper", "released"))
    domain: str | None = option(None, "drawn, ffhq, or a TOML file that describes a world; default drawn, with --ckpt ffhq")
    run: Path | None = option(None, "folder to write to; default runs/DOMAIN")
    ckpt: Path | None = option(None, "another generator's weights than the domain's")
    stylegan_size: int | None = option(None, "must be the generator's, which is read from its weights", min=8)
    channel_multiplier: int | None = option(None, "must be the generator's, which is read from its weights", min=1)
    attention_layer: int | None = option(None, "conv layer to blend at, counted from 1", min=1)
    cluster_num: int | None = option(None, "number of regions K", min=1)
    device: str = option("auto", "cpu, cuda, cuda:N, or auto: a GPU where there is one")


@dataclasses.dataclass(frozen=True)
class ClusterConfig(WorldConfig):
    """Options of clustering_feature.py."""

    step: int = option(20, "batches of faces", min=1)
    batch_size: int = option(5, "faces a batch", min=1)
    enlarge: int | None = option(None, "enlarge feature maps before fitting (the published program: 2)", min=1)
    position_weight: float | None = option(None, "weight of the position planes", min=0)
    seed: int = option(42, "of faces and k-means", min=0)
    description: str | None = option(None, "published", idle="the regions file is named by --run")


@dataclasses.dataclass(frozen=True)
class TrainConfig(WorldConfig):
    """Options of run_attention.py."""

    clip_model: str | None = option(None, "another CLIP: a name that open_clip knows, or a file of OpenAI's")
    trust: bool = option(False, "run a CLIP archive (a program) that is not OpenAI's by its hash")
    cluster_path: Path | None = option(None, "regions (or the authors' .pkl); default RUN/regions.safetensors")
    cluster_layer: int | None = option(None, "conv layer of the regions, counted from 1; default --attention_layer", min=1)
    step: int | None = option(None, "training steps", min=1)
    batch_size: int | None = option(None, "prompts a step and process; at least 2 in all processes together", min=1)
    micro_batch: int | None = option(None, "prompts at once; fewer need less memory and a second forward pass", min=1)
    lr: float | None = option(None, "Adam's learning rate at its height", min=0)
    captions: Path | None = option(None, "corpus to draw prompts from; default: the domain's own prompts")
    description: str | None = option(None, "prompt that sample sheets show beside the domain's own")
    target: str | None = option(None, "what drives mapper and CLIP loss", choices=("text", "image", "mixed"))
    attention_start: float | None = option(None, "share of the run after which attention learns; above 1: never", min=0)
    where_share: float | None = option(None, "share of steps that name the place in other words", min=0, max=1)
    shared_where: bool | None = option(None, "all prompts of a step attend to one place, drawn from those of the domain")
    temperature: float | None = option(None, "of the contrastive loss", min=1e-4)
    relative: bool | None = option(None, "score edits by the rise over their source's own similarity")
    lambda_clip: float | None = option(None, "weight of the contrastive loss", min=0)
    lambda_ess: float | None = option(None, "weight of region consistency", min=0)
    lambda_sec: float | None = option(None, "weight of the attention budget (counts regions)", min=0)
    lambda_area: float | None = option(None, "weight of the attention's area", min=0)
    lambda_tv: float | None = option(None, "weight of the attention's total variation", min=0)
    lambda_id: float | None = option(None, "weight of the perceptual loss", min=0)
    lambda_delta: float | None = option(None, "weight of the style change", min=0)
    max_change: float | None = option(None, "bound on a style's change at strength 1, in spreads; 0: none", min=0)
    precision: str | None = option(None, "of synthesis; fp16 on a GPU only", choices=("fp32", "bf16", "fp16"))
    compile: bool = option(False, "compile synthesis with torch.compile, which takes about a minute at the start")
    save_intermediate_image_every: int | None = option(None, "steps between sample sheets and checkpoints", min=1)
    resume: str | None = option(None, "auto: go on from the run's newest whole checkpoint, if any; or a checkpoint's path")
    seed: int = option(0, "of weights, faces and prompts", min=0)
    gpu_id: str | None = option(None, "GPUs to use, as in 0,1; with --multiprocessing-distributed a process for each")
    multiprocessing_distributed: bool = option(False, "one process for every GPU of --gpu_id (or use torchrun)",
                                               published="--multiprocessing-distributed")
    use_cluster: bool = option(False, "published", idle="the attention is always pooled over regions")
    work_in_stylespace: bool = option(False, "published", idle="edits always happen in style space")


GENERAL = dict(attention_layer=13, cluster_num=20, position_weight=1.0, enlarge=1, step=10_000, batch_size=8, lr=0.01,
               target="text", attention_start=0.15, where_share=0.3, shared_where=False, temperature=0.01, relative=False,
               lambda_clip=1.0, lambda_ess=0.03, lambda_sec=0.01, lambda_area=0.0, lambda_tv=0.0, lambda_id=0.1,
               lambda_delta=0.03, max_change=0.0, precision="fp32", save_intermediate_image_every=500)
# The published program as it was left: image embeddings as targets, one of seven places for all, the attention frozen
# throughout, features enlarged for clustering (traps 1, 4, 5, 26). `domains.settled` adds the contrastive weight.
RECIPES = {"paper": {}, "released": dict(target="image", shared_where=True, attention_start=1.15, enlarge=2)}


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Options of evaluate.py."""

    run: Path = option(Path("runs/drawn"), "run folder with editor.safetensors")
    faces: int = option(64, "unseen faces", min=1)
    strength: float = option(0.1, "of the edits in the table", min=0, max=1)
    strengths: str = option("0.025,0.05,0.1,0.15,0.2", "of the sweep, separated by commas; --strength is always among them")
    coverage: float = option(0.8, "of the edits, 0 to 1", min=0, max=1)
    precision: str = option("fp32", "of the edits' synthesis; fp16 on a GPU only", choices=("fp32", "bf16", "fp16"))
    seed: int = option(4242, "of the faces", min=0)
    trust: bool = option(False, "run a CLIP archive (a program) that is not OpenAI's by its hash")
    device: str = option("auto", "cpu, cuda, cuda:N, or auto: a GPU where there is one")
