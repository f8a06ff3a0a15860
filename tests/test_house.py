"""The shape of the package: which room may import which."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from attention.worlds.registry import WORLDS

PACKAGE = Path(__file__).resolve().parents[1] / "attention"
# From the ground up: a room imports rooms before it, and its own modules.
STOREYS = ("memory", "errors", "processes", "fits", "ops", "generator", "method", "images", "sheets", "devices", "files",
           "extras", "config", "clip_models", "inversion", "worlds", "drawn", "training", "editing", "evaluation",
           "baselines")


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package by its dotted name within it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


@cache
def is_command(name: str) -> bool:
    """Whether a module is started by people: it may import anything, and nothing imports it."""
    path = PACKAGE / (name.replace(".", "/") + ".py")
    return path.is_file() and "__main__" in path.read_text(encoding="utf-8")


def imports(path: Path) -> Iterator[str]:
    """Dotted names within the package that a module imports anywhere, also in functions and for annotations alone."""
    known = {name for name, _ in modules()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "attention":
            base = (node.module or "").removeprefix("attention").removeprefix(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}".strip(".")
                yield whole if whole in known else base
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("attention.") for alias in node.names
                        if alias.name.startswith("attention."))


def room(name: str) -> str:
    return name.split(".")[0]


def edges() -> list[tuple[str, str]]:
    """(importing, imported) modules, commands left out."""
    return [(name, target) for name, path in modules() if name and not is_command(name)
            for target in imports(path) if target]


def test_every_room_imports_only_rooms_below_it():
    wrong = [f"{name} imports {target}" for name, target in edges()
             if not is_command(target) and STOREYS.index(room(target)) > STOREYS.index(room(name))]
    assert not wrong, wrong


def test_every_module_has_its_place_in_the_house():
    rooms = {room(name) for name, _ in modules() if name and not is_command(name)}
    assert rooms == set(STOREYS)


def test_nothing_imports_a_command():
    wrong = [f"{name} imports {target}" for name, target in edges() if is_command(target)]
    assert not wrong, wrong


def test_the_method_stands_on_generator_and_ops_alone():
    rooms = {room(target) for name, target in edges() if room(name) == "method"}
    assert rooms <= {"method", "generator", "ops", "errors"}


def test_one_world_never_imports_another_and_nobody_outside_names_one():
    private = [f"{name} imports {target}" for name, target in edges() if target.startswith("worlds.drawn.")
               and not name.startswith("worlds.drawn") and name not in ("worlds.parts", "worlds.registry")]
    assert not private, private
    asking = [f"{name}:{node.lineno}" for name, path in modules() if not name.startswith("worlds")
              for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Compare)
              for word in ast.walk(node) if isinstance(word, ast.Constant) and word.value in WORLDS]
    assert not asking, asking
