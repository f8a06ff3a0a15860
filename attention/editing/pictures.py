"""What the command that edits does: open, change and write one picture, or all of a folder."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from attention.editing.command import EditConfig, further_changes
from attention.editing.detector import load_detector
from attention.editing.edited import Edited
from attention.editing.photo import read_photo
from attention.editing.session import Editor, load_editor
from attention.errors import UserError, printable
from attention.files.disk import refuse_overwriting, refuse_pictures_of_others, run_folder, write_picture
from attention.files.pictures import picture_endings
from attention.files.reading import shown
from attention.inversion.invert import Interrupted

LANDMARKS = (".json", ".JSON", ".txt", ".TXT")      # endings of files of landmarks, which may lie among the photos


def edit_one(config: EditConfig) -> Path:
    """Edit one source; returns what --out says."""
    read = [path for path in (config.photo, config.landmarks, config.reference) if path is not None]
    refuse_overwriting(written_for(config.out, config), read)
    if os.path.isdir(config.out):
        raise UserError(f"--out {shown(config.out)} is a folder, expected a name for one picture")
    refuse_pictures_of_others(written_for(config.out, config), config.overwrite)
    reference = check_changes(config)
    run_folder(config.out.parent, "--out")
    editor = load_editor(config.run, config.device, config.trust, config.ckpt)
    source = opened(editor, config.photo, config.landmarks, config)
    write(editor, changed(source, reference, config), config.out, config)
    return config.out


def edit_folder(folder: Path, config: EditConfig) -> Path:
    """Edit every picture of a folder; those that fail, and files that are none, are named and passed over. Hidden files and
    files of landmarks are no pictures; folders in it are left alone.

    Raises:
        UserError: the folders are one, two pictures would have the same name, or there is none; and after all the others,
            some failed.
    """
    paths, others = pictures_of(folder)
    if os.path.realpath(config.out) == os.path.realpath(folder):
        raise UserError(f"--out is {shown(config.out)}, the folder of the photos, which would be overwritten; name another "
                        "folder")
    if config.landmarks is not None and not os.path.isdir(config.landmarks):
        raise UserError(f"--landmarks {shown(config.landmarks)} is no folder, but for a folder of photos one was expected, "
                        "of files of the photos' names")
    stems = [path.stem for path in paths]
    if alike := [shown(path.name) for path in paths if stems.count(path.stem) > 1]:
        raise UserError(f"{shown(folder)} holds pictures that differ only in their ending, but all edits end in .png: "
                        f"{', '.join(alike[:4])}{', ...' * (len(alike) > 4)}; rename or move one of each")
    outputs = {path: config.out / f"{path.stem}.png" for path in paths}
    points = {path: _landmarks_of(path, config.landmarks) for path in paths}
    written = [file for out in outputs.values() for file in written_for(out, config)]
    refuse_overwriting(written,
                       [*paths, *(file for file in (*points.values(), config.reference) if file is not None)])
    refuse_pictures_of_others(written, config.overwrite)
    reference = check_changes(config)
    run_folder(config.out, "--out")
    editor, failed, unchanged = load_editor(config.run, config.device, config.trust, config.ckpt), [], []
    if not config.aligned and config.landmarks is None:
        load_detector()                    # what is missing for all of them is told once
    for path in others:
        failed.append(shown(path.name))
        tqdm.write(f"passed over {shown(path)}: by its ending no picture that can be opened", file=sys.stderr)
    for number, path in enumerate(tqdm(paths, desc="editing"), start=1):
        try:
            with notes_of(path):
                source = opened(editor, path, points[path], config)
                if write(editor, changed(source, reference, config), outputs[path], config) is not None:
                    unchanged.append(shown(path.name))
        except UserError as error:
            failed.append(shown(path.name))
            tqdm.write(f"passed over {shown(path)}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            tqdm.write(f"stopped at {shown(path)}, picture {number} of {len(paths)}", file=sys.stderr)
            raise
    if unchanged:
        print(f"nothing changed in {len(unchanged)} pictures: {', '.join(unchanged)}")
    if failed:
        count = len(paths) + len(others)
        rest = f"the others are in {shown(config.out)}" if len(failed) < count else "none is left"
        raise UserError(f"{len(failed)} of {count} pictures were passed over: {', '.join(failed)}; {rest}")
    print(f"edited {len(paths)} pictures into {shown(config.out)}")
    return config.out


@contextmanager
def notes_of(path: Path) -> Iterator[None]:
    """Inside, every note names its picture; afterwards Ctrl-C that has ended a refinement ends the whole folder."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for note in told:
                tqdm.write(f"note: {shown(path.name)}: {printable(str(note.message))}", file=sys.stderr)
    if any(note.category is Interrupted for note in told):
        raise KeyboardInterrupt


def pictures_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder that are pictures by their ending, and those that are neither, nor landmarks, nor hidden.

    Raises:
        UserError: there are no pictures, or the folder cannot be read.
    """
    try:
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be read ({error.strerror}), expected a folder of photos") from None
    endings = picture_endings()
    pictures = [path for path in files if path.suffix.lower() in endings]
    if not pictures:
        raise UserError(f"{shown(folder)} holds no pictures, expected files such as .jpg or .png")
    return pictures, [path for path in files if path.suffix.lower() not in endings and path.suffix not in LANDMARKS]


def _landmarks_of(photo: Path, folder: Path | None) -> Path | None:
    """The file of landmarks that belongs to a photo of a folder."""
    if folder is None:
        return None
    names = [folder / f"{photo.stem}{ending}" for ending in LANDMARKS]
    return next(filter(os.path.exists, names), names[0])


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
    tqdm.write(f"{shown(photo)}: {nearness(source.origin)}")
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


def nearness(origin: dict) -> str:
    """How near an inversion is to its photo: PSNR, and where they were measured LPIPS and dlib's distance between the two
    faces, before and after refinement, if any."""
    words = []
    for i, psnr in enumerate(origin["psnr"]):
        beside = [f"{name} {origin[name.lower()][i]:{form}}" for name, form in (("LPIPS", ".3f"), ("distance", ".2f"))
                  if name.lower() in origin]
        words.append(f"{psnr:.1f} dB" + f" ({', '.join(beside)})" * bool(beside))
    return f"inverted to {words[0]}" + (f", refined to {words[1]}" if words[1] != words[0] else "")


def written_for(out: Path, config: EditConfig) -> list[Path]:
    """All files that one edit writes: the picture, its mask, its grid."""
    beside = [name for name, wanted in (("mask", config.save_mask), ("grid", config.grid)) if wanted]
    return [out, *(out.with_name(f"{out.stem}_{name}.png") for name in beside)]


def write(editor: Editor, edited: Edited, out: Path, config: EditConfig) -> str | None:
    """The picture, and beside it what else was asked for; returns why it is the unedited one, if it is."""
    files = written_for(out, config)
    edited.save(out, config.overwrite)
    if config.save_mask:
        write_picture(files[1], edited.mask_image)
    if config.grid:
        write_picture(files[-1], editor.grid(edited, edited.changes))
    tqdm.write(f"wrote {', '.join(map(shown, files))}")
    return edited.unchanged(edited.with_changes(()))
