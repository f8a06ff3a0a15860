"""Photos: read anything safely, cut a face out as its generator frames faces, and put an edit back where it belongs."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from attention.editing.colours import to_rgb
from attention.errors import UserError
from attention.files.pictures import decoding, read_picture
from attention.files.reading import parse_json, read_text, shown
from attention.inversion.frame import checked_landmarks

SMALLEST_SIDE = 16
LANDMARK_BYTES = 100_000    # of a file of at most 68 points
DETECTION_SIDE = 1600       # longer sides are shrunk to this before a face is searched, which else takes minutes


def read_photo(source: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """Any picture as upright RGB: EXIF rotation applied, transparency on white, first frame of several.

    Args:
        source: a path, a picture, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8.
    Returns:
        The file's own numbers where it is RGB; `info` holds "icc_profile", what they mean if that is not sRGB (see
        `colours`), and "path", where it was read, if that was a file.
    Raises:
        UserError: not a whole picture, larger than MEGAPIXELS, or smaller than SMALLEST_SIDE.
    """
    path = source if isinstance(source, str | Path) else None
    name = "the picture" if path is None else shown(path)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,), (4,)):
            raise UserError(f"the picture is an array of {source.dtype} and shape {source.shape}, expected uint8 and "
                            "(H, W), (H, W, 3) or (H, W, 4)")
        source = Image.fromarray(source)
    if not isinstance(source, str | Path | Image.Image):
        raise UserError(f"the picture is {shown(repr(source), 40)}, expected a path, a picture or an array of uint8")
    picture = read_picture(source)
    if min(picture.size) < SMALLEST_SIDE:
        raise UserError(f"{name} is {picture.width} x {picture.height} pixels, expected at least {SMALLEST_SIDE} on each "
                        "side")
    with decoding(name):
        photo = to_rgb(_upright(picture, name), name)
    if path is not None:
        photo.info["path"] = Path(path)
    return photo


def _upright(picture: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception as error:          # whatever a broken EXIF record makes of itself; the pixels are whole
        warnings.warn(f"{name} has EXIF data that cannot be read ({shown(error)}), so it is taken as it lies", stacklevel=3)
        return picture


def read_landmarks(path: str | Path) -> np.ndarray:
    """(68, 2) or (5, 2) points x, y in pixels from a JSON or text file.

    Raises:
        UserError: no such file, or it holds something else.
    """
    what = "x and y of 68 or 5 points, one a line or as JSON"
    text, name = read_text(path, what, LANDMARK_BYTES), shown(path)
    if Path(path).suffix.lower() == ".json":
        points = parse_json(text, f"{name} cannot be read as landmarks", what)
    else:
        points = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    try:
        return checked_landmarks(points)
    except UserError as error:
        raise UserError(f"{name} cannot be read as landmarks ({error}); give {what}") from None


def all_landmarks(photo: Image.Image, detect: Callable[[np.ndarray], list | None]) -> list[np.ndarray]:
    """(68, 2) landmarks of every face of a photo, from the largest to the smallest; a large photo is searched at
    DETECTION_SIDE.

    Args:
        detect: (H, W, 3) uint8 -> a list of (68, 2) or None, as `load_detector` gives it.
    Raises:
        UserError: no face.
    """
    shrink = max(1.0, max(photo.size) / DETECTION_SIDE)
    small = photo.resize([max(1, round(side / shrink)) for side in photo.size], Image.Resampling.BOX)
    scale = np.array(photo.size) / small.size
    found = sorted((np.asarray(points) * scale for points in detect(np.asarray(small)) or []),
                   key=lambda points: -float(np.prod(np.ptp(points, axis=0))))
    if not found:
        name = shown(photo.info["path"]) if "path" in photo.info else "the photo"
        raise UserError(f"no face was found in {name}; give a larger or more frontal one, or its landmarks in a file")
    return found


def find_landmarks(photo: Image.Image, detect: Callable[[np.ndarray], list | None], face: int | None = None) -> np.ndarray:
    """(68, 2) landmarks of one face of a photo, see `all_landmarks`.

    Args:
        face: which, counted from 0, from the largest to the smallest; None takes the largest and says if there are more.
    Raises:
        UserError: no face, or not so many.
    """
    found = all_landmarks(photo, detect)
    if face is None and len(found) > 1:
        warnings.warn(f"{len(found)} faces were found, and the largest is taken; choose another by its number",
                      stacklevel=2)
    if not 0 <= (face or 0) < len(found):
        others = f"{len(found)} were found; choose 0 to {len(found) - 1}" if len(found) > 1 else "one was found; choose 0"
        raise UserError(f"face {face} was asked for, but {others}")
    return found[face or 0]
