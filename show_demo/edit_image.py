"""Edit a photo, a folder of photos, or the face of a seed from the command line.

    python show_demo/edit_image.py --seed 7 --what "grey hair" --where hair --out edited.png
    python show_demo/edit_image.py photo.jpg --what "grey hair" --then "red lipstick@lips" --out edited.png
    python show_demo/edit_image.py photos/ --what "grey hair" --out edited/

Without --run the shipped editor of drawn faces edits. A photo needs its face found (the package face-alignment), or
--landmarks, or --aligned if it is framed already. The written PNG holds its recipe (attention/editing.py: replay).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import Config, option, parse_config
from attention.editing.photo import load_detector, read_photo
from attention.editing.session import COVERAGE, LARGEST_SEED, Change, Edited, Editor, load_editor
from attention.errors import UserError, exit_with_message
from attention.files.disk import run_folder, write_atomically
from attention.files.published import SHIPPED
from attention.images import to_pixels
from attention.method.mapper import STRENGTH

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
STRENGTHS = (0.05, 0.1, 0.15, 0.2)          # of --grid


class EditConfig(Config):
    """Options."""

    photo: Path | None = option(None, "picture or folder of pictures; the flag's name may be left out if it comes first")
    seed: int | None = option(None, "edit the face of this seed instead of a photo", min=0, max=LARGEST_SEED)
    run: Path = option(SHIPPED, "run folder of the editor; default: the shipped one of drawn faces")
    what: str | None = option(None, "the change, as in \"grey hair\"")
    reference: Path | None = option(None, "a square picture that the region should resemble, instead of --what")
    where: str | None = option(None, "the place, as in \"hair\"; default: --what says it too, with --reference everywhere")
    strength: float = option(STRENGTH, "of the change", min=0, max=1)
    coverage: float = option(COVERAGE, "0 edits almost nowhere, 1 widely", min=0, max=1)
    then: str | None = option(None, "a further change WHAT@WHERE or WHAT; may be given several times")
    landmarks: Path | None = option(None, "file of 68 or 5 points x y; for a folder, a folder of files of the same names")
    face: int | None = option(None, "which of several faces, 0 the largest", min=0)
    aligned: bool = option(False, "the photo is square and framed already")
    refine: int = option(0, "steps that bring the inversion nearer to the photo", min=0)
    out: Path = option(Path("edited.png"), "PNG to write; for a folder, a folder")
    save_mask: bool = option(False, "write OUT_mask.png too: where the last change is")
    grid: bool = option(False, f"write OUT_grid.png too: the changes at the strengths {', '.join(map(str, STRENGTHS))}")
    device: str = option("auto", "cpu, cuda, cuda:N, or auto")
    trust: bool = option(False, "run a CLIP archive (a program) that is not OpenAI's by its hash")


def main(argv: Sequence[str] | None = None) -> Path:
    """Edit and write; returns what --out says."""
    config = parse_config(EditConfig, _as_flags(sys.argv[1:] if argv is None else argv), __doc__)
    if (config.photo is None) == (config.seed is None):
        raise UserError("give either a photo (or a folder of them) or --seed; for example: --seed 7 --what \"grey hair\"")
    if (config.what is None) == (config.reference is None):
        raise UserError("say what to change with --what \"grey hair\", or give a picture to resemble with --reference")
    finders = [name for name in ("landmarks", "face") if getattr(config, name) is not None]
    photo_flags = finders + [name for name in ("aligned", "refine") if getattr(config, name)]
    if config.seed is not None and photo_flags:
        raise UserError(f"--{photo_flags[0]} is about photos, but --seed gives a face that needs none; leave it out")
    if config.aligned and finders:
        raise UserError(f"--{finders[0]} says where a face is, but --aligned that the photo is framed already; leave one "
                        "of them out")
    if config.photo is not None and not config.photo.exists():
        raise UserError(f"{config.photo} does not exist, expected a photo or a folder of them")
    if config.photo is not None and config.photo.is_dir():
        return edit_folder(config)
    if config.out.suffix.lower() != ".png":
        raise UserError(f"--out is {config.out}, expected a name that ends in .png, which keeps the recipe")
    editor = load_editor(config.run, config.device, config.trust)
    write(editor, edit(editor, config.photo, config.landmarks, wanted(config), config), config.out, config)
    print(f"wrote {config.out}")
    return config.out


def _as_flags(argv: Sequence[str]) -> list[str]:
    """The photo's place and repeated --then as flags that stand alone."""
    words = ["--photo", *argv] if argv and not argv[0].startswith("-") else list(argv)
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--then=") else [word])]
    changes = [i for i, word in enumerate(words) if word == "--then"]
    if len(changes) < 2 or changes[-1] + 1 == len(words):
        return words
    rest = [word for i, word in enumerate(words) if i not in changes and i - 1 not in changes]
    return [*rest, "--then", "\n".join(words[i + 1] for i in changes)]


