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
    assert result.stderr == "train_scripts.sh knows drawn (the default) and ffhq, not 'cats'\n"


@pytest.mark.parametrize("present", [(), FFHQ_FILES[1:]])
def test_ffhq_names_every_file_that_it_lacks_and_its_source(present, tmp_path):
    missing = [name for name in FFHQ_FILES if name not in present]
    shutil.copy(REPOSITORY / "train_scripts.sh", tmp_path)
    (tmp_path / "pretrained_models").mkdir()
    for name in present:
        (tmp_path / "pretrained_models" / name).write_bytes(b"weights")
    result = run_main_job(tmp_path / "train_scripts.sh", "ffhq", folder=Path("/"))
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and len(lines) == len(missing)
    for line, name in zip(lines, missing, strict=True):
        assert name in line and "is missing: get it from https://" in line


@pytest.mark.parametrize("script", ("train_scripts.sh", "tests/run.sh", ".ci/run", ".ci/environment.sh"))
def test_scripts_are_valid_bash(script):
    assert subprocess.run(["bash", "-n", REPOSITORY / script], capture_output=True, text=True).stderr == ""
