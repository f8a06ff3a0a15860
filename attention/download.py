"""Get the published files, which are not shipped, into pretrained_models/: whole and verified, or not at all.

    python -m attention.download                             # what there is, and what is here already
    python -m attention.download faces                       # a generator of real-looking faces, from a package
    python -m attention.download ffhq                        # the three files that `bash train_scripts.sh ffhq` needs
    python -m attention.download ViT-B-32.pt --folder DIR    # one file, into another folder

An interrupted download goes on where it stopped when the same command runs again. A file that is already there is
verified and never overwritten. Names, sources, licences, sizes and hashes are in attention/files/published.json.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.extras import need
from attention.files.published import PUBLISHED, SETS, WEIGHTS


class DownloadConfig(Config):
    """Options that follow the names."""

    folder: Path = option(WEIGHTS, "where the files are and go")


def main(argv: Sequence[str] | None = None) -> None:
    """Download the files that are named, or list all; the failure of one does not stop the others.

    Raises:
        UserError: an unknown name or flag, or files that could not be had: one sentence each.
    """
    argv = sys.argv[1:] if argv is None else argv
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    folder = parse_config(DownloadConfig, argv[len(words):], __doc__).folder
    if unknown := [word for word in words if word not in PUBLISHED and word not in SETS]:
        raise UserError(f"{unknown[0]!r} is no published file; the names are {', '.join([*SETS, *PUBLISHED])}")
    need("download", "downloading")

    from attention.files.downloading import download, listing
    if not words:
        print(listing(folder))
    errors = []
    for name in dict.fromkeys(name for word in words for name in SETS.get(word, (word,))):      # each once, in order
        try:
            print(download(name, folder, checks()))
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\nerror: ".join(errors))


def checks() -> Mapping[str, tuple[Callable[[Path], object], str]]:
    """What decides where a hash cannot: a function that raises UserError, and what it has shown if it does not."""
    from attention.files.authors import from_released, read_released
    from attention.files.generator import load_generator
    from attention.generator import published_channels
    from attention.inversion import load_e4e, load_recogniser

    def generator(path: Path) -> None:
        found, _ = load_generator(path)
        if found.channels != published_channels(1024):
            raise UserError(f"it holds a generator of {found.resolution} px with channels {found.channels}, but 1024 px "
                            "and channel multiplier 2 were expected")

    return {"generator": (generator, "a 1024 px generator by names and shapes"),
            "e4e": (load_e4e, "e4e's encoder by names and shapes"),
            "arcface": (load_recogniser, "the IR-SE50 recogniser by names and shapes"),
            "mapper": (lambda path: from_released(read_released(path), path),
                       "the authors' mapper by names and shapes")}


if __name__ == "__main__":
    exit_with_message(main)
