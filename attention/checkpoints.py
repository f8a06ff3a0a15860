"""An older name of `python -m attention.convert FILE`: python -m attention.checkpoints convert FILE."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention import convert
from attention.errors import UserError, exit_with_message


def main(argv: Sequence[str] | None = None) -> Path:
    """`convert FILE [flags]`; returns the path of what was written."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] not in (["convert"], ["-h"], ["--help"]):
        raise UserError(f"got {' '.join(words) or 'no words'}, expected: convert FILE [--output PATH] (see --help)")
    return convert.main(words[words[0] == "convert":])


if __name__ == "__main__":
    exit_with_message(main)
