"""The one way in for a file that somebody names: a regular file that can be read, of a size that such a file can have.

Whatever else a path can be (missing, a folder, a pipe, a device, a loop of links, a sentence, a name with a NUL, a file of
another user) ends in one sentence; nothing is read without a bound.
"""

import json
import os
import stat
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from attention.errors import UserError, shown

Report = TypeVar("Report", bound=BaseModel)
TEXT_BYTES = 16_000_000         # of JSON, TOML, landmarks, captions: far more than any of ours


def as_path(value: object, what: str) -> Path:
    """A path that somebody gives to Python.

    Raises:
        UserError: it is no text and no path, or holds a NUL; `what` it should name, in words.
    """
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise UserError(f"{shown(repr(value))} is no path, expected that of {what}")
    return Path(value)


def readable(path: str | Path, what: str, most: int | None = None) -> Path:
    """A path that can be opened and read to its end.

    Args:
        what: the file should be, in words, for messages: "a picture".
        most: bytes; None for what may be of any size.
    Raises:
        UserError: it is no regular file, cannot be read, or is larger.
    """
    name = shown(as_path(path, what))
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise UserError(f"{name} is {kind}, expected {what}")
        if not os.access(path, os.R_OK):
            raise UserError(f"{name} may not be read, expected {what}; change its permissions or give another file")
    except UserError:                                       # which is a ValueError
        raise
    except FileNotFoundError:
        raise UserError(f"{name} is missing, expected {what}; check the path") from None
    except (OSError, ValueError) as error:              # may not be entered, a loop of links, too long, a NUL in it
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{name} cannot be opened ({reason}), expected {what}; check the path") from None
    if most is not None and found.st_size > most:
        raise UserError(f"{name} has {found.st_size:,} bytes, but {what} has at most {most:,}; give another file")
    return Path(path)


def read_text(path: str | Path, what: str, most: int = TEXT_BYTES) -> str:
    """A text file in UTF-8, a byte order mark taken off.

    Raises:
        UserError: see `readable`; or it is no UTF-8.
    """
    path = readable(path, what, most)
    try:
        with path.open("rb") as file:
            return file.read(most + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is no UTF-8 text (byte {error.start}), expected {what}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read ({error.strerror}), expected {what}") from None


def read_json(path: str | Path, what: str, most: int = TEXT_BYTES) -> object:
    """What a JSON file holds.

    Raises:
        UserError: see `read_text`; or it is no JSON.
    """
    return parse_json(read_text(path, what, most), f"{shown(path)} is no JSON", what)


def read_report(path: str | Path, what: str, report: type[Report]) -> Report:
    """A JSON file of a known form; what the form does not name is passed over.

    Raises:
        UserError: see `read_json`; or something is missing or of another kind, and the first of it is named.
    """
    found = read_json(path, what)
    try:
        return report.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = " > ".join(shown(key, 40) for key in first["loc"])
        raise UserError(f"{shown(path)} is not {what} ({place + ': ' if place else ''}{first['msg']})") from None


def parse_json(text: str, wrong: str, what: str) -> object:
    """What a JSON text holds; `wrong` begins the sentence that is told of one that cannot be read.

    Raises:
        UserError: it is no JSON, nested too deeply, or holds NaN or Infinity, which are none.
    """
    def refuse(word: str) -> object:
        raise ValueError(f"{word} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise UserError(f"{wrong} (nested too deeply), expected {what}") from None
    except ValueError as error:
        raise UserError(f"{wrong} ({error}), expected {what}") from None
