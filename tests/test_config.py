"""Options: types, bounds, precedence, and what a wrong flag is told."""

from pathlib import Path
from typing import Literal

import pytest

from attention.config import Config, TrainConfig, option, parse_config
from attention.errors import UserError
from attention.method.losses import TERMS


class Example(Config):
    run: Path = option(..., "folder")
    batch_size: int = option(8, "prompts a step", min=2)
    lr: float = option(0.01, "rate", min=0, max=1)
    target: Literal["text", "image"] = option("text", "what drives the edit")
    use_cluster: bool = option(False, "published", idle="it is always so")
    save: bool = option(True, "100% of the time", published="save-it")
    layer: int | None = option(None, "which", min=1)


def parse(*flags: str) -> Example:
    return parse_config(Example, ["--run", "runs/a", *flags])


# --- values

def test_without_flags_the_defaults_of_the_fields_hold():
    assert parse() == Example(run=Path("runs/a"))


def test_every_type_is_converted():
    config = parse("--batch_size", "16", "--lr=5e-1", "--target", "image", "--use_cluster", "--no_save", "--layer", "13")
    assert config == Example(run="runs/a", batch_size=16, lr=0.5, target="image", use_cluster=True, save=False, layer=13)


def test_texts_stay_as_they_are():
    for text in ("None", "null", "a, b", '{"a": 1}', "[1]", "007"):
        assert parse_config(TrainConfig, [f"--description={text}"]).description == text


def test_bounds_are_included():
    assert (parse("--lr", "0").lr, parse("--lr", "1").lr, parse("--batch_size", "2").batch_size) == (0, 1, 2)


def test_nothing_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("BATCH_SIZE", "99")
    assert parse().batch_size == 8


def test_replaced_options_are_checked_again():
    assert parse().replaced(batch_size=3).batch_size == 3
    with pytest.raises(UserError, match="--batch_size is 1, expected at least 2"):
        parse().replaced(batch_size=1)


# --- wrong flags

@pytest.mark.parametrize("flags, message", [
    (["--batch_size", "1"], "--batch_size is 1, expected at least 2"),
    (["--lr", "1.5"], "--lr is 1.5, expected at least 0 and at most 1"),
    (["--lr", "nan"], "--lr is 'nan', expected a finite number"),
    (["--lr", "inf"], "--lr is 'inf', expected a finite number"),
    (["--batch_size", "2.5"], "--batch_size is '2.5', expected a whole number"),
    (["--lr", "fast"], "--lr is 'fast', expected a number"),
    (["--target", "none"], "--target is none, expected one of text, image"),
    (["--batchsize", "4"], "--batchsize is not a flag here; did you mean --batch_size"),
    (["--qqq"], "--qqq is not a flag here; see --help"),
    (["--batch", "4"], "--batch is not a flag here"),                           # no abbreviations
    (["16"], "'16' belongs to no flag"),
    (["--lr"], "--lr.*expected one argument"),
])
def test_a_wrong_flag_is_named_with_what_was_expected(flags, message):
    with pytest.raises(UserError, match=message) as error:
        parse(*flags)
    assert "\n" not in str(error.value)


def test_a_field_without_default_is_required():
    with pytest.raises(UserError, match=r"--run is required"):
        parse_config(Example, [])


def test_a_published_flag_that_changes_nothing_says_so(capsys):
    parse("--use_cluster")
    assert capsys.readouterr().err == "--use_cluster changes nothing here: it is always so\n"


def test_help_shows_bounds_choices_and_the_defaults_that_will_be_used(capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(Example, ["--help", "--run", "x"], "What it does.\n\n    a command",
                     lambda cls, given: {"lr": 0.5 if given["run"] == "x" else 0.7})
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for text in ("What it does. a command", "prompts a step (at least 2) (default: 8)", "100% of the time",
                 "{text,image}", "required", "rate (at least 0 and at most 1) (default: 0.5)"):
        assert text in shown


# --- layers of defaults

def test_a_flag_goes_before_the_layers_and_these_before_the_fields_own_defaults():
    def layers(cls, given):
        return {"batch_size": 64, "lr": 0.5}

    config = parse_config(Example, ["--run", "a", "--lr", "0.25"], None, layers)
    assert (config.batch_size, config.lr, config.target) == (64, 0.25, "text")


def test_values_of_layers_keep_the_bounds_too():
    with pytest.raises(UserError, match="--layer is 0, expected at least 1"):
        parse_config(Example, ["--run", "a"], None, lambda cls, given: {"layer": 0})


def test_every_loss_term_has_a_flag_with_its_own_default():
    config = TrainConfig()
    assert {term.flag: getattr(config, term.flag) for term in TERMS.values()} == {
        term.flag: term.weight for term in TERMS.values()}
