"""Drawn photos: a drawn face, turned and scaled in a larger picture, whose landmarks are known exactly.

    python -m attention.worlds.drawn.photos --seed 5 --out photo.png    # and photo.json: eyes, nose, corners of the mouth
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from attention.config import Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.files.disk import refuse_pictures_of_others, write_picture, write_text
from attention.inversion.frame import Frame
from attention.worlds.drawn.faces import FaceParams, draw_faces, landmarks

SIDE = 384          # px of the drawing, before it is scaled
POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
FRAME = Frame(np.array([260.0, 230.0]), np.array([141.0, 51.0]))
SIZE = (520, 480)
CLOUDS = 6          # across and down


class DrawnPhoto(NamedTuple):
    """image RGB; landmarks (5, 2) x, y in pixels; inside (H, W) bool, where the drawing covers the background."""

    image: Image.Image
    landmarks: np.ndarray
    inside: np.ndarray


def draw_photo(params: FaceParams, frame: Frame = FRAME, size: tuple[int, int] = SIZE) -> DrawnPhoto:
    """One drawn face in a square of a picture (width, height) of coloured clouds."""
    drawing = draw_faces(params, SIDE).images[0]
    colours = np.random.default_rng(0).integers(256, size=(CLOUDS, CLOUDS, 3), dtype=np.uint8)
    background = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC))
    empty, black, whole = Image.new("RGB", size), np.zeros_like(drawing), np.ones(drawing.shape[:2])
    pixels, covered = (np.asarray(frame.put_back(empty, black, part, whole)) for part in (drawing, black + np.uint8(255)))
    inside = covered[..., 0] == 255
    image = Image.fromarray(np.where(inside[..., None], pixels, background))
    points = np.concatenate([landmarks(params)[name] for name in POINTS])                   # (5, 2) in [-1, 1]
    return DrawnPhoto(image, frame.center + points[:, :1] * frame.right + points[:, 1:] * frame.down, inside)


class PhotoConfig(Config):
    """Options."""

    seed: int = option(5, "of the face", min=0)
    out: Path = option(Path("photo.png"), "PNG to write; the landmarks go beside it")
    overwrite: bool = option(False, "replace what has these names, whoever wrote it")


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw and write; returns what --out says."""
    config = parse_config(PhotoConfig, argv, __doc__)
    if config.out.suffix.lower() != ".png":
        raise UserError(f"--out is {config.out}, expected a name that ends in .png")
    points = config.out.with_suffix(".json")
    # Points beside a picture of ours are ours.
    refuse_pictures_of_others([config.out] if config.out.exists() else [points], config.overwrite)
    photo = draw_photo(FaceParams.sample(1, seed=config.seed))
    write_picture(config.out, photo.image)
    write_text(points, json.dumps(photo.landmarks.round(2).tolist()))
    print(f"wrote {config.out}, {points}")
    return config.out


if __name__ == "__main__":
    exit_with_message(main)
