"""Which of several editors draws more like a photograph? Their edits of the same faces at full size, mixed and rated.

    python -m benchmarks.rated --out runs/rated --name before --run runs/a --prompts "red lipstick,grey hair"
    python -m benchmarks.rated --out runs/rated --name after --run runs/b --prompts "red lipstick,grey hair"
    python -m benchmarks.rated --out runs/rated --name after --photos photos/ --prompts "grey hair"     # or of photos
    python -m benchmarks.rated --out runs/rated             # mixes what was drawn
    python -m benchmarks.rated --out runs/rated             # again, when two have rated it: the table

What is round a prompt's part, of faces that lack what it asks for, lies in random order in OUT/PROMPT/sheet_*.png; who
rates knows nothing of names. Two judges write OUT/PROMPT/judge_a.json and judge_b.json, two numbers for every one on the
sheets: {"0": [2, 4.5], "1": [1, 3], ...}. How much is it so, from 0 to 2? How much does it look like a photograph, from 1,
painted, to 5? Writes OUT/rated.json, by prompt, name and face, and OUT/rated.md. Needs the extra truth, and:
python -m attention.download faces mesh
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from attention.config import FACES, Config, option, parse_config
from attention.editing.edited import Edited
from attention.editing.session import Editor, load_editor
from attention.errors import UserError, exit_with_message
from attention.evaluation.metrics import lacking
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder, write_picture, write_text
from attention.files.pictures import picture_endings, read_picture
from attention.files.published import SHIPPED_FACES
from attention.generator import sample_z
from attention.images import to_pixels
from attention.memory import keep_memory
from attention.worlds.faces.concepts import BY_PHRASE, PROMPTS
from attention.worlds.faces.truth import FacesTruth
from attention.worlds.truth import Faces
from benchmarks.judged import JUDGES, write_sheets

SIDE, DOWN = 480, 2         # of a tile in px, and tiles one below the other on a sheet
ROUND = 0.75                # of a part's larger side: so far from its middle a tile reaches
SO, PHOTO = (0.0, 2.0), (1.0, 5.0)
KEYS = "keys.json"          # which edit a number is, by prompt: [name, face]
GOOD = 4.0                  # a photograph, but for a trace
COLUMNS = {"faces": ("faces", ".0f"), "so": ("so, 0 to 2", ".2f"), "photo": ("like a photograph, 1 to 5", ".2f"),
           "good": (f"{GOOD:g} and more", ".2f")}
Ratings = Mapping[str, Mapping[str, Mapping[str, Sequence[Sequence[float]]]]]


class RatedConfig(Config):
    """Options."""

    out: Path = option(Path("runs/rated"), "folder to write to")
    name: str | None = option(None, "draw the edits of --run, and call them so")
    run: Path = option(SHIPPED_FACES, "editor to draw with")
    prompts: str = option(",".join(PROMPTS), "to edit by, separated by commas")
    faces: int = option(6, "that are edited", min=1, max=FACES)
    photos: Path | None = option(None, "folder of photos, whose largest faces are edited instead of those of a seed")
    seed: int = option(19000, "of the faces, and of the order", min=0, max=2**31)


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw, mix, or make the table; returns what was written."""
    config = parse_config(RatedConfig, argv, __doc__)
    folder = run_folder(config.out, "--out")
    if config.name is not None:
        draw(config, folder)
        return folder / "edits"
    if not (folder / KEYS).exists():
        mix(folder, config.seed)
        print(f"{folder}: rate every PROMPT/sheet_*.png into PROMPT/{JUDGES[0]} and {JUDGES[1]}, and run this again")
        return folder / KEYS
    keys = read_keys(folder / KEYS)
    found = {prompt: ratings(folder / prompt.replace(" ", "_"), of) for prompt, of in keys.items()}
    write_text(folder / "rated.json", json.dumps(found))
    told = table(found)
    write_text(folder / "rated.md", told + "\n")
    print(told)
    return folder / "rated.md"


def draw(config: RatedConfig, folder: Path) -> None:
    """An editor's edits, OUT/edits/PROMPT/FACE_NAME.png, of the first faces of a seed, or of photos, that lack what a
    prompt asks for."""
    if not re.fullmatch("[a-z0-9-]{1,40}", config.name or ""):
        raise UserError(f"--name is {config.name!r}, expected small letters, digits and hyphens, at most 40")
    prompts = [prompt.strip() for prompt in config.prompts.split(",")]
    if unknown := [prompt for prompt in prompts if prompt not in PROMPTS]:
        raise UserError(f"--prompts has {unknown[0]!r}, expected some of: {', '.join(PROMPTS)}")
    if (folder / KEYS).exists():
        raise UserError(f"--out is {config.out}, whose edits are mixed already; name another folder")
    pictures = None if config.photos is None else photos_in(config.photos)
    keep_memory()
    editor = load_editor(config.run, "cpu")
    truth = editor.world.truth
    if not isinstance(truth, FacesTruth):
        raise UserError(f"--run is {config.run}, an editor of {editor.world.name}, expected one of faces")
    left = dict.fromkeys(prompts, config.faces)
    progress = tqdm(total=sum(left.values()), desc=config.name)
    opened = of_seed(editor, config.seed) if pictures is None else of_photos(editor, pictures)
    for number, (face, known) in enumerate(opened):
        seen = truth.read(face.square.clamp(-1, 1), known)
        lacked = dict(zip(BY_PHRASE, lacking(known, seen)[:, 0], strict=True))
        for prompt in prompts:
            if left[prompt] and lacked[prompt]:
                shown = tile(to_pixels(face.edit(prompt).square)[0], known.part(prompt)[0].numpy())
                edits = run_folder(folder / "edits" / prompt.replace(" ", "_"), "--out")
                write_picture(edits / f"{number}_{config.name}.png", shown)
                left[prompt] -= 1
                progress.update()
        if not any(left.values()):
            break
    progress.close()


