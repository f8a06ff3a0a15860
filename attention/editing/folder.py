"""The files of a page's server: a folder of its own, gone when the server ends; if it is killed, the next one sweeps it."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from PIL import Image

from attention.errors import UserError

try:
    import fcntl
except ImportError:             # Windows: there nobody can tell a killed server's folder from a living one's
    fcntl = None                # type: ignore[assignment]

PREFIX = "where2edit-page-"
KEPT_SECONDS = 3600         # that a file is kept after it was last used
DISK = 2 * 2**30            # bytes of all files together; what was used longest ago goes first
LEAST_ROOM = 2**20          # bytes that must fit in at the start
PARENT = "GRADIO_TEMP_DIR"  # the variable by which people tell gradio where to keep files


class ServerFolder:
    """Uploads and pictures of one server, for nobody else to read; nobody is served what another server left.

    Raises:
        UserError: no folder can be made, or nothing can be written into it.
    """

    def __init__(self) -> None:
        try:
            parent = Path(os.environ.get(PARENT) or tempfile.gettempdir())
        except FileNotFoundError as error:
            raise UserError(f"the page keeps uploads in a temporary folder, but none can be written ({error}); make room, "
                            "or set TMPDIR to another folder") from None
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            self.path, self._lock = _locked_folder(parent)
        except OSError as error:
            raise UserError(_unusable(parent, error)) from None
        self.uploads, self.pictures = self.path / "uploads", self.path / "pictures"
        try:
            for folder in (self.uploads, self.pictures):
                folder.mkdir()
            probe = self.path / "probe"
            probe.write_bytes(bytes(LEAST_ROOM))
            probe.unlink()
        except OSError as error:
            self.remove()
            raise UserError(_unusable(parent, error)) from None

    def __enter__(self) -> "ServerFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def new(self, ending: str) -> Path:
        """A name in `pictures` that nobody can guess."""
        return self.pictures / f"{secrets.token_urlsafe(16)}{ending}"

    def keep(self, picture: Image.Image) -> str:
        """Write a picture as PNG, quickly rather than small; returns its file."""
        path = self.new(".png")
        picture.save(path, compress_level=1)
        return str(path)

    def used(self, files: Iterable[str | None]) -> None:
        """Keep files for KEPT_SECONDS from now on."""
        for file in files:
            if file is not None and os.path.exists(file):
                os.utime(file)

    def tidy(self) -> None:
        """Delete what nobody has used for KEPT_SECONDS, and of the rest the oldest beyond DISK."""
        found = sorted((file.stat().st_mtime, file.stat().st_size, file) for folder in (self.uploads, self.pictures)
                       for file in folder.rglob("*") if file.is_file())
        total, before = sum(size for _, size, _ in found), time.time() - KEPT_SECONDS
        for modified, size, file in found:
            if modified < before or total > DISK:
                file.unlink(missing_ok=True)
                total -= size

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """A new folder and its lock, which ends with the process however that ends."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))                    # for this user alone
        if fcntl is None:
            return path, None
        lock = _lock(path)
        if lock is not None and path.exists():          # else another server's sweep came between
            return path, lock


def _lock(folder: Path) -> int | None:
    """The lock of a folder; None if somebody has it or the folder is gone."""
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(place)
        return None
    return place


def _sweep(parent: Path) -> None:
    """Delete the folders of this user's servers that were killed."""
    for folder in parent.glob(f"{PREFIX}*") if fcntl is not None else ():
        lock = _lock(folder)
        if lock is not None:
            if os.fstat(lock).st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _unusable(parent: Path, error: OSError) -> str:
    return (f"the page keeps uploads in the temporary folder {parent}, which cannot be used ({error.strerror}); make room "
            f"there, or set TMPDIR (or {PARENT}) to a folder that can be written")
