"""What a run leaves to look at: every step once, TensorBoard and plot say the same, and where the run came from."""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attention.errors import UserError
from attention.training.run_log import (
    RunLog,
    check_finite,
    git_state,
    metrics_figure,
    package_version,
    plot_metrics,
    read_metrics,
)


def run_steps(folder, first, last, start=0, offset=0.0):
    """A run that logs every tenth step and then dies without closing anything."""
    log = RunLog(folder, {}, start)
    for step in range(first, last, 10):
        log.scalars(step, {"total": step + offset, "perceptual": 0.1 * step + offset})
    return log


def lines_on_disk(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def board(folder):
    return EventAccumulator(str(folder / "tensorboard")).Reload()


# --- metrics.jsonl


def test_a_step_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    log = RunLog(tmp_path, {})                  # stays open: nothing is written by closing it
    log.scalars(0, {"total": 1.5, "perceptual": 0.25})
    assert lines_on_disk(tmp_path) == [{"step": 0, "total": 1.5, "perceptual": 0.25}]
    assert board(tmp_path).Scalars("training/total")[0].value == 1.5


@pytest.mark.parametrize("start", [20, 25, 30, 0])
def test_a_resumed_run_has_every_step_once_and_in_order(tmp_path, start):
    run_steps(tmp_path, 0, 50)
    again = math.ceil(start / 10) * 10
    run_steps(tmp_path, again, 70, start, offset=0.5)
    expected = [step + 0.5 * (step >= start) for step in range(0, 70, 10)]
    assert [line["step"] for line in lines_on_disk(tmp_path)] == list(range(0, 70, 10))
    assert [line["total"] for line in lines_on_disk(tmp_path)] == expected


@pytest.mark.parametrize("half", ['{"step": 30, "total": 1.', '{"step"', '{"step": 30, "total": 30.0, "perceptual": 3.0'])
def test_a_line_cut_in_the_middle_is_dropped_and_the_next_is_whole(tmp_path, half):
    run_steps(tmp_path, 0, 30)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 10, 20]
    run_steps(tmp_path, 40, 50, start=40)
    assert [line["step"] for line in lines_on_disk(tmp_path)] == [0, 10, 20, 40]


@pytest.mark.parametrize("line", ['{"step": "a"}', '{"step": -1}', '{"step": 1.5}', '{"step": 0, "total": "x"}', "[1]",
                                  "\0", '{"step": null}', "[" * 200_000, '{"step": ' + "9" * 5000 + "}"], ids=range(9))
def test_a_line_that_holds_anything_but_a_step_and_numbers_is_left_out(line, tmp_path):
    run_steps(tmp_path, 0, 20)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n" + '{"step": 20, "total": NaN}\n')
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 10, 20]


def test_what_is_no_file_of_lines_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl is a folder, expected the values"):
        read_metrics(tmp_path)


def test_a_resume_that_fails_while_it_drops_lines_leaves_them_all(tmp_path, monkeypatch):
    run_steps(tmp_path, 0, 50)
    before, replace = (tmp_path / "metrics.jsonl").read_bytes(), os.replace

    def full(source, target):
        if Path(target).name == "metrics.jsonl":
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"metrics\.jsonl could not be written"):
        RunLog(tmp_path, {}, start=20)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


# --- TensorBoard


@pytest.mark.parametrize("start", [20, 0])
def test_tensorboard_has_the_scalars_of_metrics_jsonl_after_a_resume(tmp_path, start):
    run_steps(tmp_path, 0, 50)
    run_steps(tmp_path, start, 40, start, offset=0.5).close()          # shorter: what it did not reach again is gone too
    events = board(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["training/perceptual", "training/total"]
    for name in ("total", "perceptual"):
        assert [(event.step, event.value) for event in events.Scalars(f"training/{name}")] == [
            (line["step"], float(np.float32(line[name]))) for line in lines_on_disk(tmp_path)]


def test_tensorboard_shows_the_picture_pixel_by_pixel_and_keeps_the_checkpoints_one_on_resume(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3), dtype=np.uint8)
    log = RunLog(tmp_path, {})
    log.picture(19, "samples", Image.fromarray(pixels[0]))             # beside the checkpoint after 20 steps
    log.picture(39, "samples", Image.fromarray(pixels[1]))
    run_steps(tmp_path, 20, 30, start=20)
    (event,) = board(tmp_path).Images("samples")
    assert (event.step, event.width, event.height) == (19, 9, 6)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(event.encoded_image_string))), pixels[0])


# --- config.json


def test_config_json_has_every_option_the_versions_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_attention.py", "--seed", "7"])
    RunLog(tmp_path, {"seed": 7, "run": Path("runs/one"), "captions": None, "lr": 0.01})
    record = json.loads((tmp_path / "config.json").read_text())
    assert {"seed": 7, "run": "runs/one", "captions": None, "lr": 0.01}.items() <= record.items()
    assert record["command"] == ["run_attention.py", "--seed", "7"]
    assert record["versions"].keys() == {"python", "torch", "torchvision", "open_clip_torch", "numpy", "where2edit"}
    assert record["versions"]["python"] == platform.python_version()
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["git"] == git_state(Path(__file__).resolve().parents[1])


