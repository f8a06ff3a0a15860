"""Values from a browser, each checked before it is used."""

from typing import Any

from attention.errors import UserError

LARGEST_SEED = 2**53 - 1    # the largest whole number that a browser writes exactly


def text_of(value: Any, name: str, most: int) -> str:
    """A text from a browser, white space at its ends and between words made one space.

    Raises:
        UserError: it is none, too long, or has characters that cannot be shown.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} is no text")
    if len(value) > most:
        raise UserError(f"{name} has {len(value):,} characters, but at most {most} are taken")
    value = " ".join(value.split())
    if not value.isprintable():
        raise UserError(f"{name} has characters that cannot be shown; type it again")
    return value


def number_of(value: Any, name: str, most: float) -> float:
    """A number from 0 to `most` from a browser.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise UserError(f"{name} is {_told(value)}, expected a number from 0 to {most:,}")
    return value


def whole(value: Any, name: str, most: int) -> int:
    """A whole number from 0 to `most` from a browser.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= most:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise UserError(f"{name} is {_told(value)}, expected a whole number from 0 to {most:,}")
    return value


def _told(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "no number"
    return f"{value:g}" if isinstance(value, float) else f"{value}" if abs(value) < 10**20 else "a number of many digits"
