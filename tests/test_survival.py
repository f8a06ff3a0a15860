"""A run that is killed, asked to stop, or loses a process: nothing is half-written, and going on gives the same result."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_toml
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from warm import Program

from attention import clustering_feature, run_attention
from attention.errors import UserError
from attention.files.published import ROOT
from attention.training import checkpoints, distributed
from attention.training import loop as training
from attention.training.runs import trained_steps

STEPS = 8
USUAL = {"--step": str(STEPS), "--batch_size": "2", "--own_description_dir": str(ROOT / "tests/sheet.txt"),
         "--save_intermediate_image_every": "4", "--resume": "auto"}            # sheets of one prompt take little time


def flags(folder: Path, **own: str | None) -> list[str]:
    """How a run in a folder of `fresh` is begun or gone on with; `own` flags replace the usual ones, None takes one out."""
    chosen = {"--run": str(folder), "--domain": str(folder / "tiny.toml"), **USUAL,
              **{f"--{name}": value for name, value in own.items()}}
    return [word for name, value in chosen.items() if value is not None for word in (name, str(value))]


# Runs the training, with steps that last long enough to be stopped in, and ends its own process hard: at a time, or in the
# middle of the write of a checkpoint.
CHILD = """
import os, signal, sys, threading, time
import torch
from attention import run_attention
from attention.training import loop as training
from attention.errors import exit_with_message
torch.set_num_threads(1)
moment, *flags = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
real = training.gradients
def gradients(*arguments):      # the time counts from the first step: before it there is nothing to lose
    if timer is not None and not timer.is_alive():
        timer.start()
    time.sleep(0.2)
    return real(*arguments)
training.gradients, timer = gradients, None
if moment.startswith("write"):
    whole, count = torch.save, [int(moment[5:])]
    def save(state, path):
        count[0] -= 1
        if count[0] < 0:
            path.write_bytes(b"half of a checkpoint")
            die()
        whole(state, path)
    torch.save = save
elif moment.startswith("after"):
    timer = threading.Timer(float(moment[5:]), die)
    timer.daemon = True
exit_with_message(lambda: run_attention.main(flags))
"""


def start(folder: Path, moment: str = "never", **own: str) -> Program:
    return Program.of_code(CHILD, [moment, *flags(folder, **own)], folder.parent / f"said by {folder.name}")


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> Path:
    return clustered(tmp_path_factory.mktemp("regions"))


def clustered(folder: Path, seed: int = 42) -> Path:
    clustering_feature.main(["--domain", str(tiny_toml(folder)), "--run", str(folder), "--step", "2", "--seed", str(seed)])
    return folder / "regions.safetensors"


@pytest.fixture(scope="module")
def whole(regions, tmp_path_factory) -> Path:
    """The run folder of a run that nothing interrupts."""
    return finished(fresh(tmp_path_factory.mktemp("whole"), regions), save_intermediate_image_every="2")


def fresh(folder: Path, regions: Path) -> Path:
    """A folder with the world of random weights and its regions."""
    folder.mkdir(exist_ok=True)
    tiny_toml(folder)
    (folder / "regions.safetensors").write_bytes(regions.read_bytes())
    return folder


def finished(folder: Path, **own: str) -> Path:
    """Run on to the end, in this process: bits are compared, so with the children's one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_attention.main(flags(folder, **own))
    finally:
        torch.set_num_threads(threads)
    return folder


def assert_same_result(folder: Path, whole: Path):
    assert (folder / "editor.safetensors").read_bytes() == (whole / "editor.safetensors").read_bytes()
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (folder, whole)]
    assert lines[0] == lines[1]


def kill_and_go_on(folder: Path, moments: list[str], **own: str) -> None:
    for moment in moments:
        process = start(folder, moment, **own)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, errors
        for path in checkpoints.newest(folder / "checkpoints"):
            torch.load(path, weights_only=True)                         # whole, each of them
    finished(folder, **own)


def test_killed_while_writing_a_checkpoint_and_resumed_equals_uninterrupted(regions, whole, tmp_path):
    kill_and_go_on(fresh(tmp_path, regions), ["write1", "after0.1"])
    assert_same_result(tmp_path, whole)


