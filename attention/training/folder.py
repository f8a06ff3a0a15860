"""Whose a run folder is: one process at a time, and nothing that an earlier run left there is replaced unasked."""

import fcntl
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname

from attention.errors import UserError
from attention.files.disk import run_folder
from attention.files.reading import read_json, shown

EDITOR, CHECKPOINTS = "editor.safetensors", "checkpoints"
LOCK = ".lock"
# What training and evaluation leave in a run folder, but for its regions.
LEFT = (EDITOR, CHECKPOINTS, "config.json", "metrics.jsonl", "plot.png", "tensorboard", "samples", "metrics.json",
        "metrics.md", "edits.png", "sweep.png", "real")


def refuse_run(folder: Path, overwrite: bool, doing: str, tried: bool = False) -> None:
    """Refuse to begin where an earlier run has left its editor or checkpoints.

    Args:
        overwrite: the user has said that it may be replaced.
        doing: what would replace it, in words.
        tried: none of its checkpoints was found to be whole.
    Raises:
        UserError: says how to go on with that run, and how to replace it.
    """
    if holds_run(folder) and not overwrite:
        further = ("none of its numbered checkpoints is whole; name another file with --resume" if tried else
                   "go on with that run by --resume auto")
        raise UserError(f"--run {shown(folder)} holds a run already, which {doing} would replace; {further}, replace it by "
                        "--overwrite, or name another folder with --run")


def refuse_strange(folder: Path, overwrite: bool, names: Iterable[str] = LEFT, mark: str | None = None) -> None:
    """Refuse to begin where something lies that is named as what a run leaves, but that no run has left.

    Args:
        overwrite: the user has said that it may be replaced.
        names: of what would be replaced.
        mark: a file by which what lies beside it is known to be ours, as it is by the options of a run.
    Raises:
        UserError: names the first of them.
    """
    known = _is_of_run(folder) or (mark is not None and (folder / mark).exists())
    strange = [name for name in names if os.path.lexists(folder / name)]
    if strange and not known and not overwrite:
        raise UserError(f"--run {shown(folder)} has {strange[0]}, which is of no run and would be replaced; name another "
                        "folder with --run, move it, or replace it by --overwrite")


def _is_of_run(folder: Path) -> bool:
    """Whether its config.json is a run's."""
    try:
        found = read_json(folder / "config.json", "the options of a run")
    except UserError:
        return False
    return isinstance(found, dict) and {"run", "command", "versions"} <= found.keys()


def refuse_inputs(folder: Path, read: Iterable[object]) -> None:
    """Refuse to begin a run anew in a folder that holds what it reads where it would remove it.

    Args:
        read: paths, among others that are none.
    Raises:
        UserError: names the first of them.
    """
    left = [Path(os.path.realpath(folder / name)) for name in LEFT]
    for path in read:
        if isinstance(path, (str, Path)) and any(Path(os.path.realpath(path)).is_relative_to(place) for place in left):
            raise UserError(f"{shown(path)} is read, and lies where a new training in --run {shown(folder)} removes what "
                            "an earlier run left; move it, or name another folder with --run")


def holds_run(folder: Path) -> bool:
    """Whether an editor or a checkpoint lies there."""
    return (folder / EDITOR).exists() or any(folder.glob(f"{CHECKPOINTS}/[!.]*"))


def clear_run(folder: Path) -> None:
    """Remove what an earlier run left, but its regions, and what a killed process left half-written.

    Raises:
        UserError: something cannot be removed.
    """
    for path in [*(folder / name for name in LEFT), *folder.glob(".*.partial")]:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}, which an earlier run left, cannot be removed ({error.strerror}); remove it, or name "
                            "another folder with --run") from error


@contextmanager
def claimed(folder: Path, flag: str = "--run") -> Iterator[None]:
    """Hold a folder for this process while inside; made where it is missing, and gone again if nothing was put there. The
    system lets go of it when a process dies.

    Args:
        flag: that names it, for messages.
    Raises:
        UserError: another process holds it, which the message names; or the folder cannot be written.
    """
    new = not os.path.exists(folder)
    path = run_folder(folder, flag) / LOCK
    try:
        file = _locked(path)
    except (BlockingIOError, PermissionError):          # or it is the lock of another user
        raise UserError(f"{flag} {shown(folder)} is being written by {_holder(path)}, which holds {LOCK} there; wait until "
                        f"that has ended, or name another folder with {flag}") from None
    except OSError as error:                # a file system without locks
        warnings.warn(f"{path} cannot be locked ({error.strerror}): take care that nothing else writes there", stacklevel=3)
        yield
        return
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')} "
                       f"({' '.join(sys.argv)[:200]})".encode(errors="replace"))
        yield
    finally:
        if _is(path, file):
            path.unlink()                   # before the lock is let go: after that it may be another's
        os.close(file)
        if new:
            with suppress(OSError):         # something lies there now
                path.parent.rmdir()


def _locked(path: Path) -> int:
    """The file under its lock, the one that the name stands for: the process before may just have removed its own."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, file):
                return file
        except OSError:
            os.close(file)
            raise
        os.close(file)


def _is(path: Path, file: int) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file), os.stat(path))


def _holder(path: Path) -> str:
    try:
        return shown(path.read_text(encoding="utf-8", errors="replace"), 400) or "another process"
    except OSError:
        return "another process"
