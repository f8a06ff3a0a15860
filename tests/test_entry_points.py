"""The three entry points, end to end through main([...]) on the shipped drawn world, and what they say of mistakes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_toml

from attention import clustering_feature, evaluate, run_attention
from attention.errors import UserError
from attention.files.published import ROOT, SHIPPED
from attention.training.runs import Calibration, load_run, read_editor, ship_editor, write_calibration
from attention.worlds.registry import WORLDS

pytestmark = pytest.mark.skipif(not WORLDS["drawn"].generator.exists(), reason="the drawn world is not built")
SHEET = ["--own_description_dir", str(ROOT / "tests/sheet.txt")]          # of one prompt, which takes little time


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder: regions of few faces, four training steps."""
    folder = tmp_path_factory.mktemp("run")
    clustering_feature.main(["--run", str(folder), "--step", "2"])
    run_attention.main(["--run", str(folder), "--step", "4", "--batch_size", "3", "--save_intermediate_image_every", "4"])
    return folder


def train(folder, *flags):
    return run_attention.main(["--run", str(folder), *flags])


def test_a_run_folder_holds_everything_that_the_readme_names(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "regions.safetensors", "regions.png", "regions.json", "editor.safetensors", "checkpoints",
            "metrics.jsonl", "samples", "plot.png", "tensorboard"} <= names
    assert not [name for name in names if name.endswith(".partial")]
    assert Image.open(run / "samples/000004.png").size[0] > 1000


def test_every_loss_is_logged_under_its_own_name(run):
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert {"clip_contrastive", "region_consistency", "attention_budget", "attention_area", "perceptual",
            "style_delta"} <= set(line)


def test_the_run_folder_rebuilds_its_editor(run):
    editor, _, config = load_run(run)
    stored = load_file(run / "editor.safetensors")
    assert config.step == 4
    assert all(torch.equal(value, stored[name]) for name, value in editor.state_dict().items())


def test_evaluation_writes_a_figure_for_every_prompt(run):
    evaluate.main(["--run", str(run), "--faces", "2", "--strengths", "0.1"])
    report = json.loads((run / "metrics.json").read_text())
    assert report["training_steps"] == 4
    assert set(report["prompts"]) == set(WORLDS["drawn"].prompts)
    assert 0 <= report["mean"]["iou"] <= 1 and (run / "edits.png").exists()


def test_clustering_is_deterministic_for_a_seed(tmp_path):
    files = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        clustering_feature.main(["--domain", str(tiny_toml(folder)), "--run", str(folder), "--step", "2"])
        files.append((folder / "regions.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(("flags", "words"), [
    (["--attention_layer", "14"], ["layer 14", "rgb", "conv layers"]),
    (["--attention_layer", "15"], ["13", "15", "clustering_feature"]),
    (["--attention_layer", "99"], ["layer 99", "does not exist"]),
    (["--attention_layer", "10"], ["layer", "10", "clustering_feature"]),
    (["--cluster_num", "7"], ["regions", "7", "clustering_feature"]),
    (["--step", "-3"], ["--step", "-3", "at least 1"]),
    (["--domain", "cats"], ["--domain", "cats", "drawn"]),
    (["--device", "tpu"], ["--device", "tpu"]),
    (["--device", "cuda:9"], ["--device", "cuda:9", "cpu"]),
    (["--colour", "red"], ["--colour"]),
    (["--batch_size", "1"], ["--batch_size", "at least 2"]),
    (["--ckpt", "nowhere.pt"], ["nowhere.pt", "missing"]),
    (["--cluster_path", "nowhere.safetensors"], ["nowhere.safetensors", "clustering_feature"]),
    (["--resume", "auto", "--lr", "0.5"], ["--lr", "0.5"]),
    (["--cluster_layer", "99"], ["layer 99", "does not exist"]),
    (["--batch_size", "1000"], ["phrases", "--batch_size"]),
    (["--resume", ""], ["--resume"]),
])
def test_a_training_mistake_is_one_sentence_that_names_it(run, flags, words):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(UserError) as error:
        train(run, "--overwrite", *flags)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_more_regions_than_points_is_refused(tmp_path):
    with pytest.raises(UserError, match="regions"):
        clustering_feature.main(["--run", str(tmp_path), "--step", "1", "--batch_size", "1", "--cluster_num", "5000"])


