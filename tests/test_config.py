"""Flags from dataclasses: types, bounds, precedence, and what a wrong flag is told."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from attention.config import check_config, parse_config, resolve
from attention.errors import UserError


@dataclass(frozen=True)
class Example:
    run: Path
    batch_size: int = field(default=8, metadata={"help": "prompts a step", "min": 2})
    lr: float = field(default=0.01, metadata={"min": 0, "max": 1})
    mapper: str = field(default="style", metadata={"choices": ("style", "wplus")})
    use_cluster: bool = False
    save: bool = field(default=True, metadata={"help": "100% of the time"})
    attention_layer: int | None = field(default=None, metadata={"min": 1})
    blend: bool | None = None


def parse(*flags: str) -> Example:
    return parse_config(Example, ["--run", "runs/a", *flags])


# --- values

def test_without_flags_the_defaults_of_the_dataclass_hold():
    assert parse() == Example(run=Path("runs/a"))


def test_every_type_is_converted():
    config = parse("--batch_size", "16", "--lr", "5e-1", "--mapper", "wplus", "--use_cluster", "--no_save",
                   "--attention_layer", "13")
    assert config == Example(Path("runs/a"), 16, 0.5, "wplus", True, False, 13)


def test_an_optional_switch_has_three_states():
    assert [parse(*flags).blend for flags in ((), ("--blend",), ("--no_blend",))] == [None, True, False]


def test_bounds_are_included():
    assert (parse("--lr", "0").lr, parse("--lr", "1").lr, parse("--batch_size", "2").batch_size) == (0, 1, 2)


# --- wrong flags

@pytest.mark.parametrize("flags, message", [
    (["--batch_size", "1"], "--batch_size is 1, expected at least 2"),
    (["--lr", "1.5"], "--lr is 1.5, expected at least 0 and at most 1"),
    (["--lr", "nan"], "--lr is 'nan', expected a finite number"),
    (["--lr", "inf"], "--lr is 'inf', expected a finite number"),
    (["--batch_size", "2.5"], "--batch_size is '2.5', expected a whole number"),
    (["--lr", "fast"], "--lr is 'fast', expected a number"),
    (["--mapper", "none"], "--mapper is none, expected one of style, wplus"),
    (["--batchsize", "4"], "--batchsize is not a flag here; did you mean --batch_size"),
    (["--qqq"], "--qqq is not a flag here; see --help"),
    (["--batch", "4"], "--batch is not a flag here"),                           # no abbreviations
    (["--no_use_cluster"], "--no_use_cluster is not a flag here"),              # its default is off already
    (["16"], "'16' belongs to no flag"),
    (["--lr"], "--lr.*expected one argument"),
    (["--save", "--no_save"], "not allowed with"),
])
def test_a_wrong_flag_is_named_with_what_was_expected(flags, message):
    with pytest.raises(UserError, match=message) as error:
        parse(*flags)
    assert "\n" not in str(error.value)


def test_a_field_without_default_is_required():
    with pytest.raises(UserError, match=r"required.*--run"):
        parse_config(Example, [])


def test_help_shows_bounds_choices_and_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(Example, ["--help"], "What it does.\n\n    a command")
    shown = capsys.readouterr().out
    assert end.value.code == 0
    for text in ("What it does.\n\n    a command", "prompts a step (at least 2; default 8)", "100% of the time",
                 "one of style, wplus", "required"):
        assert text in shown


def test_a_field_of_another_type_is_a_programming_error():
    @dataclass
    class Wrong:
        sizes: tuple = ()

    with pytest.raises(TypeError, match="sizes"):
        parse_config(Wrong, [])


# --- layers of defaults

def test_a_flag_goes_before_the_layers_and_an_earlier_layer_before_a_later_one():
    layers = {"attention_layer": None, "blend": False}, {"attention_layer": 13, "blend": True, "part_labels": "unused"}
    given, open_ = resolve(parse("--attention_layer", "5"), *layers), resolve(parse(), *layers)
    assert (given.attention_layer, open_.attention_layer) == (5, 13)
    assert open_.blend is False                       # False is a value, only None is "not given"


def test_a_layer_cannot_change_what_has_a_default():
    assert resolve(parse(), {"batch_size": 64}).batch_size == 8


def test_what_no_layer_knows_stays_open():
    assert resolve(parse(), {}).attention_layer is None


def test_values_of_layers_keep_the_bounds_too():
    with pytest.raises(UserError, match="--attention_layer is 0, expected at least 1"):
        resolve(parse(), {"attention_layer": 0})


@pytest.mark.parametrize("bound", ("min", "max"))
def test_nan_is_outside_every_bound(bound):
    @dataclass
    class Bounded:
        weight: float = field(default=float("nan"), metadata={bound: 0})

    with pytest.raises(UserError, match="--weight is nan"):
        check_config(Bounded())
