"""Where2Edit's commands under one name: where2edit COMMAND [flags], or python -m attention COMMAND [flags]."""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from attention.errors import UserError, exit_with_message

# Command -> the module whose main it is, and what it does.
COMMANDS = {
    "edit": ("attention.editing.command", "edit a photo, a folder of photos, or the face of a seed"),
    "demo": ("attention.editing.page", "serve a web page that edits"),
    "cluster": ("attention.clustering_feature", "find the regions of a world's faces, which training needs"),
    "train": ("attention.run_attention", "train an editor"),
    "calibrate": ("attention.calibrate", "find how much of a strength suits each prompt of an editor"),
    "evaluate": ("attention.evaluate", "measure an editor"),
    "download": ("attention.download", "get published weights"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command for the command line; its mistakes are one sentence and exit code 2."""
    exit_with_message(lambda: run(sys.argv[1:] if argv is None else argv))


def run(words: Sequence[str]) -> object:
    """Load the command that the first word names, and give it the other words.

    Raises:
        UserError: there is no such command; or the command's own.
    """
    if not words or words[0] in ("-h", "--help"):
        return print(usage())
    name, *rest = words
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0.7)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"{name!r} is no command of where2edit; {hint}")
    sys.argv = [f"where2edit {name}", *rest]            # what --help and the record of a run show
    return import_module(COMMANDS[name][0]).main(rest)


def usage() -> str:
    """What --help says: a line for each command."""
    lines = [f"    where2edit {name:11}{does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join(["Edit faces with a sentence, and only where the sentence means.", "", *lines, "",
                      "Flags of a command: where2edit COMMAND --help"])


if __name__ == "__main__":
    main()
