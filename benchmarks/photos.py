"""How well photos come in: faces found, framed, inverted by the encoder, refined, edited; on photos whose truth is known.

    python -m benchmarks.photos                          # 200 photos of generated faces, 10 of them refined and edited
    python -m benchmarks.photos --photos 20 --refined 3 --out runs/few

Generated faces at truncation 1, unlike any that the encoder learned from, are put into larger pictures, turned, scaled,
darkened, without colour or as JPEG of quality 30; so their frame is known. Each is then opened as a user's photo is. What
is refined is edited by every prompt that it plainly lacks: success is measured on the photo that is given back, beside that
of photos of the same scene with the edited generated face. Writes OUT/photos.json, OUT/photos.md and OUT/photos.png: of
some, the photo's crop, the encoder's and the refined picture. Needs the extras photos and truth, and:
python -m attention.download faces mesh
"""

import io
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attention.config import Config, option, parse_config
from attention.editing.detector import load_detector
from attention.editing.edited import Edited
from attention.editing.photo import find_landmarks
from attention.editing.placed import Placed
from attention.editing.recipes import pack
from attention.editing.session import Editor, load_editor
from attention.errors import UserError, exit_with_message
from attention.evaluation.metrics import lacking
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder, write_picture, write_text
from attention.generator import sample_z
from attention.images import area_resize, to_image, to_pixels
from attention.inversion.frame import Frame
from attention.inversion.identity import Recogniser
from attention.worlds.faces.truth import FacesTruth
from attention.worlds.world import World

SIZE = (1200, 900)          # of a photo
HALVES = (110, 330)         # px, of half the square's side
MOST_TURNED = 20            # degrees, either way
KINDS = ("plain", "dark", "grey", "JPEG")
SHOWN = 6                   # rows of the sheet
CLOUDS = 7                  # across and down, of the colours round a face


class PhotosConfig(Config):
    """Options."""

    photos: int = option(200, "of generated faces", min=1, max=10_000)
    refined: int = option(10, "of them are refined too", min=0, max=10_000)
    steps: int = option(120, "of refinement", min=1, max=10_000)
    seed: int = option(606, "of faces and photos", min=0, max=2**31)
    out: Path = option(Path("runs/photos"), "folder to write to")


def main(argv: Sequence[str] | None = None) -> Path:
    """Make the photos, open them, measure and write; returns the JSON file."""
    config = parse_config(PhotosConfig, argv, __doc__)
    folder, recogniser, editor = run_folder(config.out, "--out"), Recogniser(), load_editor("faces")
    world = editor.world
    if config.refined:
        editor.early.world.truth                        # noqa: B018  (what is missing is told before the work)
    random = np.random.default_rng(config.seed)
    found: list[dict[str, float]] = []
    shown: list[np.ndarray] = []
    for number in tqdm(range(config.photos), desc="photos"):
        scene, w = Scene.draw(random), world.generator.mapping(sample_z(1, world.generator.style_dim, config.seed + number))
        photo = scene.photo(to_pixels(world.picture(w))[0])
        try:
            landmarks = find_landmarks(photo, load_detector(), 0)
            own = world.frame(landmarks)
        except UserError:
            found.append({"found": 0.0})
            continue
        steps = config.steps if sum("refined_psnr" in row for row in found) < config.refined else 0
        row, pictures, inverted = opened(world, recogniser, photo, own, landmarks, steps)
        found.append({"found": 1.0, "corner_error": own.apart(scene.frame), **row})
        if steps:
            found[-1] |= edits(editor, scene, w, photo, own, inverted)
        if steps and len(shown) < SHOWN:
            shown.append(np.concatenate(pictures, axis=1))
    measured = figures(found)
    report = {"photos": config.photos, "steps": config.steps, "threads": torch.get_num_threads(), "figures": measured}
    write_text(folder / "photos.json", json.dumps({**report, "rows": found}, indent=1))
    table = markdown(measured, f"{config.photos} photos", {key: (key, ".3g") for key in ("mean", "median", "95 %",
                                                                                                  "photos")})
    write_text(folder / "photos.md", table + "\n")
    if shown:
        write_picture(folder / "photos.png", Image.fromarray(np.concatenate(shown)))
    print(table)
    return folder / "photos.json"


