"""Faces in a photo: dlib's frontal detector and the 68 points by which FFHQ was aligned, from packages alone."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps

from attention.errors import UserError
from attention.inversion.dlib_models import DETECTOR, dlib_model
from attention.inversion.frame import Frame, ffhq_frame

Detector = Callable[[np.ndarray], list[np.ndarray]]

PURPOSE = "finding a face in a photo"
OTHERWISE = ", or give the landmarks in a file, or say that the picture is framed already (aligned)"
SMALL_SIDE = 900            # px below which a photo is searched enlarged twice, for dlib sees no face under 80 px
DARK = 100                  # level that only a hundredth of a photo's pixels are above: it is brightened first
CLEAR = 0.2                 # dlib's score, below which something is no face beside one that is above
SURE = 0.9                  # score of an upright face; with less, its points may be wrong, and the photo is turned
TURNS = (-15, 15, -30, 30, 60, -60, 90, -90, 180)        # by these degrees
# Once a face is found, its points are looked for again in these upright views of FFHQ's square round it: degrees, scale.
VIEWS, VIEW_SIDE = ((0, 1.0), (-8, 1.0), (8, 1.0), (0, 0.9), (0, 1.1)), 400
FACE_IN_VIEW = (0.215, 0.305, 0.79, 0.875)      # left, top, right, bottom of dlib's box in it, as shares; mean of 60 faces


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
        best, found, light = -1.0, [], np.asarray(photo)
        for degrees in (0, *TURNS):
            score, faces = look(turned(photo, degrees))
            if score > best:
                best, found = score, [turned_back(points, degrees, photo.size) for points in faces]
            if best >= SURE:
                break
        return [settled(predictor, light, points) for points in found]

    return detect


def settled(predictor: Callable, pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (68, 2) of a face, as they are found in upright views of it: the mean of several, which errs less than what
    was found in a face turned, small or off the middle of its box.

    Args:
        predictor: dlib's: a picture and a box -> a shape.
    """
    import dlib  # noqa: PLC0415  (an extra)

    try:
        square = ffhq_frame(points)
    except UserError:                                       # seen from the side: nothing frames it
        return points
    photo, box, found = Image.fromarray(pixels), dlib.rectangle(*(round(share * VIEW_SIDE) for share in FACE_IN_VIEW)), []
    for degrees, scale in VIEWS:
        angle = np.deg2rad(degrees)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        view = Frame(square.center, scale * turn @ square.right)
        shape = predictor(view.crop(photo, VIEW_SIDE), box)
        found.append(view.in_photo(np.array([(point.x, point.y) for point in shape.parts()], float), VIEW_SIDE))
    return np.mean(found, axis=0)


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