def edit_folder(config: EditConfig) -> Path:
    """Edit every picture of a folder; those that fail are named and passed over.

    Raises:
        UserError: the folders are one, two pictures would have the same name, or there is none; and after all the others,
            some failed.
    """
    paths = sorted(path for path in config.photo.iterdir() if path.suffix.lower() in PICTURES)
    if not paths:
        raise UserError(f"{config.photo} holds no pictures, expected files such as .jpg or .png")
    if config.out.resolve() == config.photo.resolve():
        raise UserError(f"--out is {config.out}, the folder of the photos, which would be overwritten; name another folder")
    if len({path.stem for path in paths}) < len(paths):
        raise UserError(f"{config.photo} holds pictures that differ only in their ending, but all edits end in .png; "
                        "rename one of each")
    run_folder(config.out, "--out")
    editor, failed = load_editor(config.run, config.device, config.trust), []
    changes = wanted(config)
    if not config.aligned and config.landmarks is None:
        load_detector(str(editor.world.device))                    # what is missing for all of them is told once
    for path in tqdm(paths, desc="editing"):
        try:
            edited = edit(editor, path, _landmarks_of(path, config.landmarks), changes, config)
            write(editor, edited, config.out / f"{path.stem}.png", config)
        except UserError as error:
            failed.append(path.name)
            tqdm.write(f"passed over {path}: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(paths)} pictures were passed over: {', '.join(failed)}; the others are in "
                        f"{config.out}")
    print(f"wrote {len(paths)} pictures to {config.out}")
    return config.out


def _landmarks_of(photo: Path, folder: Path | None) -> Path | None:
    """The file of landmarks that belongs to a photo of a folder."""
    if folder is None:
        return None
    as_json, as_text = folder / f"{photo.stem}.json", folder / f"{photo.stem}.txt"
    return as_json if as_json.exists() else as_text


def wanted(config: EditConfig) -> list[tuple[str | Image.Image, str | None]]:
    """What and where of every change that the flags ask for.

    Raises:
        UserError: a text is empty, or the reference is no picture.
    """
    changes = [(config.what if config.reference is None else read_photo(config.reference), config.where)]
    for change in config.then.split("\n") if config.then else []:
        what, _, where = change.partition("@")
        changes.append((what.strip(), where.strip() or None))
    for text in (part for change in changes for part in change if isinstance(part, str)):
        Change(text, text)
    return changes


def edit(editor: Editor, photo: Path | None, landmarks: Path | None,
         changes: Sequence[tuple[str | Image.Image, str | None]], config: EditConfig) -> Edited:
    """All changes of one source; says how near the inverted face is to a photo."""
    if photo is None:
        source = editor.open(config.seed)
    else:
        source = editor.open_photo(photo, landmarks, config.face, config.aligned, config.refine)
        tqdm.write(f"{photo}: {nearness(source.origin, config.refine)}")
    for what, where in changes:
        source = source.edit(what, where, config.strength, config.coverage)
    return source


def nearness(origin: dict, steps: int) -> str:
    """How near an inversion is to its photo: PSNR, and LPIPS where it was measured, before and after refinement."""
    words = [f"{psnr:.1f} dB" + (f" (LPIPS {lpips:.3f})" if lpips is not None else "")
             for psnr, lpips in zip(origin["psnr"], origin.get("lpips", (None, None)), strict=True)]
    return f"inverted to {words[0]}" + (f", refined to {words[1]}" if steps else "")


def write(editor: Editor, edited: Edited, out: Path, config: EditConfig) -> None:
    """The picture, and beside it what else was asked for."""
    edited.save(out)
    if config.save_mask:
        mask = Image.fromarray(to_pixels(edited.mask.expand(-1, 3, -1, -1) * 2 - 1)[0])
        write_atomically(out.with_name(f"{out.stem}_mask.png"), lambda path: mask.save(path, format="PNG"))
    if config.grid:
        sheet = editor.grid(edited.with_changes(()), edited.changes, STRENGTHS)
        write_atomically(out.with_name(f"{out.stem}_grid.png"), lambda path: sheet.save(path, format="PNG"))


if __name__ == "__main__":
    exit_with_message(main)