Opened = Iterator[tuple[Edited, Faces]]         # a face, and what is true of it


def of_seed(editor: Editor, seed: int) -> Opened:
    """The faces of a seed."""
    for z in sample_z(FACES, editor.world.generator.style_dim, seed).split(1):
        yield editor.open_latent(editor.world.w_from_z(z)), editor.world.truth.faces(z)


def of_photos(editor: Editor, pictures: Sequence[Path]) -> Opened:
    """The largest face of every photo."""
    assert isinstance(editor.world.truth, FacesTruth)
    for picture in pictures:
        face = editor.open_photo(picture)
        yield face, editor.world.truth.photos(face.square, editor.latent(face.origin))


def photos_in(folder: Path) -> list[Path]:
    """The pictures of a folder.

    Raises:
        UserError: there are none.
    """
    endings = picture_endings()
    found = [path for path in (sorted(folder.iterdir()) if folder.is_dir() else []) if path.suffix.lower() in endings]
    if not found:
        raise UserError(f"--photos is {folder}, expected a folder with pictures in it")
    return found


def tile(pixels: np.ndarray, part: np.ndarray) -> Image.Image:
    """What is round a part (h, h) bool of a picture (R, R, 3), SIDE pixels wide."""
    rows, columns = np.nonzero(part) if part.any() else np.indices(part.shape).reshape(2, -1)
    half = min(ROUND * max(np.ptp(rows), np.ptp(columns)), len(part) / 2)
    middle = np.clip([columns.min() + np.ptp(columns) / 2, rows.min() + np.ptp(rows) / 2], half, len(part) - half)
    box = np.round(len(pixels) / len(part) * np.concatenate([middle - half, middle + half])).astype(int)
    return Image.fromarray(pixels).crop(tuple(box)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def mix(folder: Path, seed: int) -> None:
    """Sheets of every prompt, its edits in random order, and their keys."""
    random, keys = np.random.default_rng(seed), {}
    for edits in sorted((folder / "edits").glob("*/")):
        files = sorted(edits.glob("*_*.png"))
        files = [files[number] for number in random.permutation(len(files))]
        if files:
            write_sheets(folder / edits.name, [read_picture(file) for file in files], DOWN)
            keys[edits.name.replace("_", " ")] = [file.stem.split("_", 1)[::-1] for file in files]
    if not keys:
        raise UserError(f"--out is {folder}, where no edits are; draw some: python -m benchmarks.rated --out {folder} "
                        "--name before --run RUN")
    write_text(folder / KEYS, json.dumps(keys))


def read_keys(path: Path) -> dict[str, list[list[str]]]:
    """What `mix` wrote.

    Raises:
        UserError: it is something else.
    """
    try:
        keys = json.loads(path.read_text())
        assert keys and all(prompt in PROMPTS and of for prompt, of in keys.items())
        assert all(isinstance(word, str) for of in keys.values() for name, face in of for word in (name, face))
        return keys
    except (OSError, ValueError, TypeError, AttributeError, AssertionError):
        raise UserError(f"{path} is not what this command wrote; remove it, and mix the edits again") from None


def ratings(folder: Path, keys: Sequence[Sequence[str]]) -> dict[str, dict[str, list[list[float]]]]:
    """By name and face, what two judges said.

    Raises:
        UserError: a file is missing, or says something else than two numbers for every one on the sheets.
    """
    found: dict[str, dict[str, list[list[float]]]] = {name: {} for name in sorted({name for name, _ in keys})}
    for file in (folder / name for name in JUDGES):
        try:
            said = json.loads(file.read_text())
            assert len(said) == len(keys)
            for number, (name, face) in enumerate(keys):
                so, photo = said[str(number)]
                assert type(so) in (int, float) and type(photo) in (int, float)
                assert SO[0] <= so <= SO[1] and PHOTO[0] <= photo <= PHOTO[1]                  # nan fails too
                found[name].setdefault(face, []).append([so, photo])
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            raise UserError(f'{file} should be there and say {{"0": [2, 4.5], "1": [1, 3], ...}}: 0 to 2 and 1 to 5 for '
                            f"each of the {len(keys)} numbers on the sheets beside it; rate them, run this again") from None
    return found


def table(found: Ratings) -> str:
    """A row for every prompt and name, and one of all prompts for every name: means over faces and judges."""
    rows: dict[str, dict[str, float]] = {}
    marks: dict[str, list[Sequence[Sequence[float]]]] = {}
    for prompt, names in found.items():
        for name, faces in names.items():
            rows[f"{prompt}, {name}"] = row(list(faces.values()))
            marks.setdefault(name, []).extend(faces.values())
    return markdown(rows | {f"**all**, {name}": row(of) for name, of in marks.items()}, "prompt, editor", COLUMNS)


def row(marks: Sequence[Sequence[Sequence[float]]]) -> dict[str, float]:
    """Of the table, from what each judge said of each edit."""
    so, photo = np.moveaxis(np.array(marks), 2, 0)
    return {"faces": len(marks), "so": so.mean(), "photo": photo.mean(), "good": (photo >= GOOD).mean()}


if __name__ == "__main__":
    exit_with_message(main)
