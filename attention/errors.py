"""A user's mistake is one sentence and exit code 2, never a traceback; and what is printed ends no job."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from attention.memory import keep_memory


class UserError(ValueError):
    """Something the user can mend: the message names the file or flag, what was found, what was expected, and the fix.

    What comes of files, such as the escapes of a terminal, is made printable.
    """

    def __init__(self, message: object):
        super().__init__("\n".join(map(printable, str(message).split("\n"))))


def printable(text: str) -> str:
    """A text of one line as it may be shown: what cannot be printed is a replacement character."""
    return text if text.isprintable() else "".join(
        sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def shown(path: object, most: int = 200) -> str:
    """A path or name from somebody else as it may stand in a message: printable, of one line, not endless."""
    text = printable(str(path))
    return text if len(text) <= most else f"{text[:most]}..."


def exit_with_message(main: Callable[[], object]) -> None:
    """Run an entry point for the command line: UserError gives exit code 2, Ctrl-C gives 130, both without a traceback,
    warnings are notes of a line, no print fails, and memory is kept."""
    keep_memory()
    os.environ.pop("MPLBACKEND", None)      # of windows: plots are files here, and matplotlib refuses a name it lacks
    with lasting_streams():
        try:
            with notes(), paths_told():
                main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)


@contextmanager
def paths_told() -> Iterator[None]:
    """Inside, what the system says of a path (it may not be entered, is too long, ...) is a UserError that names it."""
    try:
        yield
    except OSError as error:
        if not isinstance(error.filename, (str, bytes, os.PathLike)):      # of no path: a fault of ours
            raise
        raise UserError(f"{shown(os.fsdecode(error.filename))} cannot be used ({error.strerror}); check the path and its "
                        "permissions, or give another") from error


@contextmanager
def notes() -> Iterator[None]:
    """Inside, a warning is a note of one line, also where Python was asked to make errors of warnings."""
    with warnings.catch_warnings():
        warnings.filters[:] = [found for found in warnings.filters if found[0] != "error"]      # type: ignore[index]
        warnings.showwarning = lambda message, *place: tqdm.write(f"note: {printable(str(message))}", file=sys.stderr)
        yield


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Inside, whatever is printed ends no job: signs that a terminal does not have are written as escapes, and a reader
    that has gone (`| head`) or a full disk costs what is printed and nothing else."""
    before = sys.stdout, sys.stderr
    # A stream that was closed before the program began is None.
    streams = [stream or open(os.devnull, "w") for stream in before]                                      # noqa: SIM115
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (_LastingStream(stream) for stream in streams)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()                                  # what a pipe holds back would fail when Python ends
        sys.stdout, sys.stderr = before


class _LastingStream:
    """A stream that takes everything, also once nobody reads it."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        """Send what is left in the buffer, and all that follows, nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
