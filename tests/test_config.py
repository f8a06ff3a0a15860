"""Options: types, bounds, precedence, and what a wrong flag is told."""

import re
from pathlib import Path
from typing import Literal

import pytest

from attention.config import SEED, ClusterConfig, Config, EvaluateConfig, RealConfig, TrainConfig, option, parse_config
from attention.errors import UserError
from attention.files.published import ROOT
from attention.method.losses import TERMS
from attention.worlds.registry import configured, world_defaults

# Every flag of the authors' two programs, and what follows it; switches have nothing.
SHARED = {"description_dir": "corpus", "description": "a text", "ckpt": "a.pt", "stylegan_size": "1024",
          "cluster_num": "20", "channel_multiplier": "2", "attention_layer": "13", "batch_size": "2",
          "lr_rampup": "0.05", "lr": "0.01",
          "lambda_ess": "0.5", "lambda_sec": "0.5", "lambda_id": "0.5", "lambda_delta": "0.5", "step": "7",
          "latent_path": "a.pt", "truncation": "0.5", "work_in_stylespace": None, "save_intermediate_image_every": "0",
          "results_dir": "results", "ir_se50_weights": "a.pth", "amp": None, "world-size": "1", "rank": "0",
          "dist-url": "tcp://localhost:10001", "dist-backend": "nccl", "seed": "200", "gpu_id": "0",
          "multiprocessing-distributed": None}
TRAINING = SHARED | {"attention_description": "blonde hair", "own_description_dir": "phrases.txt", "use_cluster": None,
                     "cluster_path": "a.pkl", "cluster_layer": "13", "cutn": "64", "resume": "auto"}


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


def published_table() -> dict[str, list[str]]:
    text = (ROOT / "docs/differences.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").replace("`", "").split(" | ") for line in text.splitlines() if line.startswith("| `--")]
    return {row[0].removeprefix("--"): row[2:] for row in rows if len(row) == 4}


@pytest.mark.parametrize("column, cls, flags", [(0, TrainConfig, TRAINING), (1, ClusterConfig, SHARED)])
def test_every_published_flag_does_what_the_table_of_differences_says(column, cls, flags, capsys):
    table = {flag: cells[column] for flag, cells in published_table().items()}
    assert [flag for flag, cell in table.items() if cell == "-"] == [flag for flag in table if flag not in flags]
    for flag, value in flags.items():
        words, (said, _, rest) = [f"--{flag}", *filter(None, [value])], table[flag].partition(": ")
        if said == "refused":
            with pytest.raises(UserError, match=re.escape(f"--{flag} is a flag of the published program: {rest}")):
                parse_config(cls, words)
            continue
        config = parse_config(cls, ["--domain", "ffhq", *words], None, world_defaults)
        noted = capsys.readouterr().err
        assert noted == (f"--{flag} changes nothing here: {rest}\n" if said == "changes nothing" else ""), flag
        if said.startswith("as --"):
            name, _, other = said.removeprefix("as --").partition(" ")
            assert str(getattr(config, name)) == (other or value), flag
        elif said.startswith("taken"):
            assert str(getattr(config, flag.replace("-", "_"))) == (value or "True"), flag
            if match := re.search(r"taken, ([\d.,]+\d) by default", table[flag]):
                assert getattr(configured(cls, domain="ffhq"), flag) == float(match[1].replace(",", "")), flag


def test_what_changes_nothing_is_not_kept():
    kept = parse_config(TrainConfig, ["--cutn", "64"]).model_dump(mode="json")
    assert not {"cutn", "use_cluster", "lr_rampup"} & set(kept) and kept["batch_size"] == 8


def test_a_flag_given_twice_counts_as_the_last_and_a_switch_both_ways_is_refused(capsys):
    assert parse("--lr", "0.5", "--lr=0.25").lr == 0.25
    assert capsys.readouterr().err == "--lr is given twice: 0.25 counts, 0.5 does not\n"
    assert parse("--lr", "0.5", "--lr", "0.5", "--save", "--save-it").lr == 0.5 and not capsys.readouterr().err
    with pytest.raises(UserError, match=r"--save-it and --no_save contradict each other"):
        parse("--save-it", "--no_save")


def test_a_number_has_an_end_and_a_path_is_not_empty():
    huge = str(10**20)
    for cls, needed in ((TrainConfig, []), (ClusterConfig, []), (EvaluateConfig, []), (RealConfig, ["--photos", "x"])):
        for name, field in cls.model_fields.items():
            kind = str(field.annotation)
            if not field.exclude and ("int" in kind or "float" in kind):
                with pytest.raises(UserError, match=rf"^--{name} is 1(0{{20}}|e\+20), expected .*at most"):
                    parse_config(cls, [*needed, f"--{name}", huge])
            elif "Path" in kind or name in ("resume", "device", "domain", "init"):
                with pytest.raises(UserError, match=rf"^--{name} is '', expected a value$"):
                    parse_config(cls, [*(needed if name != "photos" else []), f"--{name}", ""])
    with pytest.raises(UserError) as error:
        parse_config(TrainConfig, ["--step", "1" * 5000])
    assert len(str(error.value)) < 200
    assert parse_config(TrainConfig, ["--seed", str(SEED), "--save_intermediate_image_every", "0"]).seed == SEED


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