@dataclass(frozen=True)
class Scene:
    """What is round a face in a photo, and what becomes of both.

    Attributes:
        frame: the square in which the face is.
        around: (H, W, 3) uint8.
        kind: of KINDS.
    """

    frame: Frame
    around: np.ndarray
    kind: str

    @classmethod
    def draw(cls, random: np.random.Generator) -> "Scene":
        half, angle = random.uniform(*HALVES), np.deg2rad(random.uniform(-MOST_TURNED, MOST_TURNED))
        center = np.array([random.uniform(1.3 * half, size - 1.3 * half) for size in SIZE])
        clouds = Image.fromarray(random.integers(256, size=(CLOUDS, CLOUDS, 3), dtype=np.uint8))
        return cls(Frame(center, half * np.array([np.cos(angle), np.sin(angle)])),
                   np.asarray(clouds.resize(SIZE, Image.Resampling.BICUBIC)), str(random.choice(KINDS)))

    def photo(self, face: np.ndarray) -> Image.Image:
        """The photo with a face (S, S, 3) uint8 in it."""
        whole, black, empty = np.ones(face.shape[:2]), np.zeros_like(face), Image.new("RGB", SIZE)
        white = black + np.uint8(255)
        put, covered = (np.asarray(self.frame.put_back(empty, black, part, whole)) for part in (face, white))
        return spoiled(Image.fromarray(np.where(covered == 255, put, self.around)), self.kind)


def spoiled(photo: Image.Image, kind: str) -> Image.Image:
    """A photo as people have them."""
    if kind == "dark":
        return photo.point(lambda level: level * 0.4)
    if kind == "grey":
        return photo.convert("L").convert("RGB")
    if kind == "JPEG":
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=30)
        return Image.open(file).convert("RGB")
    return photo


def opened(world: World, recogniser: Recogniser, photo: Image.Image, frame: Frame, landmarks: np.ndarray,
           steps: int) -> tuple[dict[str, float], list[np.ndarray], Tensor]:
    """Figures of one inversion, its pictures (what the square shows, the encoder's, the refined one), and the latent."""
    begun = time.perf_counter()
    crop = to_image(frame.crop(photo, world.generator.resolution)[None])
    found = world.invert(crop, steps)
    seconds = time.perf_counter() - begun
    pictures = [to_pixels(picture)[0] for picture in (area_resize(crop, found.before.shape[-1]), found.before, found.after)]
    distances = recogniser.distances(pictures[0], pictures[1:], frame.within(landmarks, len(pictures[0])))
    figures = {"encoder_psnr": found.psnr_before, "encoder_distance": distances[0]}
    if steps:
        figures |= {"refined_psnr": found.psnr_after, "refined_distance": distances[1], "refined_seconds": seconds}
    return figures, pictures, found.w


def edits(editor: Editor, scene: Scene, w: Tensor, photo: Image.Image, frame: Frame, inverted: Tensor) -> dict[str, float]:
    """Success of every prompt that is plainly false of the photo, by pictures of 256 px: of its own edits, and of a photo
    of the same scene with the generated face edited, which is the best that can be: a dark photo's hair is never blonde.

    Args:
        w, inverted: the latent that the face was made of, and that which was found.
    """
    early = editor.early
    generated = early.open_latent(w)
    own = editable(early, photo, frame, inverted)
    truth, side = early.world.truth, early.world.generator.resolution
    assert isinstance(truth, FacesTruth)
    faces = truth.photos(framed(photo, frame, side), inverted)
    lacked, success = lacking(faces, faces.seen)[:, 0], []
    for row in np.flatnonzero(lacked):
        prompt = early.world.prompts[row]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)                        # backgrounds end where the square does
            photos = own.edit(prompt).image, scene.photo(np.asarray(generated.edit(prompt).image))
        success.append([truth.read(framed(edited, frame, side), faces).holds()[row, 0] for edited in photos])
    return dict(zip(("photo_success", "generated_success"), np.mean(success, axis=0).tolist(), strict=True))


def editable(editor: Editor, photo: Image.Image, frame: Frame, inverted: Tensor) -> Edited:
    """A photo whose latent was found, as an editor opens it."""
    return Edited(editor, {"w": pack(inverted)}, editor.region_editor.source_of_photo(inverted), photo=Placed(photo, frame))


def framed(photo: Image.Image, frame: Frame, side: int) -> Tensor:
    """(1, 3, side, side) in [-1, 1]: what the square shows."""
    return to_image(frame.crop(photo, side)[None])


def figures(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, median and 95th percentile of every figure over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: np.array([row[name] for row in rows if name in row]) for name in names}
    return {name: {"mean": float(values.mean()), "median": float(np.median(values)),
                   "95 %": float(np.quantile(values, 0.95)), "photos": len(values)} for name, values in found.items()}


if __name__ == "__main__":
    exit_with_message(main)
