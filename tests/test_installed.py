"""What is installed works: a wheel in a folder that nobody may write, without the packages that only some commands need."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import attention
from attention import clustering_feature, download, evaluate, evaluate_real, run_attention
from attention.__main__ import COMMANDS
from attention.editing import page
from attention.errors import UserError
from attention.extras import EXTRAS
from attention.files.published import ROOT, SHIPPED, SHIPPED_FACES
from attention.worlds.drawn import build
from attention.worlds.toml import tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TABLE = "attention/files/published.json"        # of the published files
# Commands that must not wait for torch before they can tell what they do, and those that may.
LIGHT = ["-m attention", *(f"-m attention {word}" for word in COMMANDS), "-m attention.clustering_feature",
         "-m attention.run_attention", "-m attention.evaluate", "-m attention.evaluate_real", "-m attention.download",
         "-m attention.convert", "-m attention.checkpoints", "attention/clustering_feature.py",
         "attention/run_attention.py", "show_demo/edit_image.py", "show_demo/try_demo.py"]
HEAVY = ["attention.worlds.drawn.build", "attention.worlds.faces.build",
         "attention.worlds.drawn.photos", "attention.baselines.fit"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built aside: setuptools leaves a build folder beside what it builds."""
    top = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "attention", top / "attention", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SHIPPED, top / "pretrained_models/drawn")
    shutil.copytree(SHIPPED_FACES, top / "pretrained_models/faces")
    shutil.copytree(ROOT / "celeba-caption", top / "celeba-caption")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, top)
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", top], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((top / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def packages(wheel, tmp_path_factory):
    """An unwritable folder of packages with the wheel alone; other packages are found where this test has them."""
    folder = tmp_path_factory.mktemp("packages")
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder,
                    wheel], check=True)
    subprocess.run(["chmod", "-R", "a-w", folder], check=True)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)


def run_installed(packages, *words, folder, **environment):
    """What the installed copy does in a folder, with nothing of this checkout on its path."""
    inherited = {name: value for name, value in os.environ.items() if name != "WHERE2EDIT_WEIGHTS"}
    own = {"PYTHONPATH": str(packages), "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"),
           "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env={**inherited, **own, **environment}, capture_output=True, text=True,
                          timeout=120)


def modules_of(stderr):
    """What a process has imported, as PYTHONPROFILEIMPORTTIME=1 lets it say."""
    return set(re.findall(r"^import time:.*\| +(\S+)$", stderr, re.MULTILINE))


