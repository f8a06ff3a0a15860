"""A user's mistake is one sentence and exit code 2, never a traceback."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can mend: the message names the file or flag, what was found, what was expected, and the fix."""


def exit_with_message(main: Callable[[], object]) -> None:
    """Run an entry point for the command line: UserError gives exit code 2, Ctrl-C gives 130, both without a traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
