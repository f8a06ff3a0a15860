"""A user's mistake is one sentence and exit code 2, never a traceback."""

import sys
import warnings
from collections.abc import Callable

from tqdm import tqdm


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


def exit_with_message(main: Callable[[], object]) -> None:
    """Run an entry point for the command line: UserError gives exit code 2, Ctrl-C gives 130, both without a traceback, and
    warnings are notes of a line."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *place: tqdm.write(f"note: {message}", file=sys.stderr)
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