@pytest.mark.slow
def test_killed_at_twenty_moments_and_resumed_equals_uninterrupted(regions, tmp_path):
    draw, steps = random.Random(0), {"step": "100"}         # more than are done between the kills
    moments = [f"write{draw.randrange(2)}" if i % 4 == 0 else f"after{draw.uniform(0, 2):.2f}" for i in range(20)]
    folders = [tmp_path / name for name in ("killed", "whole")]
    for folder in folders:
        fresh(folder, regions)
    kill_and_go_on(folders[0], moments, **steps)
    finished(folders[1], **steps, save_intermediate_image_every="100")
    assert_same_result(*folders)


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_polite_signal_ends_the_step_leaves_a_checkpoint_and_says_how_to_go_on(number, code, regions, whole, tmp_path):
    process = start(fresh(tmp_path, regions))
    while not list((tmp_path / "checkpoints").glob("[0-9]*.pt")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code and "Traceback" not in errors
    newest = checkpoints.newest(tmp_path / "checkpoints")[0]
    assert 2 < torch.load(newest, weights_only=True)["step"] == int(newest.stem) == trained_steps(tmp_path) < STEPS
    assert errors.count("go on with: python -m attention.run_attention --domain=") == 1
    assert_same_result(finished(tmp_path), whole)


def test_the_newest_checkpoints_and_the_best_are_kept(whole):
    assert [path.stem for path in checkpoints.newest(whole / "checkpoints")] == ["000008", "000006", "000004"]
    best = torch.load(whole / "checkpoints/best.pt", weights_only=True)
    kept = [torch.load(path, weights_only=True)["score"] for path in checkpoints.newest(whole / "checkpoints")]
    assert best["score"] <= min(kept)


def test_a_broken_newest_checkpoint_is_passed_over(regions, whole, tmp_path, capsys):
    folder = fresh(tmp_path, regions)
    (folder / "checkpoints").mkdir()
    for path in checkpoints.newest(whole / "checkpoints"):
        (folder / "checkpoints" / path.name).write_bytes(path.read_bytes())
    broken = folder / "checkpoints/000008.pt"
    broken.write_bytes(broken.read_bytes()[:1000])
    finished(folder)
    told = capsys.readouterr().err
    assert "passed over" in told and "000008.pt" in told and f"going on after step 6 from {folder}" in told
    assert (folder / "editor.safetensors").read_bytes() == (whole / "editor.safetensors").read_bytes()


def test_regions_of_another_seed_are_refused(whole, tmp_path):
    clustered(tmp_path, seed=7)
    with pytest.raises(UserError, match=r"best.pt was made with other options: the regions' seed 42 there, 7 here"):
        run_attention.main(flags(tmp_path, resume=whole / "checkpoints/best.pt"))


@pytest.mark.parametrize(("key", "value", "words"), [
    ("domain", "ffhq", "the domain ffhq there, tiny here"),
    ("generator_hash", "0123", "the generator 0123 there"),
    ("processes", 2, "processes 2 there, 1 here"),
    ("config", {"attention_layer": 9, "cluster_num": 20}, "--attention_layer 9 there, 7 here; --cluster_num 20 there"),
])
def test_a_checkpoint_of_something_else_is_refused_with_each_difference(key, value, words, whole, regions, tmp_path):
    state = torch.load(whole / "checkpoints/best.pt", weights_only=True)
    state[key] = {**state["config"], **value} if key == "config" else value
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError, match=words):
        run_attention.main(flags(fresh(tmp_path, regions), resume=tmp_path / "other.pt"))


def test_a_loss_that_is_not_finite_stops_the_run_before_it_moves_a_weight(regions, tmp_path, monkeypatch):
    real = training.gradients

    def broken(learner, draw):
        step = round(draw.t * learner.config.step)
        return real(learner, draw) | ({"perceptual": float("nan")} if step == 5 else {})

    monkeypatch.setattr(training, "gradients", broken)
    with pytest.raises(UserError, match=r"at step 5 because perceptual is nan.* the last good one is .*000004\.pt"):
        run_attention.main(flags(fresh(tmp_path, regions)))
    assert [path.stem for path in checkpoints.newest(tmp_path / "checkpoints")] == ["000004"]


def test_weights_that_are_not_finite_after_an_update_replace_no_file(whole, regions, tmp_path):
    state = torch.load(whole / "checkpoints/000006.pt", weights_only=True)
    for moments in state["optimiser"]["state"].values():
        moments["exp_avg"].fill_(1e38)
        moments["exp_avg_sq"].zero_()
    torch.save(state, tmp_path / "huge.pt")
    folder = fresh(tmp_path / "run", regions)
    with pytest.raises(UserError, match=r"training stopped at step 6 because the largest weight is .*huge\.pt"):
        run_attention.main(flags(folder, resume=tmp_path / "huge.pt"))
    assert not (folder / "editor.safetensors").exists() and not (folder / "checkpoints").exists()


def test_a_port_in_use_is_told(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(taken.getsockname()[1])), ("RANK", "0"),
                            ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        with (pytest.raises(UserError, match=rf"could not join the others at 127.0.0.1:{taken.getsockname()[1]} "
                                             r".*--master_addr .*--master_port"),
              distributed.group(torch.device("cpu"))):
            pass


