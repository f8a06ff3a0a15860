"""The authors' trained mapper into our form, and back.

    python -m attention.convert pretrained_models/final_mapper.pt --output runs/authors
    python -m attention.convert runs/ffhq --back --output mine.pt

The first writes runs/authors/editor.safetensors, which loads like a run of our own; the second writes a file for the
authors' program. --generator FILE ties the editor to the generator that it belongs to.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import Config, option, parse_config
from attention.errors import UserError, exit_with_message


class ConvertConfig(Config):
    """Options that follow the file."""

    output: Path | None = option(None, "folder for editor.safetensors, with --back the file; default: named after FILE")
    generator: Path | None = option(None, "weights of the generator that the authors' mapper belongs to")
    cluster_layer: int | None = option(None, "conv layer of its regions, counted from 1; default: where it blends", min=1)
    back: bool = option(False, "make a file for the authors' program of an editor of ours")


def main(argv: Sequence[str] | None = None) -> Path:
    """`FILE [flags]`; returns the path of what was written."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    config = parse_config(ConvertConfig, arguments[len(words):], __doc__)
    if len(words) != 1:
        raise UserError(f"got {' '.join(words) or 'no file'}, expected: FILE [--output PATH] (see --help)")

    from attention.training.convert import convert, restore
    file = Path(words[0])
    if config.back:
        return restore(file, config.output)
    return convert(file, config.output, config.generator, config.cluster_layer)


if __name__ == "__main__":
    exit_with_message(main)
