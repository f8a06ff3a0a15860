"""Faces in a photo: dlib's frontal detector and the 68 points by which FFHQ was aligned, from packages alone."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps

from attention.inversion.dlib_models import DETECTOR, dlib_model

Detector = Callable[[np.ndarray], list[np.ndarray]]

PURPOSE = "finding a face in a photo"
OTHERWISE = ", or give the landmarks in a file, or say that the picture is framed already (aligned)"
SMALL_SIDE = 900            # px below which a photo is searched enlarged twice, for dlib sees no face under 80 px
DARK = 100                  # level that only a hundredth of a photo's pixels are above: it is brightened first
CLEAR = 0.2                 # dlib's score, below which something is no face beside one that is above
SURE = 0.9                  # score of an upright face; with less, its points may be wrong, and the photo is turned
TURNS = (-30, 30, 60, -60, 90, -90, 180)        # by these degrees


@lru_cache(maxsize=1)
def load_detector() -> Detector:
    """What finds the faces in a picture (H, W, 3) uint8: a list of (68, 2) points x, y in its pixels.

    Raises:
        UserError: see `dlib_model`.
    """
    predictor = dlib_model("shape_predictor", DETECTOR, PURPOSE, OTHERWISE)
    import dlib  # noqa: PLC0415  (an extra)

    search = dlib.get_frontal_face_detector()

    def look(photo: Image.Image) -> tuple[float, list[np.ndarray]]:
        pixels = np.asarray(photo)
        boxes, scores, _ = search.run(pixels, int(max(photo.size) < SMALL_SIDE), 0.0)
        best = max(scores, default=-1.0)
        shapes = [predictor(pixels, box) for box, score in zip(boxes, scores, strict=True) if score >= min(CLEAR, best)]
        return best, [np.array([(point.x, point.y) for point in shape.parts()], float) for shape in shapes]

    def detect(pixels: np.ndarray) -> list[np.ndarray]:
        photo = Image.fromarray(pixels)
        if np.percentile(pixels, 99) < DARK:
            photo = ImageOps.autocontrast(photo, cutoff=1)
        best, found = -1.0, []
        for degrees in (0, *TURNS):
            score, faces = look(turned(photo, degrees))
            if score > best:
                best, found = score, [turned_back(points, degrees, photo.size) for points in faces]
            if best >= SURE:
                break
        return found

    return detect


def turned(photo: Image.Image, degrees: float) -> Image.Image:
    """The photo turned counterclockwise about its middle, whole."""
    return photo if degrees == 0 else photo.rotate(degrees, Image.Resampling.BILINEAR, expand=True)


def turned_back(points: np.ndarray, degrees: float, size: tuple[int, int]) -> np.ndarray:
    """Points (N, 2) of `turned` in the photo of this size before."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    width, height = size
    middle = turned(Image.new("1", size), degrees).size
    x, y = (points - np.array(middle) / 2).T
    return np.stack([cosine * x - sine * y + width / 2, sine * x + cosine * y + height / 2], axis=1)