def test_a_full_disk_while_saving_leaves_the_previous_checkpoint_whole(regions, tmp_path, monkeypatch):
    real, saves = torch.save, []

    def full(state, path):
        saves.append(path)
        if len(saves) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"000008.pt could not be written .*No space left"):
        run_attention.main(flags(fresh(tmp_path, regions)))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["000004.pt", "best.pt"]
    assert torch.load(tmp_path / "checkpoints/000004.pt", weights_only=True)["step"] == 4


def test_a_new_run_in_the_folder_of_an_old_one_is_refused_or_begins_without_its_checkpoints(whole, regions, tmp_path):
    folder = fresh(tmp_path, regions)
    (folder / "checkpoints").mkdir()
    for path in (whole / "checkpoints").iterdir():
        (folder / "checkpoints" / path.name).write_bytes(path.read_bytes())
    (folder / "checkpoints/.000004.pt.1.partial").write_bytes(b"left by a killed process")
    again = flags(folder, step="3", resume=None)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"holds a run already.* --resume auto.* --overwrite"):
        run_attention.main(again)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    run_attention.main([*again, "--overwrite"])
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["000003.pt", "best.pt"]
    assert torch.load(folder / "checkpoints/best.pt", weights_only=True)["step"] <= 3


def test_the_mistake_of_any_process_is_told(tmp_path):
    code, errors = run_as_two("fail", tmp_path)
    assert code == 2 and "Traceback" not in errors
    assert errors.count("error: only the second one knows") == errors.count("error:") == 1


def test_a_mistake_that_all_processes_make_is_told_once(tmp_path):
    failures = {}
    for number in range(2):
        (tmp_path / f"cause {number}").write_text("nowhere.safetensors: no regions there")
        failures[number] = ProcessFailure(number, 100 + number, 2, str(tmp_path / "none"))
    with pytest.raises(UserError) as told:
        distributed._tell(ChildFailedError("run", failures), tmp_path, 2)
    assert str(told.value) == "nowhere.safetensors: no regions there"


def run_as_two(name: str, folder: Path) -> tuple[int | None, str]:
    """Two processes of second_process.NAME: with what code they ended, and what they said."""
    code = ("import sys; sys.path[:0] = ['tests', '.']\nimport second_process\n"
            "from attention import errors\nfrom attention.training import distributed\n"
            f"errors.exit_with_message(lambda: distributed.start(2, None, second_process.{name}))")
    program = Program.of_code(code, [], folder)
    _, errors = program.communicate(timeout=120)
    return program.returncode, errors


def test_a_process_has_the_environment_of_who_starts_it_but_its_own_number(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    seen = []
    distributed._run(lambda: seen.append([os.environ[name] for name in ("RANK", "CUDA_VISIBLE_DEVICES")]), str(tmp_path),
                     {"RANK": "0", "CUDA_VISIBLE_DEVICES": "2,3"})
    assert seen == [["1", "2,3"]]


def test_one_process_of_two_dying_ends_the_run_with_its_error(tmp_path):
    code, errors = run_as_two("die", tmp_path)
    assert code == 1 and "process 1 of 2 was ended by signal 9" in errors


@pytest.mark.slow
def test_a_process_that_stands_still_is_told_after_a_while(tmp_path):
    code, errors = run_as_two("stand_still", tmp_path)
    assert code == 2 and errors.count("\n") == 1
    assert "process 0 of 2 had no answer from the others for 5 seconds" in errors


# Kills the second process once, before its sixth step; torchrun starts both again, and they go on by themselves.
RESTARTED = """
import os, signal, sys
from attention import run_attention
from attention.training import loop as training
real = training.gradients
def gradients(learner, draw):
    step = round(draw.t * learner.config.step)
    if step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(learner, draw)
training.gradients = gradients
run_attention.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(regions, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(RESTARTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max_restarts",
               "1", "--", script, *flags(fresh(tmp_path, regions), step="7", batch_size="1", resume=None)]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert f"going on after step 4 from {tmp_path}" in done.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 6] and torch.load(tmp_path / "checkpoints/000007.pt", weights_only=True)["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_a_polite_signal_reaches_all_processes(number, code, regions, tmp_path):
    command = [sys.executable, "-m", "attention.run_attention", "--multiprocessing-distributed", "--gpu_id", "0,1",
               *flags(fresh(tmp_path, regions), step="5000", batch_size="1")]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list((tmp_path / "checkpoints").glob("[0-9]*.pt")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in errors, errors
    newest = checkpoints.newest(tmp_path / "checkpoints")[0]
    assert torch.load(newest, weights_only=True)["step"] == int(newest.stem) < 500
