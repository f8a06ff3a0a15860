"""Run folders: whose they are, where the files that they name lie, and checkpoints that may come from anywhere."""

import json
import math
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from tiny import LinearCLIP, tiny_editor, tiny_toml, tiny_world

from attention import clustering_feature, run_attention
from attention.config import TrainConfig, parse_config
from attention.errors import UserError
from attention.files.published import SHIPPED
from attention.files.safetensors import read_safetensors, write_safetensors
from attention.training.captions import PhraseSampler
from attention.training.checkpoints import compare, forget_later, newest, read_checkpoint, resume, save_checkpoint
from attention.training.folder import claimed, refuse_inputs, refuse_strange
from attention.training.runs import KIND, command_again, load_run, plain, refit, save_editor, trained_steps
from attention.worlds.registry import WORLDS, configured, world_defaults

# --- one process at a time


def test_a_folder_is_held_by_one_process_which_the_next_is_told_of(tmp_path):
    (tmp_path / ".lock").write_text("left by a killed process")
    with claimed(tmp_path):
        with pytest.raises(UserError, match=f"is being written by process {os.getpid()} on .* since "), claimed(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before, kept", [(False, False), (True, True)], ids=["new", "old"])
def test_what_is_refused_leaves_no_folder_behind_but_one_that_was_there(before, kept, tmp_path):
    folder = tmp_path / "run"
    if before:
        folder.mkdir()
    with pytest.raises(UserError, match="no"), claimed(folder):
        raise UserError("no")
    assert folder.exists() == kept
    with claimed(tmp_path / "filled"):
        (tmp_path / "filled/regions").touch()
    assert (tmp_path / "filled/regions").exists()


@pytest.mark.parametrize("name", ["samples", "edits.png", "config.json"])
def test_what_is_of_no_run_is_not_removed_by_one(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=rf"has {name}, which is of no run and would be replaced; .*--run, .*--overwrite"):
        refuse_strange(tmp_path, overwrite=False)
    refuse_strange(tmp_path, overwrite=True)
    (tmp_path / "config.json").write_text('{"run": "a", "command": [], "versions": {}}')    # of one without a checkpoint
    refuse_strange(tmp_path, overwrite=False)


def test_what_a_run_reads_may_not_lie_where_it_removes(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "samples")
    for path in (tmp_path / "samples/world.toml", str(tmp_path / "link/generator.pt"), tmp_path / "editor.safetensors"):
        with pytest.raises(UserError, match="is read, and lies where a new training in --run"):
            refuse_inputs(tmp_path, [None, 3, tmp_path, path])
    refuse_inputs(tmp_path, [tmp_path / "regions.safetensors", tmp_path / "sampled/world.toml", "drawn"])


def test_a_new_training_refuses_its_own_inputs_before_anything_is_removed(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    flags = ["--domain", str(tiny_toml(folder)), "--run", str(tmp_path), "--device", "cpu"]
    clustering_feature.main([*flags, "--step", "2", "--batch_size", "2"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for more, words in (((), "has samples, which is of no run"), (("--overwrite",), r"tiny\.toml is read, and lies where")):
        with pytest.raises(UserError, match=words):
            run_attention.main([*flags, "--step", "2", "--batch_size", "2", *more])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# --- steps


def test_the_steps_are_those_of_the_file_and_of_its_options_where_it_does_not_say():
    assert trained_steps(SHIPPED) == 1200


# --- places


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder that holds a copy of the drawn generator, as generator.safetensors, and is where we are."""
    (tmp_path / "made").mkdir()
    shutil.copy(WORLDS["drawn"].generator, tmp_path / "made/generator.safetensors")
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made"


def trained(run: str, ckpt: str, steps: int = 5) -> Path:
    """The shipped editor as one of a run with these options, after so many steps."""
    editor, world, _ = load_run(SHIPPED, "cpu")
    config = configured(TrainConfig, domain="drawn", run=Path(run), ckpt=Path(ckpt), step=8)
    save_editor(editor, config, world, config.run / "editor.safetensors", steps)
    return config.run.resolve()


def test_a_run_finds_its_generator_from_any_folder_or_is_told_where_it_is(place, monkeypatch):
    run = trained("run", "generator.safetensors")
    monkeypatch.chdir("/")
    with pytest.warns(UserWarning, match="unfinished: it has 5 of 8 steps"):
        assert load_run(run, "cpu")[2].ckpt == place / "generator.safetensors"
    assert trained_steps(run) == 5
    (place / "generator.safetensors").rename(place / "elsewhere.safetensors")
    with pytest.raises(UserError, match=r"made/generator.safetensors, which is missing; .* --ckpt"):
        load_run(run, "cpu")
    with pytest.warns(UserWarning, match="unfinished"):
        load_run(run, "cpu", ckpt=place / "elsewhere.safetensors")


def test_what_lies_below_the_run_folder_moves_with_it(place, monkeypatch):
    (place / "run").mkdir()
    (place / "generator.safetensors").rename(place / "run/generator.safetensors")
    trained("run", "run/generator.safetensors", steps=8)
    (place / "run").rename(place.parent / "moved")
    monkeypatch.chdir("/")
    assert load_run(place.parent / "moved", "cpu")[2].ckpt == place.parent / "moved/generator.safetensors"


def test_a_relative_path_of_an_older_run_counts_from_where_we_are(place):
    run = trained("run", "generator.safetensors", steps=8)
    tensors, metadata = read_safetensors(run / "editor.safetensors", KIND, "")
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | {"ckpt": "generator.safetensors"})
    write_safetensors(run / "editor.safetensors", tensors, {**metadata, "steps": "x"})
    assert load_run(run, "cpu")[2].ckpt == Path("generator.safetensors") and trained_steps(run) == 8


def test_an_editor_of_a_mapper_that_is_not_known_here_is_named_with_its_file(place):
    run = trained("run", "generator.safetensors", steps=8)
    tensors, metadata = read_safetensors(run / "editor.safetensors", KIND, "")
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | {"mapper": "gentle"})
    write_safetensors(run / "editor.safetensors", tensors, metadata)
    with pytest.raises(UserError, match=r"editor\.safetensors has the mapper 'gentle', but .* style, natural; "
                       r"train it again: python -m attention\.run_attention --run \S*run --domain drawn$"):
        load_run(run, "cpu")


@pytest.mark.parametrize("flags", [
    "--run runs/a --seed 3", "--run 'a b' --no_relative --lambda_id 0 --lr 1e-3 --multiprocessing-distributed --gpu_id 0,1",
    "--domain ffhq --recipe released --attention_layer 11 --batch_size 2 --description 'narrow eyes' --use_cluster",
    "--ckpt my.pt --cluster_path other/regions.safetensors --save_intermediate_image_every 7"])
def test_the_command_that_is_told_after_a_stop_is_the_same_run(flags):
    def config(words):
        return parse_config(TrainConfig, words, None, world_defaults)

    words = shlex.split(command_again(config(shlex.split(flags))))
    assert words[:3] == ["python", "-m", "attention.run_attention"] and words[-1] == "--resume=auto"
    assert plain(config(words[3:])) == plain(config([*shlex.split(flags), "--resume", "auto"]))


def test_regions_of_something_else_are_not_to_be_fitted_over(tmp_path):
    def command(path):
        return refit(configured(TrainConfig, domain="drawn", run=tmp_path / "run", cluster_path=path))

    path = tmp_path / "other/regions.safetensors"
    assert command(path).endswith("--cluster_num 64") and f"--run {path.parent} " in command(path)
    path.parent.mkdir()
    path.touch()
    told = shlex.split(command(path), comments=True)
    assert told[told.index("--run") + 1] == str(tmp_path / "run")
    assert command(path).endswith("# and leave --cluster_path out")


# --- checkpoints

PHRASES = ("red hair", "blue eyes", "a beard")


class Run:
    """A run of the tiny editor, as far as checkpoints see it."""

    def __init__(self, folder: Path, **options):
        self.editor = tiny_editor()
        self.world = tiny_world(self.editor.generator, LinearCLIP(torch.ones(192, 8), 8))
        self.config = TrainConfig(run=folder, step=8, **options)
        self.optimiser = torch.optim.Adam(self.editor.parameters(), lr=1e-3)
        self.sampler = PhraseSampler(PHRASES, 0)

    def stepped(self, steps: int) -> "Run":
        """After so many steps, saved after each."""
        for step in range(1, steps + 1):
            for weight in self.editor.parameters():
                weight.grad = torch.ones_like(weight)
            self.optimiser.step()
            save_checkpoint(self.config, self.world, self.editor, self.optimiser, self.sampler, step, float(-step))
        return self

    def go_on(self, wish: object = "auto", **options):
        self.config = self.config.replaced(resume=str(wish), **options)
        return resume(self.config, self.world, self.editor, self.optimiser, self.sampler)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    Run(folder).stepped(1)
    return folder / "checkpoints/000001.pt"


def test_going_on_takes_the_newest_and_passes_over_other_names(tmp_path):
    first = Run(tmp_path).stepped(3)
    for name in ("000009 (copy).pt", "000009.pt.bak", "12.pt", "٠٠٠٠٠٩.pt", "best (1).pt"):
        shutil.copy(tmp_path / "checkpoints/000001.pt", tmp_path / "checkpoints" / name)
    (tmp_path / "checkpoints/000099.pt").mkdir()
    assert [path.name for path in newest(tmp_path / "checkpoints")] == ["000003.pt", "000002.pt", "000001.pt"]
    second = Run(tmp_path)
    assert second.go_on() == (3, tmp_path / "checkpoints/000003.pt")
    for one, other in zip(first.editor.parameters(), second.editor.parameters(), strict=True):
        assert torch.equal(one, other) and torch.equal(
            first.optimiser.state[one]["exp_avg_sq"], second.optimiser.state[other]["exp_avg_sq"])
    forget_later(tmp_path, 3)
    assert (tmp_path / "checkpoints/000009 (copy).pt").exists()


def test_more_steps_are_told_and_fewer_than_were_done_are_refused(tmp_path, capsys):
    Run(tmp_path).stepped(3)
    assert Run(tmp_path).go_on(step=20)[0] == 3
    assert "--step 20 instead of 8: learning rate and ramps count 20 from here on" in capsys.readouterr().err
    with pytest.raises(UserError, match="--step 8 there, 2 here"):
        Run(tmp_path).go_on(step=2)


def test_a_named_checkpoint_replaces_no_later_step_and_no_other_run_unasked(tmp_path, checkpoint):
    Run(tmp_path).stepped(3)
    for path in (tmp_path / "checkpoints/000002.pt", checkpoint):
        with pytest.raises(UserError, match=r"holds a run already .*would replace; .*--resume auto.*--overwrite"):
            Run(tmp_path).go_on(path)
        assert Run(tmp_path).go_on(path, overwrite=True)[1] == path


def test_other_prompts_are_told_wherever_they_come_from(checkpoint, tmp_path):
    run = Run(tmp_path)
    run.sampler = PhraseSampler(PHRASES[:2], 0)
    with pytest.raises(UserError, match="was made with other options: the prompts "):
        run.go_on(checkpoint)
    assert Run(tmp_path, captions=tmp_path, ckpt=tmp_path / "moved.pt").go_on(checkpoint)[0] == 1


WRONG = [None, [], {}, "", "\x1b[2Jx", True, -1, math.nan, math.inf, 10**30, torch.ones(2), b"x"]


@pytest.mark.parametrize("key", ["editor", "optimiser", "step", "score", "config", "domain", "generator_hash", "regions",
                                 "processes", "prompts"])
def test_a_checkpoint_with_a_field_of_another_kind_is_refused_by_a_sentence(key, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    path, run = tmp_path / "garbled.pt", Run(tmp_path / "run")
    possible = {"score": WRONG[6:7] + WRONG[9:10], "prompts": [""], "generator_hash": [""]}
    for value in WRONG:
        if any(value is one for one in possible.get(key, ())):
            continue
        torch.save({**state, key: value}, path)
        with pytest.raises(UserError) as refused:
            run.go_on(path)
        assert str(refused.value).isprintable() and "garbled.pt" in str(refused.value), value


def test_options_of_another_kind_in_a_checkpoint_are_refused_by_a_sentence(checkpoint, tmp_path):
    state, path, run = torch.load(checkpoint, weights_only=True), tmp_path / "garbled.pt", Run(tmp_path / "run")
    saved = read_checkpoint(checkpoint)
    for name in [*TrainConfig.model_fields, "_cli_parse_args", "cls", "unknown"]:
        for value in ([1], {"a": 1}, "\x1b[2Jx", 10**30, math.nan):
            saved.config = {**state["config"], name: value}
            said = _refusal(run, saved, path)
            assert said is None or (said.isprintable() and "garbled.pt" in said), (name, value)
            assert said is not None or name in TrainConfig.model_fields, (name, value)


def _refusal(run: Run, saved, path: Path) -> str | None:
    try:
        compare(run.config, run.world, run.editor, run.sampler, saved, path)
    except UserError as error:
        return str(error)
    return None


def test_weights_and_moments_that_do_not_fit_or_are_not_finite_are_refused(checkpoint, tmp_path):
    def damaged(where, name, value):
        state = torch.load(checkpoint, weights_only=True)
        (state["editor"] if where == "editor" else state["optimiser"]["state"][0])[name] = value
        torch.save(state, tmp_path / "damaged.pt")
        run = Run(tmp_path / "run")
        before = [weight.clone() for weight in run.editor.parameters()]
        with pytest.raises(UserError, match=r"damaged\.pt"):
            run.go_on(tmp_path / "damaged.pt")
        assert all(torch.equal(*pair) for pair in zip(before, run.editor.parameters(), strict=True))

    state = torch.load(checkpoint, weights_only=True)
    weight, moment = "attention.initial", state["optimiser"]["state"][0]["exp_avg"]
    for value in (torch.full_like(state["editor"][weight], torch.nan), torch.ones(2), state["editor"][weight].long(), "x"):
        damaged("editor", weight, value)
    for name, value in (("exp_avg", torch.full_like(moment, torch.nan)), ("exp_avg", torch.ones(2)), ("step", 3),
                        ("more", 1), ("exp_avg_sq", -torch.ones_like(moment)), ("step", torch.tensor(0.0))):
        damaged("moments", name, value)


def test_what_is_no_checkpoint_is_told_what_it_is(tmp_path):
    torch.save({"module.initial_state": torch.ones(20, 8)}, tmp_path / "final_mapper.pt")
    (tmp_path / "run").mkdir()
    for path, words in ((tmp_path / "final_mapper.pt", r"attention.convert .*final_mapper.pt, then --init .*final_mapper "),
                        (tmp_path / "run", "is a folder; .*--resume auto, .* --init"), (tmp_path / "none", "is missing"),
                        (Path("a" * 300), "cannot be opened")):
        with pytest.raises(UserError, match=words):
            read_checkpoint(path)
