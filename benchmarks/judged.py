"""Do the measures of real faces see what whoever looks at them sees? Sheets to judge by eye, and how far both agree.

    python -m benchmarks.judged --out runs/judged           # sheets of every prompt
    python -m benchmarks.judged --out runs/judged           # again, when two have judged them: the table

Faces as they were generated and their edits, at shares of the usual strength, lie in random order in
runs/judged/PHRASE/sheet_*.png; who judges knows nothing of either. Two judges write runs/judged/PHRASE/judge_a.json and
judge_b.json, two letters for every number on the sheets: {"0": "yg", "1": "nb", ...}. Is it so: y yes, n no, u cannot
tell. Does that part look like a photograph: g good, b bad. Writes OUT/judged.npz, of which the table is made, and
OUT/judged.md. Needs the extra truth, and: python -m attention.download faces mesh
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from attention.config import FACES, Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.evaluation.metrics import lacking, mean
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder, write_atomically, write_picture, write_text
from attention.files.published import SHIPPED_FACES
from attention.generator import sample_z
from attention.images import to_pixels
from attention.memory import keep_memory
from attention.method.defaults import COVERAGE, STRENGTH
from attention.method.spatial_attention import threshold_for
from attention.training.runs import load_run
from attention.worlds.faces.concepts import BY_PHRASE, PROMPTS
from attention.worlds.faces.measures import MEASURES, RULES, held, share_reached
from attention.worlds.faces.truth import LARGE, MOST, FacesTruth, GeneratedFaces
from attention.worlds.world import World

SHARES = (0.6, 1.0, 1.6)    # of the usual strength, at which an edit is judged
OTHERS = 3                  # of so many faces that lack a phrase one is shown as it is, and one other edit is left out
ZOOMED = 0.06               # of the picture: parts smaller than that are shown enlarged too
JUDGES = ("judge_a.json", "judge_b.json")
SIDE, ACROSS, DOWN = 256, 3, 4      # of a tile in px; tiles of a sheet
VERDICTS = {"y": 1.0, "u": 0.5, "n": 0.0}
WIDTHS = (len(MEASURES) + 2, len(MEASURES) + 6)    # of a table before and after it was judged
SURE = 0.75                 # of the mean verdict, beyond which two judges agree


class JudgedConfig(Config):
    """Options."""

    faces: int = option(36, "that are edited", min=1, max=FACES)
    seed: int = option(5000, "of the faces, and of the order", min=0, max=2**31)
    out: Path = option(Path("runs/judged"), "folder to write to")


class Judged(NamedTuple):
    """Pictures of one phrase, what was measured in them and what two judges said.

    Attributes:
        numbers: (N, M) by MEASURES; NaN where the phrase does not ask.
        share: (N,) of hair or background that was reached, 1 of other parts.
        strength: (N,) share of the usual strength; 0: as it was generated.
        so: (N, 2) verdicts: 1 yes, 0.5 cannot tell, 0 no.
        bad: (N, 2) bool: does not look like a photograph.
    """

    numbers: np.ndarray
    share: np.ndarray
    strength: np.ndarray
    so: np.ndarray
    bad: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray) -> "Judged":
        """Of (N, M + 6), a row for each picture: numbers, share, strength, two verdicts of each kind."""
        numbers, (share, strength, *said) = table[:, :-6].astype(float), table[:, -6:].astype(float).T
        return cls(numbers, share, strength, np.stack(said[:2], axis=1), np.stack(said[2:], axis=1) > 0)

    def measured(self, phrase: str) -> np.ndarray:
        """(N,) bool: what the evaluation says, which asks edits alone whether they have reached all of a part."""
        seen = held(self.numbers)[:, list(BY_PHRASE).index(phrase)]
        return seen & ~((self.share < MOST) & (self.strength > 0))

    def agreement(self, phrase: str) -> float | None:
        """Share of the pictures that look like photographs and that two judges agree about, in which the measure agrees;
        None where there are none."""
        verdict = self.so.mean(axis=1)
        sure = ((verdict >= SURE) | (verdict <= 1 - SURE)) & ~self.bad.any(axis=1)
        return mean(((verdict > 0.5) == self.measured(phrase))[sure].tolist())

    def row(self, phrase: str) -> dict[str, float | None]:
        """Of the table; None where no edit of the usual strength is among the pictures."""
        edits = self.strength == 1
        said = {"seen": self.so.mean(axis=1), "measured": self.measured(phrase), "bad": self.bad.mean(axis=1)}
        return {"pictures": len(self.so), "judges": float((self.so[:, 0] == self.so[:, 1]).mean()),
                "agreement": self.agreement(phrase), "edits": int(edits.sum()),
                **{name: mean(values[edits].tolist()) for name, values in said.items()}}


COLUMNS = {"pictures": ("pictures", ".0f"), "judges": ("judges agree", ".2f"), "agreement": ("measure agrees", ".2f"),
           "edits": ("edits", ".0f"), "seen": ("so by eye", ".2f"), "measured": ("so as measured", ".2f"),
           "bad": ("no photograph", ".2f")}


def main(argv: Sequence[str] | None = None) -> Path:
    """Make the sheets, or compare what was judged; returns the folder or the table."""
    config = parse_config(JudgedConfig, argv, __doc__)
    folder = run_folder(config.out, "--out")
    if not (folder / "numbers.npz").exists():
        make_sheets(folder, config.faces, config.seed)
        print(f"{folder}: judge every PHRASE/sheet_*.png into PHRASE/{JUDGES[0]} and {JUDGES[1]}, and run this again")
        return folder
    tables = {phrase: np.column_stack([measured, *verdicts(folder / phrase.replace(" ", "_"), len(measured))])
              for phrase, measured in load(folder / "numbers.npz").items()}
    save(folder / "judged.npz", tables)
    found = read_judged(folder / "judged.npz")
    table = markdown({phrase: judged.row(phrase) for phrase, judged in found.items()}, "prompt", COLUMNS)
    write_text(folder / "judged.md", table + "\n")
    print(table)
    return folder / "judged.md"


@torch.no_grad()
def make_sheets(folder: Path, faces: int, seed: int) -> None:
    """Writes the sheets of every phrase and `numbers.npz`: what was measured, in the order of the sheets."""
    keep_memory()
    editor, world, _ = load_run(SHIPPED_FACES, "cpu", False, None, World.preview)
    assert isinstance(world.truth, FacesTruth)
    random, z = np.random.default_rng(seed), sample_z(faces, world.generator.style_dim, seed)
    tiles: dict[str, list[Image.Image]] = {phrase: [] for phrase in PROMPTS}
    rows: dict[str, list[np.ndarray]] = {phrase: [] for phrase in PROMPTS}
    for one in tqdm(z.split(1), desc="faces"):
        face, source = world.truth.faces(one), editor.source(world.w_from_z(one))
        lacked = dict(zip(BY_PHRASE, lacking(face, world.truth.read(source.image, face))[:, 0], strict=True))
        for phrase in PROMPTS:
            lacks, text = bool(lacked[phrase]), world.clip.encode_text([phrase])
            place = editor.locate(source, text, threshold_for(COVERAGE))
            dose = editor.doses(source, text, place.mask)
            for strength in (0.0, *SHARES * lacks):
                # Few of many alike: faces that lack a phrase, and edits that are not the usual.
                if lacks and strength != 1 and random.random() * OTHERS < (OTHERS - 1 if strength == 0 else 1):
                    continue
                styles = editor.mapper(source.styles, text, STRENGTH * dose * strength)
                image = editor.apply(source, styles, place.mask, keep_features=False, what=text).image.clamp(-1, 1)
                tiles[phrase].append(tile(to_pixels(image)[0], face.part(phrase)[0].numpy()))
                rows[phrase].append(np.append(figures(world.truth, face, phrase, image), strength))
    tables = {}
    for phrase in PROMPTS:
        order = random.permutation(len(rows[phrase]))
        write_sheets(folder / phrase.replace(" ", "_"), [tiles[phrase][number] for number in order])
        tables[phrase] = np.stack(rows[phrase])[order]
    save(folder / "numbers.npz", tables)


def figures(truth: FacesTruth, face: GeneratedFaces, phrase: str, image: torch.Tensor) -> np.ndarray:
    """(M + 1,) of `Judged`: the numbers that a phrase asks for, and the share of its part that was reached."""
    numbers = truth.read(image, face).numbers[0]
    asked = Recording(zip(MEASURES, numbers, strict=True))
    RULES[phrase].score(asked)
    part = BY_PHRASE[phrase].part
    share = share_reached(phrase, part, face.shown[0], face.seen.numbers[0], to_pixels(image)[0]) if part in LARGE else 1.0
    return np.append(np.where([name in asked.names for name in MEASURES], numbers, np.nan), share)


class Recording(dict[str, np.ndarray]):
    """Figures by name, and which of them were asked for."""

    def __init__(self, figures: object):
        super().__init__(figures)       # type: ignore[call-overload]
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.names.add(name)
        return super().__getitem__(name)


def tile(pixels: np.ndarray, part: np.ndarray) -> Image.Image:
    """A picture and, beside it, what is round a small part, enlarged."""
    picture = Image.fromarray(pixels)
    shown = [picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)]
    if 0 < part.mean() < ZOOMED:
        rows, columns = np.nonzero(part)
        scale, half = len(pixels) / len(part), 0.8 * np.ptp(columns)
        center = np.array([np.ptp(columns) / 2 + columns.min(), np.ptp(rows) / 2 + rows.min()])
        shown.append(picture.crop(tuple(np.round(scale * np.concatenate([center - half, center + half])).astype(int)))
                     .resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return Image.fromarray(np.concatenate([np.asarray(one) for one in shown], axis=1))


def write_sheets(folder: Path, tiles: Sequence[Image.Image], down: int = DOWN) -> None:
    """Numbered tiles of one height, so many below each other on a sheet."""
    run_folder(folder, "--out")
    width, height = max(one.width for one in tiles), tiles[0].height
    for first in range(0, len(tiles), ACROSS * down):
        sheet = Image.new("RGB", (ACROSS * width, down * height))
        draw = ImageDraw.Draw(sheet)
        for place, one in enumerate(tiles[first:first + ACROSS * down]):
            corner = (place % ACROSS * width, place // ACROSS * height)
            sheet.paste(one, corner)
            draw.text((corner[0] + 4, corner[1] + 2), str(first + place), "yellow", font_size=22, stroke_width=3,
                      stroke_fill="black")
        write_picture(folder / f"sheet_{first // (ACROSS * down):02d}.png", sheet)


def verdicts(folder: Path, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) `so` and `bad` of two judges.

    Raises:
        UserError: a file is missing, or says something else than two letters for every number.
    """
    words = []
    for file in (folder / name for name in JUDGES):
        try:
            said = json.loads(file.read_text())
            words.append([said[str(number)] for number in range(pictures)])
            assert len(said) == pictures and all(len(word) == 2 and word[0] in VERDICTS and word[1] in "gb"
                                                 for word in words[-1])
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            raise UserError(f'{file} should be there and say {{"0": "yg", "1": "nb", ...}}: y, n or u and g or b for each '
                            f"of the {pictures} numbers on the sheets beside it; judge them and run this again") from None
    return (np.array([[VERDICTS[word[0]] for word in one] for one in words]).T,
            np.array([[word[1] == "b" for word in one] for one in words]).T)


def save(path: Path, tables: Mapping[str, np.ndarray]) -> None:
    """Tables by phrase, in half precision."""
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, **{name: table.astype(np.float16) for name, table in tables.items()})  # type: ignore[arg-type]

    write_atomically(path, write)


def load(path: Path) -> dict[str, np.ndarray]:
    """What `save` wrote.

    Raises:
        UserError: it is something else, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            tables = dict(file)
        for phrase, table in tables.items():
            if phrase not in BY_PHRASE or table.ndim != 2 or table.shape[1] not in WIDTHS:
                raise ValueError(f"it has a table {phrase!r} of shape {table.shape}")
        return tables
    except (OSError, ValueError, EOFError, TypeError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not what this command wrote ({error}); remove it, and make the sheets again") from None


def read_judged(path: Path) -> dict[str, Judged]:
    """By phrase, what OUT/judged.npz says."""
    return {phrase: Judged.of(table) for phrase, table in load(path).items()}


if __name__ == "__main__":
    exit_with_message(main)
