"""A sheet of edits of generated faces, at full resolution and shrunk: the picture at the top of the README.

    python show_demo/faces.py --out show_demo/imgs/faces.jpg --overwrite
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import attention
from attention.config import Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.files.disk import refuse_pictures_of_others, write_atomically

TITLE = 18                  # px above every picture


class SheetConfig(Config):
    """Options."""

    run: str = option("faces", "run folder of the editor, or the name of a shipped one")
    seeds: str = option("7,3,21", "of the faces, separated by commas")
    prompts: str = option("black hair;grey hair;red hair;tanned skin;mouth closed;blue background",
                          "what to change, separated by semicolons")
    strength: float = option(0.1, "of the changes", min=0, max=1)
    side: int = option(208, "px of every picture", min=16, max=1024)
    out: Path = option(Path("faces.jpg"), "JPEG or PNG to write")
    overwrite: bool = option(False, "replace what has that name")


def main(argv: Sequence[str] | None = None) -> Path:
    """Edit every face by every prompt and write one picture."""
    config = parse_config(SheetConfig, argv, __doc__)
    refuse_pictures_of_others([config.out], config.overwrite)
    seeds, prompts, rows = seeds_of(config.seeds), config.prompts.split(";"), []
    for face in map(attention.load_editor(config.run).open_seed, seeds):
        pictures = [face.image, *(face.edit(prompt, strength=config.strength).image for prompt in prompts)]
        rows.append([np.asarray(picture.resize((config.side,) * 2, Image.Resampling.LANCZOS)) for picture in pictures])
    titles = Image.new("RGB", (config.side * (len(prompts) + 1), TITLE), "white")
    for column, title in enumerate(["source", *prompts]):
        ImageDraw.Draw(titles).text((column * config.side + 4, 3), title, fill="black")
    sheet = Image.fromarray(np.concatenate([np.asarray(titles), *(np.concatenate(row, axis=1) for row in rows)]))
    kind = "PNG" if config.out.suffix.lower() == ".png" else "JPEG"
    write_atomically(config.out, lambda path: sheet.save(path, format=kind, quality=90))
    return config.out


def seeds_of(text: str) -> list[int]:
    """The numbers of --seeds.

    Raises:
        UserError: one of them is no whole number.
    """
    if not all(word.strip().isdecimal() for word in text.split(",")):
        raise UserError(f"--seeds is {text!r}, expected whole numbers separated by commas, as in 7,3,21")
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    exit_with_message(main)