@pytest.mark.parametrize("kind", ["truncated", "wrong kind", "text"])
def test_a_broken_generator_file_is_named(tmp_path, kind):
    path = tmp_path / "generator.safetensors"
    if kind == "truncated":
        path.write_bytes(WORLDS["drawn"].generator.read_bytes()[:10_000])
    elif kind == "wrong kind":
        save_file({"x": torch.zeros(3)}, path)
    else:
        path.write_text("not weights at all")
    with pytest.raises(UserError):
        train(tmp_path, "--ckpt", str(path))


def test_a_file_in_place_of_the_run_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        clustering_feature.main(["--run", str(tmp_path / "taken"), "--step", "1"])


def test_a_mistake_on_the_command_line_exits_with_2_and_no_traceback():
    done = subprocess.run([sys.executable, "-m", "attention.run_attention", "--step", "-1"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("main", [run_attention.main, clustering_feature.main])
def test_a_run_is_replaced_only_where_that_is_asked_for(main, run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(UserError, match=r"holds a run already.* --resume auto.* --overwrite"):
        main(["--run", str(run)])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_may_start_from_an_editor_whose_attention_then_stays_as_it_is(tmp_path):
    train(tmp_path, "--init", "drawn", "--attention_start", "1.15", "--step", "2", "--batch_size", "2", *SHEET)
    before, after = load_file(SHIPPED / "editor.safetensors"), load_file(tmp_path / "editor.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value.float(), after[name])}
    assert changed and all(name.startswith("mapper.") for name in changed)
    with pytest.raises(UserError, match=r"--init .* --cluster_num 64 there, 20 here; --max_change 30.0 there, 0.0"):
        train(tmp_path / "other", "--init", str(tmp_path), "--cluster_num", "20", "--max_change", "0")


def test_what_suits_a_text_is_learned_with_and_kept_by_a_run_that_starts_from_it(tmp_path):
    """Layers that an editor leaves alone for a text learn nothing by it."""
    begun, calibration = tmp_path / "begun.safetensors", Calibration(kept={"red hair": 4.0, "grey hair": 4.0})
    shutil.copy(SHIPPED / "editor.safetensors", begun)
    write_calibration(begun, calibration)
    (tmp_path / "phrases.txt").write_text("red hair\ngrey hair\n")
    train(tmp_path / "run", "--init", str(begun), "--attention_start", "1.15", "--step", "2", "--batch_size", "2",
          "--captions", str(tmp_path / "phrases.txt"), "--where_share", "0", *SHEET)
    assert read_editor(tmp_path / "run/editor.safetensors").calibration == calibration
    before, after = load_file(begun), load_file(tmp_path / "run/editor.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value.float(), after[name])}
    layers = {int(name.split(".")[2]) for name in changed}
    assert layers and min(layers) == 4, changed
    (tmp_path / "shipped").mkdir()
    ship_editor(tmp_path / "run", tmp_path / "shipped", lambda tensors: tensors)
    made, shipped = (read_editor(tmp_path / folder / "editor.safetensors") for folder in ("run", "shipped"))
    assert shipped.calibration == calibration and shipped.config.lr == made.config.lr
    assert made.config.captions == tmp_path / "phrases.txt" and shipped.config.captions is None


@pytest.mark.parametrize("environment", [
    {"WORLD_SIZE": ""}, {"WORLD_SIZE": "2", "RANK": "0"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "0"}, {"RANK": "1"},
    {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    {"LOCAL_RANK": "3"}, {"WORLD_SIZE": "9" * 5000, "RANK": "0"}])
def test_what_another_program_left_in_the_environment_is_named_and_help_works(environment, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for main in (run_attention.main, evaluate.main, clustering_feature.main):
        with pytest.raises(UserError, match=f"the environment says .*{next(iter(environment))}=.*unset .*torchrun"):
            main([])
        with pytest.raises(SystemExit) as ended:
            main(["--help"] if main is evaluate.main else ["--recipe", "released", "--help"])
        assert ended.value.code == 0 and "--run" in capsys.readouterr().out


def test_processes_that_are_asked_for_beside_those_of_a_launcher_are_refused(monkeypatch, tmp_path):
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="ask for 2 processes, but the environment says that 1 of 1"):
        train(tmp_path, "--gpu_id", "0,1", "--multiprocessing-distributed", "--device", "cpu")


def test_a_folder_of_weights_that_nobody_can_look_into_stops_no_help(tmp_path):
    for weights in (str(tmp_path / ("x" * 300)), ""):
        done = subprocess.run([sys.executable, "-m", "attention", "edit", "--help"], cwd=ROOT, capture_output=True,
                              text=True, env=os.environ | {"WHERE2EDIT_WEIGHTS": weights}, timeout=60)
        assert done.returncode == 0 and "--what" in done.stdout, done.stderr