def listed(folder):
    """Every file of a folder with its size and time."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.program
def test_an_installed_copy_edits_a_face_as_the_checkout_does_and_needs_no_extra(packages, tmp_path):
    before = listed(packages)
    done = run_installed(packages, packages / "bin/where2edit", "edit", "--seed", "7", "--what", "grey hair", "--out",
                         "edited.png", "--device", "cpu", folder=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert (done.returncode, done.stdout) == (0, "wrote edited.png\n"), done.stderr
    expected = attention.load_editor("drawn", device="cpu").open_seed(7).edit("grey hair")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "edited.png")), np.asarray(expected.image))
    assert [path.name for path in tmp_path.iterdir()] == ["edited.png"] and listed(packages) == before
    imported = modules_of(done.stderr)
    assert "torch" in imported and not imported & {module for modules in EXTRAS.values() for module in modules}


@pytest.mark.program
def test_an_installed_copy_keeps_weights_and_runs_where_a_user_may_write(packages, tmp_path):
    code = ("from attention.config import TrainConfig; from attention.files.published import SHIPPED, WEIGHTS; "
            "from attention.worlds.registry import configured; print(SHIPPED, WEIGHTS, configured(TrainConfig).run)")
    shipped, weights, run = run_installed(packages, sys.executable, "-c", code, folder=tmp_path).stdout.split()
    assert (Path(shipped), run) == (packages / "attention/shipped", "runs/drawn")
    assert Path(weights) == tmp_path / "cache/where2edit" and not list(tmp_path.iterdir())
    elsewhere = run_installed(packages, sys.executable, "-c", code, folder=tmp_path, WHERE2EDIT_WEIGHTS="/elsewhere")
    assert elsewhere.stdout.split()[1] == "/elsewhere"


def test_an_installed_copy_does_not_build_what_is_shipped(monkeypatch):
    monkeypatch.setattr(build, "INSTALLED", True)
    with pytest.raises(UserError, match=r"run it in a checkout$"):
        build.main([])


@pytest.mark.program
def test_the_wheel_has_all_modules_and_the_shipped_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "attention").rglob("*.py")}
    shipped = {f"attention/shipped/{path.name}" for path in SHIPPED.iterdir()}
    shipped |= {f"attention/shipped_faces/{path.name}" for path in SHIPPED_FACES.iterdir()}
    shipped |= {f"attention/shipped_captions/{path.name}" for path in (ROOT / "celeba-caption/sample").iterdir()}
    assert {name for name in names if ".dist-info/" not in name} == modules | shipped | {TABLE}
    assert wheel.stat().st_size < 40e6


def told(*command, folder):
    """What a command of this checkout prints, and the modules that it imports."""
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout, modules_of(done.stderr)


@pytest.mark.parametrize("words", LIGHT)
def test_a_command_says_what_it_does_without_torch(words, tmp_path):
    command = words.split() if words.startswith("-m") else [ROOT / words]
    said, modules = told(*command, "--help", folder=tmp_path)
    assert len(said.splitlines()) > 3 and "attention.errors" in modules and "torch" not in modules
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", HEAVY)
def test_other_commands_say_what_they_do(module, capsys):
    with pytest.raises(SystemExit, match="0"):
        import_module(module).main(["--help"])
    assert f"python -m {module}" in capsys.readouterr().out


def test_older_names_of_the_drawn_world_are_its_modules(tmp_path):
    for name in ("build", "photos"):
        assert find_spec(f"attention.drawn.{name}").origin == find_spec(f"attention.worlds.drawn.{name}").origin
    told("-m", "attention.drawn.photos", "--seed", "5", folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "photo.json"}


def test_the_package_itself_loads_no_torch(tmp_path):
    _, modules = told("-c", "import attention", folder=tmp_path)
    assert "attention" in modules and "torch" not in modules


def test_a_word_that_is_no_command_is_told_with_a_hint(tmp_path):
    for word, hint in (("trian", "did you mean train?"), ("paint", f"the commands are {', '.join(COMMANDS)}")):
        done = subprocess.run([sys.executable, "-m", "attention", word], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {word!r} is no command of where2edit; {hint}")
        assert done.stderr.count("\n") == 1


# --- packages that only some commands need

@pytest.mark.parametrize("extra, main, words", [
    ("demo", page.main, []), ("training", run_attention.main, []), ("training", clustering_feature.main, []),
    ("metrics", evaluate.main, []), ("metrics", evaluate_real.main, ["--photos", "."]), ("download", download.main, []),
])
def test_a_missing_extra_is_one_sentence_with_the_command_that_gets_it(extra, main, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, EXTRAS[extra][-1], None)               # as if it were not installed
    with pytest.raises(UserError, match=rf'\({EXTRAS[extra][-1]}\); get it with: pip install -e ".*\[{extra}\]"$'):
        main(words)
    assert not list(tmp_path.iterdir())


@pytest.mark.program
def test_an_installed_copy_tells_of_a_missing_extra_by_its_name(packages, tmp_path):
    hide = "import sys; sys.modules['gradio'] = None; from attention.__main__ import main; main(['demo'])"
    done = run_installed(packages, sys.executable, "-c", hide, folder=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert 'pip install "where2edit[demo]"' in done.stderr


def test_every_extra_is_told_of_and_only_its_own_modules_are():
    extras = {name: said for name, said in PROJECT["optional-dependencies"].items() if name != "test"}
    brings = {module: {distribution.lower().replace("-", "_") for distribution in found}
              for module, found in metadata.packages_distributions().items()}
    brings.setdefault("dlib", {"dlib_bin"})                 # whose wheel does not list its modules
    assert set(extras) == set(EXTRAS)
    for name, modules in EXTRAS.items():
        said = {re.split("[>=;]", requirement)[0].lower().replace("-", "_") for requirement in extras[name]}
        found = {distribution for module in modules for distribution in brings.get(module, {module})}
        assert found == said


def test_requirements_are_those_of_the_project():
    parts = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    wanted = dict.fromkeys(line for name, lines in parts.items() if name != "photos" for line in lines)
    written = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert written == list(wanted), "requirements.txt should say:\n" + "\n".join(wanted)
