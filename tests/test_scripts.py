"""The shell scripts' answers to a wrong call. Nothing is installed: VIRTUAL_ENV is the environment of this test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FFHQ_FILES = ("stylegan2-ffhq-config-f.pt", "ViT-B-32.pt", "vgg16-397923af.pth")


def run_main_job(script: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PIP_NO_INDEX": "1"}
    return subprocess.run(["bash", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=60)


def test_an_unknown_domain_is_one_sentence_and_exit_code_2(tmp_path):
    result = run_main_job(REPOSITORY / "train_scripts.sh", "cats", folder=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    known = "drawn (the default), faces, ffhq, ffhq-8gpu, released and benchmark"
    assert result.stderr == f"train_scripts.sh knows {known}, not 'cats'\n"


def test_options_without_a_name_mean_drawn_whose_second_run_is_refused_before_any_work(tmp_path):
    (tmp_path / "editor.safetensors").write_bytes(b"trained for hours")
    result = run_main_job(REPOSITORY / "train_scripts.sh", "--run", str(tmp_path), folder=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert "holds a run already" in result.stderr and "--resume auto" in result.stderr and "--overwrite" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["editor.safetensors"]


def test_help_says_what_the_main_job_can_do():
    result = run_main_job(REPOSITORY / "train_scripts.sh", "ffhq", "--help", folder=REPOSITORY)
    assert result.returncode == 0 and result.stderr == ""
    assert all(word in result.stdout for word in ("ffhq-8gpu", "released", "benchmark", "--resume auto", "--overwrite"))


@pytest.mark.parametrize(("name", "present"), [("ffhq", ()), ("ffhq", FFHQ_FILES[1:]), ("ffhq-8gpu", ()), ("released", ()),
                                               ("ffhq --lambda_id 0", FFHQ_FILES[1:2])])
def test_ffhq_names_every_file_that_it_lacks_and_its_source(name, present, tmp_path):
    unused = FFHQ_FILES[2:] if "--lambda_id 0" in name else ()
    missing = [file for file in FFHQ_FILES if file not in (*present, *unused)]
    shutil.copy(REPOSITORY / "train_scripts.sh", tmp_path)
    (tmp_path / "pretrained_models").mkdir()
    for file in present:
        (tmp_path / "pretrained_models" / file).write_bytes(b"weights")
    result = run_main_job(tmp_path / "train_scripts.sh", *name.split(), folder=Path("/"))
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and len(lines) == len(missing)
    for line, file in zip(lines, missing, strict=True):
        assert f"{file} is missing: get it from https://" in line and f"python -m attention.download {file}" in line


@pytest.mark.parametrize("script", ("train_scripts.sh", "tests/run.sh", "benchmarks/gpu.sh", ".ci/run",
                                    ".ci/environment.sh"))
def test_scripts_are_valid_bash(script):
    assert subprocess.run(["bash", "-n", REPOSITORY / script], capture_output=True, text=True).stderr == ""
