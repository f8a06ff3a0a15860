"""Edit a photo, a folder of photos, or the face of a seed from the command line.

    where2edit edit --seed 7 --what "grey hair" --where hair --out edited.png
    where2edit edit photo.jpg --what "grey hair" --then "red lipstick@lips" --out edited.png
    where2edit edit photos/ --what "grey hair" --out edited/

In a checkout that is not installed: python show_demo/edit_image.py instead of where2edit edit. Without --run the shipped
editor of real-looking faces edits, if their generator is there (python -m attention.download faces), else that of drawn
ones. A photo needs its face found (the extra photos), or --landmarks, or --aligned if it is framed already. Of a folder
every picture is edited; what fails and files that are no pictures are named, and the exit code is then 2. Hidden files,
landmarks (.json, .txt) and folders in it are left alone. No photo that is read is ever overwritten; of other files only
pictures that this program wrote, unless --overwrite is given. The written PNG keeps the photo's colour profile and holds
its recipe: editor.replay("edited.png") in Python makes the same pixels again. EXIF data (time, place, camera) stay behind.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from attention.config import CKPT, DEVICE, TRUST, Config, option, parse_config
from attention.editing.words import check_before_loading, listed
from attention.errors import UserError
from attention.files.reading import readable, shown
from attention.method.defaults import COVERAGE, STRENGTH, STRENGTHS
from attention.worlds.registry import WORLDS, usual_run, usual_world

BETWEEN = "\0"              # several --then in one flag; nothing that is typed holds it


class EditConfig(Config):
    """Options."""

    photo: Path | None = option(None, "picture or folder of pictures; the flag's name may be left out if it comes first")
    seed: int | None = option(None, "edit the face of this seed instead of a photo", min=0, max=2**63 - 1)
    run: Path = option(Path("drawn"), "run folder of the editor, or the name of a shipped one")
    ckpt: Path | None = option(None, CKPT)
    what: str | None = option(None, "the change, as in \"grey hair\"")
    reference: Path | None = option(None, "a square picture that the region should resemble, instead of --what")
    where: str | None = option(None, "the place, as in \"hair\"; default: --what says it too, with --reference everywhere")
    strength: float = option(STRENGTH, "of the change", min=0, max=1)
    coverage: float = option(COVERAGE, "0 edits almost nowhere, 1 widely", min=0, max=1)
    then: str | None = option(None, "a further change WHAT@WHERE or WHAT; may be given several times")
    landmarks: Path | None = option(None, "file of 68 or 5 points x y; for a folder, a folder of files of the same names")
    face: int | None = option(None, "which of several faces, 0 the largest", min=0)
    aligned: bool = option(False, "the photo is square and framed already")
    refine: int | None = option(None, "steps that bring the inversion nearer to the photo; default: what suits the world",
                                min=0)
    out: Path = option(Path("edited.png"), "PNG to write; for a folder, a folder")
    save_mask: bool = option(False, "write OUT_mask.png too: where the last change is")
    grid: bool = option(False, f"write OUT_grid.png too: the changes at the strengths {', '.join(map(str, STRENGTHS))}")
    overwrite: bool = option(False, "replace what has the name of a picture to write, whoever wrote it")
    device: str = option("auto", DEVICE)
    trust: bool = option(False, TRUST)


def main(argv: Sequence[str] | None = None) -> Path:
    """Edit and write; returns what --out says."""
    world = usual_world()
    told = f"{__doc__}\nWhat can be said in the world {world}, by place (--where):\n{listed(WORLDS[world])}\n"
    config = parse_config(EditConfig, _as_flags(sys.argv[1:] if argv is None else argv), told, usual_run)
    _check(config)

    from attention.editing.pictures import edit_folder, edit_one
    if config.photo is not None and os.path.isdir(config.photo):
        return edit_folder(config.photo, config)
    return edit_one(config)


def _as_flags(argv: Sequence[str]) -> list[str]:
    """The photo's place and repeated --then as flags that stand alone."""
    words = ["--photo", *argv] if argv and not argv[0].startswith("-") else list(argv)
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--then=") else [word])]
    changes = [i for i, word in enumerate(words) if word == "--then"]
    if len(changes) < 2 or changes[-1] + 1 == len(words):
        return words
    rest = [word for i, word in enumerate(words) if i not in changes and i - 1 not in changes]
    return [*rest, "--then", BETWEEN.join(words[i + 1] for i in changes)]


def further_changes(config: EditConfig) -> list[tuple[str, str | None]]:
    """What and where of every --then.

    Raises:
        UserError: one of them has an @ too many, or nothing beside it.
    """
    said = [] if config.then is None else [change.split("@") for change in config.then.split(BETWEEN)]
    for parts in said:
        if len(parts) > 2 or not all(part.strip() for part in parts):
            raise UserError(f"--then is {shown('@'.join(parts))!r}, expected WHAT or WHAT@WHERE, as in red lipstick@lips")
    return [(what.strip(), where[0].strip() if where else None) for what, *where in said]


def _check(config: EditConfig) -> None:
    """Refuse flags that contradict each other, and texts of which nothing is known, before anything is loaded."""
    if (config.photo is None) == (config.seed is None):
        raise UserError("give either a photo (or a folder of them) or --seed; for example: --seed 7 --what \"grey hair\"")
    if config.what is not None and config.reference is not None:
        raise UserError("--what and --reference both say what to change; leave one of them out")
    if config.what is None and config.reference is None:
        raise UserError("say what to change with --what \"grey hair\", or give a picture to resemble with --reference")
    finders = [name for name in ("landmarks", "face") if getattr(config, name) is not None]
    photo_flags = finders + ["aligned"] * config.aligned + ["refine"] * (config.refine is not None)
    if config.seed is not None and photo_flags:
        raise UserError(f"--{photo_flags[0]} is about photos, but --seed gives a face that needs none; leave it out")
    if config.aligned and finders:
        raise UserError(f"--{finders[0]} says where a face is, but --aligned that the photo is framed already; leave one "
                        "of them out")
    whole_folder = config.photo is not None and os.path.isdir(config.photo)
    if not whole_folder and config.photo is not None:
        readable(config.photo, "a photo or a folder of them")
    if not whole_folder and config.out.suffix.lower() != ".png":
        raise UserError(f"--out is {shown(config.out)}, expected a name that ends in .png, which keeps the recipe")
    changes = [(config.what, config.where), *further_changes(config)]
    shipped = None if (config.run / "editor.safetensors").exists() else WORLDS.get(str(config.run))
    check_before_loading([what for what, _ in changes if what is not None],
                         [where for _, where in changes if where is not None], shipped)