def test_a_package_that_runs_from_its_source_has_the_version_source(tmp_path, monkeypatch):
    assert package_version("made-up-for-this-test") == "source"
    (tmp_path / "made_up_for_this_test-1.2.dist-info").mkdir()
    (tmp_path / "made_up_for_this_test-1.2.dist-info/METADATA").write_text("Name: made-up-for-this-test\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_version("made-up-for-this-test") == "1.2"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one commit."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:      # in a hook, these name another repository
        monkeypatch.delenv(name)
    (tmp_path / "method.py").write_text("strength = 0.1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path, *words], check=True)
    return tmp_path


@pytest.mark.parametrize("changed", ["method.py", "new.py"])
def test_git_gives_the_commit_and_whether_anything_differs_from_it(checkout, changed):
    head = (checkout / ".git" / (checkout / ".git/HEAD").read_text().split()[1]).read_text().strip()
    assert git_state(checkout) == {"commit": head, "uncommitted": False}
    (checkout / changed).write_text("strength = 0.2\n")
    assert git_state(checkout) == {"commit": head, "uncommitted": True}


def test_no_commit_is_claimed_without_a_checkout_or_without_git(checkout, monkeypatch):
    (checkout / "copy").mkdir()                 # inside the checkout of something else, as a virtual environment may be
    assert git_state(checkout / "copy") is None
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout) is None


# --- plot.png

LINES = [{"step": step, "total": 2.0 - step, "wide": 10.0 ** (-step), "narrow": 1.0 + step, "late": 5.0 * step}
         for step in range(4)]
LINES[0].pop("late")


def test_the_plot_has_one_panel_a_loss_with_its_name_and_its_values():
    panels = metrics_figure(LINES).axes
    assert [panel.get_title() for panel in panels] == ["total", "wide", "narrow", "late"]
    for panel in panels:
        expected = [(line["step"], line[panel.get_title()]) for line in LINES if panel.get_title() in line]
        assert panel.lines[0].get_xydata().tolist() == [list(point) for point in expected]


def test_the_scale_is_logarithmic_only_for_positive_values_over_two_decades():
    for values, scale in (((1.0, 101.0), "log"), ((1.0, 99.0), "linear"), ((0.0, 1000.0), "linear"),
                          ((-1.0, 1000.0), "linear"), ((math.nan, 1e-6, 1e-2), "log"), ((3.0,), "linear"),
                          ((math.nan,), "linear"), ((1.0, math.inf), "linear")):
        (panel,) = metrics_figure([{"step": step, "total": value} for step, value in enumerate(values)]).axes
        assert panel.get_yscale() == scale, values


def test_a_single_logged_step_can_be_seen():
    (panel,) = metrics_figure([{"step": 0, "total": 1.0}]).axes
    assert panel.lines[0].get_marker() == "."


def test_plot_png_is_drawn_from_metrics_jsonl_alone_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)                # importing it now fails
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 4, "to')
    path = plot_metrics(tmp_path)
    with Image.open(path) as picture:
        assert path == tmp_path / "plot.png" and picture.format == "PNG"
        assert picture.size == (1080, 440)                                     # three panels across, two rows
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10           # something is drawn


def test_nothing_to_plot_is_said_with_the_command_that_trains(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl has no whole line.*python -m attention\.run_attention --run"):
        plot_metrics(tmp_path)


# --- values that are not finite


def test_a_loss_that_is_not_finite_is_named_with_the_step_the_checkpoint_and_the_way_on():
    values = {"total": math.nan, "clip_contrastive": 1.0, "perceptual": math.inf, "style_delta": 2.0}
    with pytest.raises(UserError) as caught:
        check_finite(37, values, Path("runs/one/state.pt"))
    message = str(caught.value)
    for words in ("step 37", "total is nan", "perceptual is inf", "runs/one/state.pt", "--resume", "lower --lr",
                  "--precision fp32"):
        assert words in message
    assert "clip_contrastive" not in message and "style_delta" not in message


def test_without_a_checkpoint_the_way_on_is_a_new_start():
    with pytest.raises(UserError, match=r"perceptual is -inf.*no checkpoint.*start again.*lower --lr") as caught:
        check_finite(0, {"perceptual": -math.inf}, None)
    assert "--resume" not in str(caught.value)


def test_finite_values_pass():
    check_finite(3, {"total": 1e30, "perceptual": 0.0}, None)


def test_a_folder_that_is_gone_is_told_in_a_sentence_alone(tmp_path, capfd):
    log = run_steps(tmp_path / "run", 0, 10)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"tensorboard could not be written .*No such file.*--resume auto"):
        log.scalars(10, {"total": 1.0})
    log.close()
    assert "Traceback" not in capfd.readouterr().err
