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
    Metadata: "help", "min", "max", "choices"; the bounds are included.

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
            raise TypeError(f"{cls.__name__}.{field.name} is {hint}; a flag can be {', '.join(k.__name__ for k in KINDS)}")
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
    if kind is bool:
        switch = parser.add_mutually_exclusive_group(required=required)
        switch.add_argument(f"--{field.name}", action="store_true", help=text)
        if default is not False:
            switch.add_argument(f"--no_{field.name}", dest=field.name, action="store_false", help=f"not {field.name}")
    else:
        parser.add_argument(f"--{field.name}", metavar=kind.__name__.upper(), help=text, required=required)


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
