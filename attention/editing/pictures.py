"""What the command that edits does: open, change and write one picture, or all of a folder."""

import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from attention.editing.command import STRENGTHS, EditConfig, further_changes
from attention.editing.photo import load_detector, read_photo
from attention.editing.session import Edited, Editor, load_editor
from attention.errors import UserError
from attention.files.disk import run_folder, write_picture
from attention.images import to_pixels

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def edit_one(config: EditConfig) -> Path:
    """Edit one source; returns what --out says."""
    reference = check_changes(config)
    editor = load_editor(config.run, config.device, config.trust)
    write(editor, changed(opened(editor, config.photo, config.landmarks, config), reference, config), config.out, config)
    print(f"wrote {config.out}")
    return config.out


def edit_folder(folder: Path, config: EditConfig) -> Path:
    """Edit every picture of a folder; those that fail are named and passed over.

    Raises:
        UserError: the folders are one, two pictures would have the same name, or there is none; and after all the others,
            some failed.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not paths:
        raise UserError(f"{folder} holds no pictures, expected files such as .jpg or .png")
    if config.out.resolve() == folder.resolve():
        raise UserError(f"--out is {config.out}, the folder of the photos, which would be overwritten; name another folder")
    if len({path.stem for path in paths}) < len(paths):
        raise UserError(f"{folder} holds pictures that differ only in their ending, but all edits end in .png; "
                        "rename one of each")
    reference = check_changes(config)
    run_folder(config.out, "--out")
    editor, failed = load_editor(config.run, config.device, config.trust), []
    if not config.aligned and config.landmarks is None:
        load_detector(str(editor.world.device))                    # what is missing for all of them is told once
    for path in tqdm(paths, desc="editing"):
        try:
            source = opened(editor, path, _landmarks_of(path, config.landmarks), config)
            write(editor, changed(source, reference, config), config.out / f"{path.stem}.png", config)
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


def check_changes(config: EditConfig) -> Image.Image | None:
    """The picture to resemble, if there is one; refused before an editor is loaded.

    Raises:
        UserError: the reference is no picture.
    """
    return None if config.reference is None else read_photo(config.reference)


def opened(editor: Editor, photo: Path | None, landmarks: Path | None, config: EditConfig) -> Edited:
    """The source, as yet unedited; says how near the inverted face is to a photo."""
    if config.seed is not None:
        return editor.open_seed(config.seed)
    assert photo is not None                                        # one of the two is given
    source = editor.open_photo(photo, landmarks, config.face, config.aligned, config.refine)
    tqdm.write(f"{photo}: {nearness(source.origin, config.refine)}")
    return source


def changed(source: Edited, reference: Image.Image | None, config: EditConfig) -> Edited:
    """All changes that the flags ask for, one after the other."""
    strength, coverage, changes = config.strength, config.coverage, further_changes(config)
    if reference is not None:
        source = source.resemble(reference, config.where, strength=strength, coverage=coverage)
    elif config.what is not None:
        changes = [(config.what, config.where), *changes]
    for what, where in changes:
        source = source.edit(what, where, strength=strength, coverage=coverage)
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
        mask = to_pixels(edited.mask.expand(-1, 3, -1, -1) * 2 - 1)[0]
        write_picture(out.with_name(f"{out.stem}_mask.png"), Image.fromarray(mask))
    if config.grid:
        write_picture(out.with_name(f"{out.stem}_grid.png"), editor.grid(edited, edited.changes, STRENGTHS))
