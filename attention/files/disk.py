"""Writing files: all of a file or nothing of it."""

import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, PngImagePlugin
from safetensors import SafetensorError

from attention.errors import UserError
from attention.files.pictures import decoding, open_picture
from attention.files.reading import readable, shown

WRITER_KEY, WRITER = "Software", "Where2Edit"      # a text of the PNG files that are written here
KEPT_OF_NAME = 40               # signs of a file's name that its temporary name keeps; 255 bytes are the most of both


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, then rename: a reader sees the old file or the whole new one.

    Raises:
        UserError: the folder cannot be written or the disk is full; the previous file is still whole.
    """
    path = Path(path)
    # Nobody can guess the name, and the file is new: what is written never goes through a link that lies there.
    temporary = path.with_name(f".{path.name[:KEPT_OF_NAME]}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        write(temporary)
        os.replace(temporary, path)
    # torch.save turns a failed write into a RuntimeError, safetensors into its own kind.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{shown(path)} could not be written ({shown(reason)}); what was there before is unchanged. Make "
                        "room, or choose a folder that can be written") from error
    finally:
        if os.path.lexists(temporary):
            temporary.unlink()


def refuse_overwriting(outputs: Iterable[Path | str], inputs: Iterable[Path | str], flag: str = "--out") -> None:
    """Before the work: none of the files that a command will write is one that it reads, or one that it writes twice.

    Args:
        outputs: all files that will be written; they need not be there yet.
        inputs: all files that will be read.
        flag: that names the outputs, for messages.
    Raises:
        UserError: two of them are one file, by whatever name, link or second name.
    """
    read = {identity: path for path in inputs for identity in _identities(path)}
    written: dict[str, Path | str] = {}
    for path in outputs:
        if lost := [read[identity] for identity in _identities(path) if identity in read]:
            raise UserError(f"{flag} would overwrite {shown(lost[0])}, which is read, with {shown(path)}; give another "
                            f"name with {flag}")
        place = os.path.realpath(path)
        if place in written:
            same = written[place]
            twice = "twice" if str(path) == str(same) else f"twice, also as {shown(same)}"
            raise UserError(f"{shown(path)} would be written {twice}, such as for a picture and as the mask or grid of "
                            "another; rename one of them")
        written[place] = path


def _identities(path: Path | str) -> list[object]:
    """What a file is known by: its path without links and, if it is there, its place on the disk."""
    try:
        found = os.stat(path)
        return [os.path.realpath(path), (found.st_dev, found.st_ino)]
    except OSError:
        return [os.path.realpath(path)]
    except ValueError:                                      # a NUL in it: no file
        return []


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process that makes `path`; the lock ends with the process, however that ends.

    Raises:
        UserError: another process holds the lock; or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name[:KEPT_OF_NAME]}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"{shown(path.name)} could not be written into {shown(path.parent)} ({error.strerror}); choose a "
                        "folder that can be written") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before may have removed the file while this one opened it.
            alone = os.path.exists(lock) and os.path.samestat(os.fstat(held), os.stat(lock))
        except BlockingIOError:
            alone = False
        except OSError:                                     # a file system without locks
            alone = True
        if not alone:
            raise UserError(f"{shown(path)} is being made by another process; wait until that has ended")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(held)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, all of it or nothing.

    Raises:
        UserError: see `write_atomically`.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_picture(path: Path, picture: Image.Image, texts: Mapping[str, str] | None = None) -> None:
    """Write a picture as PNG that says by whom it was written, all of it or nothing.

    Args:
        texts: further texts for the file, by their keys.
    Raises:
        UserError: see `write_atomically`.
    """
    info = PngImagePlugin.PngInfo()
    for key, text in {WRITER_KEY: WRITER, **(texts or {})}.items():
        info.add_itxt(key, text)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=info))


def refuse_pictures_of_others(paths: Iterable[Path], overwrite: bool, how: str = "--overwrite") -> None:
    """Before the work: where a picture will be written there is none yet, or one that `write_picture` wrote.

    Args:
        overwrite: the user has said that anything may be replaced.
        how: the user says so, for messages.
    Raises:
        UserError: names the first file of another kind.
    """
    for path in paths:
        if not overwrite and os.path.lexists(path) and not os.path.isdir(path) and not _written_here(path):
            raise UserError(f"{shown(path)} is there already, was not written by {WRITER}, and would be replaced; give "
                            f"another name, move it, or replace it by {how}")


def _written_here(path: Path) -> bool:
    try:
        with decoding(shown(path)), open_picture(readable(path, "a picture")) as picture:
            return picture.info.get(WRITER_KEY) == WRITER
    except (UserError, OSError):
        return False


def run_folder(path: Path, flag: str = "--run") -> Path:
    """Make the folder that a flag names and check that it can be written.

    Raises:
        UserError: it is a file, or may not be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{secrets.token_hex(4)}.partial"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written ({error.strerror}); choose another folder") from error
    return path
