"""Writing files: all of a file or nothing of it."""

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError

from attention.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, then rename: a reader sees the old file or the whole new one.

    Raises:
        UserError: the folder cannot be written or the disk is full; the previous file is still whole.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    # torch.save turns a failed write into a RuntimeError, safetensors into its own kind.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} could not be written ({error}); what was there before is unchanged. Make room, or "
                        "choose a folder that can be written") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, all of it or nothing.

    Raises:
        UserError: see `write_atomically`.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, all of it or nothing.

    Raises:
        UserError: see `write_atomically`.
    """
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def run_folder(path: Path, flag: str = "--run") -> Path:
    """Make the folder that a flag names and check that it can be written.

    Raises:
        UserError: it is a file, or may not be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written ({error.strerror}); choose another folder") from error
    return path
