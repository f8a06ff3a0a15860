"""Where an evaluation writes, and whose what lies there is."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from attention.errors import UserError
from attention.files.reading import read_json, shown
from attention.training.runs import run_of

REPORT = "metrics.json"


def usual_folder(name: Path) -> Path:
    """The folder for figures of a run: its own or, of a shipped editor, which may lie where nothing can be written, one in
    runs/."""
    return name if run_of(name) == name else Path("runs") / f"{name}-shipped"


def refuse_others(folder: Path, written: Sequence[str], said: Mapping[str, str], flag: str) -> None:
    """Refuse to write into a folder that holds what no evaluation of the same has written.

    Args:
        written: names of all that will be.
        said: what REPORT says of it, by key.
        flag: names the folder, for messages.
    Raises:
        UserError: names the first of what is there.
    """
    found = [name for name in written if os.path.lexists(folder / name)]
    if not found:
        return
    try:
        report = read_json(folder / REPORT, "an evaluation's report")
        whose = {key: report.get(key) for key in said} if isinstance(report, dict) else {}
    except UserError:
        whose = {}
    if whose != said:
        other = [whose.get(key) for key in said if whose.get(key) != said[key]]
        of = "no evaluation" if None in other else f"an evaluation of {shown(other[0])}"
        raise UserError(f"{shown(folder)} has {found[0]}, which is of {of} and would be replaced; move it, or name another "
                        f"folder with {flag}")


def refuse_fewer(folder: Path, faces: int) -> None:
    """Refuse to replace figures of more faces: an hour's work by what a quick look measured.

    Raises:
        UserError: names both numbers.
    """
    try:
        report = read_json(folder / REPORT, "an evaluation's report")
    except UserError:
        return
    there = report.get("faces") if isinstance(report, dict) else None
    if isinstance(there, int) and there > faces:
        raise UserError(f"{shown(folder / REPORT)} is of {there} faces and would be replaced by figures of {faces}; move "
                        f"it, name another folder with --results, or take --faces {there}")
