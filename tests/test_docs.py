"""The documents say what is so: their links lead somewhere, their commands exist, their tables are those of the code."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from attention.evaluation.calibration import known_table
from attention.files.published import ROOT, SHIPPED_FACES
from attention.method.losses import TERMS
from attention.training.folder import EDITOR
from attention.training.runs import read_editor
from attention.worlds.registry import WORLDS

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "show_demo").glob("*.md"),
                    *(ROOT / "pretrained_models").glob("*.md"), *(ROOT / "celeba-caption").glob("*.md")])
TOP = ("attention", "benchmarks", "celeba-caption", "docs", "pretrained_models", "show_demo", "tests", ".ci")
FILE_ENDINGS = (".py", ".md", ".sh", ".cff", ".ipynb")      # that name a file of the repository also without a folder
ROOMS = sorted(path.parent.name for path in (ROOT / "attention").glob("*/__init__.py"))
PROGRAMS = tuple(f"worlds/{world}/{name}" for world in ("drawn", "faces") for name in ("build.py", "fit/"))   # make weights
RUN_FOLDER = {"metrics.md"}                                 # what a run folder holds that looks like a file of ours
READERS = {"my_loss.py", "my_metric.py"}                    # files that the reader writes
documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
# The change log also has the names of earlier versions.
current = pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"],
                                  ids=lambda path: str(path.relative_to(ROOT)))


def named_files(text: str) -> list[str]:
    """What stands in backticks and looks like a file or folder of the repository; a test in it by :: counts as its file."""
    words = [word.split("::")[0] for span in re.findall(r"`([^`\n]+)`", without_blocks(text)) for word in span.split()]
    words = [word.strip("(),;:") for word in words]
    return [word for word in words if not re.search(r"[*<>={}$]", word)
            and (word.split("/")[0] in TOP if "/" in word else word.endswith(FILE_ENDINGS))]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, without its first two lines."""
    after = text[text.index(f"\n{heading}\n"):]
    rows = re.search(r"^\|.*?\n(?!\|)", after, flags=re.MULTILINE | re.DOTALL).group(0).splitlines()
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows[2:]]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@documents
def test_every_relative_link_leads_to_a_file(path):
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    files = [link.split("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert not [file for file in files if not (path.parent / file).exists()]


@current
def test_every_file_that_is_named_exists(path):
    published = (ROOT / "attention/files/published.json").read_text()
    known = [name for name in named_files(path.read_text()) if name not in RUN_FOLDER | READERS]
    assert not [name for name in known if not (ROOT / name).exists() and Path(name).name not in published]


@current
def test_every_command_that_is_named_is_a_module(path):
    text = path.read_text()
    commands = re.findall(r"-m (?:-- )?((?:attention|benchmarks)\.[\w.]+)", text)
    named = re.findall(r"`(attention(?:\.[a-z_0-9]+)+)`", text)
    assert not [name for name in {*commands, *named} if not exists(name.rstrip("."))]


@current
def test_every_word_after_where2edit_is_a_command_and_every_extra_exists(path):
    commands = pytest.importorskip("attention.__main__").COMMANDS
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    text = path.read_text()
    assert not set(re.findall(r"^where2edit +(\w+)", text, flags=re.MULTILINE)) - set(commands)
    for extra in ",".join(re.findall(r'pip install "\.\[([\w,]+)\]"', text)).split(","):
        assert not extra or re.search(rf"^{extra} = ", extras, flags=re.MULTILINE), extra


def exists(name: str) -> bool:
    """Whether it is a module, or the last word is an attribute of one."""
    found = ROOT / name.replace(".", "/")
    if found.with_suffix(".py").exists() or found.is_dir():
        return True
    module, _, attribute = name.rpartition(".")
    spec = find_spec(module) if "." in name else None
    return spec is not None and spec.origin is not None and attribute in Path(spec.origin).read_text()


@current
def test_every_shell_script_target_that_is_named_is_known(path):
    script = (ROOT / "train_scripts.sh").read_text()
    for target in re.findall(r"train_scripts\.sh ([a-z][\w-]*)", path.read_text()):
        assert re.search(rf"\b{target}\b", script)


def test_the_table_of_losses_is_that_of_the_code():
    rows = tables((ROOT / "docs/method.md").read_text(), "## Losses")
    ramps = {None: "-", **{term.ramp: f"r({term.ramp[0]}, {term.ramp[1]})" for term in TERMS.values() if term.ramp}}
    assert [row[:4] for row in rows] == [
        [f"`{name}`", f"`--{term.flag}`", str(term.weight), ramps[term.ramp]] for name, term in TERMS.items()]


@pytest.mark.parametrize("world, page, heading, usual", [
    ("drawn", "method.md", "## Settings of the drawn world", {"lambda_delta"}),             # 0.03, the general default
    ("faces", "faces.md", "## Settings", set())])
def test_the_settings_of_a_world_are_those_of_the_code(world, page, heading, usual):
    entry, told = WORLDS[world], {}
    for names, _, values, _ in tables((ROOT / "docs" / page).read_text(), heading):
        names = re.findall(r"`(\w+)`", names)
        told |= dict(zip(names, re.sub(r" \(.*\)", "", values).split(", "), strict=True))
    spelled = {True: "on", False: "off"}
    assert {name: told.get(name) for name in entry.settings if name not in usual} == {
        name: spelled[value] if isinstance(value, bool) else str(value)
        for name, value in entry.settings.items() if name not in usual}
    for name in {"perceptual", "views", "truncation"} & set(told):
        assert told[name] == str(getattr(entry, name))


def test_the_table_of_what_suits_texts_is_that_of_the_shipped_editor():
    known = known_table(read_editor(SHIPPED_FACES / EDITOR).calibration)
    assert known in (ROOT / "docs/faces.md").read_text(encoding="utf-8")


def test_the_map_of_the_code_names_every_room():
    rooms = [row[0].strip("`/").removeprefix("attention").strip("/")
             for row in tables((ROOT / "docs/method.md").read_text(), "## Map of the code")]
    assert sorted(filter(None, rooms)) == ROOMS


def test_rooms_import_only_what_the_rule_allows():
    rule = {row[0].strip("`").removeprefix("attention/"): set(row[1].replace("-", "").split(", ")) - {""}
            for row in tables((ROOT / "CONTRIBUTING.md").read_text(), "## Who may import whom")}
    assert sorted(rule) == ROOMS
    order = list(rule)
    assert all(order.index(other) < order.index(room) for room, others in rule.items() for other in others)
    for room, allowed in rule.items():
        for path in (ROOT / "attention" / room).rglob("*.py"):
            inside = str(path.relative_to(ROOT / "attention"))
            if not inside.startswith(PROGRAMS):
                assert imported_rooms(path) <= allowed | {room}, inside


def imported_rooms(path: Path) -> set[str]:
    """The rooms of which a file imports anything, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("attention.")} & set(ROOMS)
