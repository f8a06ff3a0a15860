"""Photos: read anything safely, cut a face out as its generator frames faces, and put an edit back where it belongs."""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageOps

from attention.editing.colours import to_rgb
from attention.errors import UserError
from attention.extras import missing_extra
from attention.files.pictures import decoding, read_picture
from attention.files.published import PUBLISHED, WEIGHTS, download_command
from attention.files.reading import parse_json, read_text, shown
from attention.files.torch_files import read_torch_file
from attention.inversion.frame import checked_landmarks

SMALLEST_SIDE = 16
LANDMARK_BYTES = 100_000    # of a file of at most 68 points
DETECTION_SIDE = 1600       # longer sides are shrunk to this before a face is searched, which else takes minutes
S3FD = "s3fd-619a316812.pth"            # finds faces
DETECTOR_FILES = ("2DFAN4-11f355bf06.pth.tar", S3FD)        # the first finds landmarks
OTHERWISE = ", or give the landmarks in a file, or say that the picture is framed already (aligned)"


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


def find_landmarks(photo: Image.Image, detect: Callable[[np.ndarray], list | None], face: int | None = None) -> np.ndarray:
    """(68, 2) landmarks of one face of a photo; a large photo is searched at DETECTION_SIDE.

    Args:
        detect: (H, W, 3) uint8 -> a list of (68, 2) or None, as load_detector gives it.
        face: which, counted from 0, from the largest to the smallest; None takes the largest and says if there are more.
    Raises:
        UserError: no face, or not so many.
    """
    shrink = max(1.0, max(photo.size) / DETECTION_SIDE)
    small = photo.resize([max(1, round(side / shrink)) for side in photo.size], Image.Resampling.BOX)
    scale = np.array(photo.size) / small.size
    found = sorted((np.asarray(points) * scale for points in detect(np.asarray(small)) or []),
                   key=lambda points: -float(np.prod(np.ptp(points, axis=0))))
    if not found:
        raise UserError("no face was found in the photo; give a larger or more frontal one, or its landmarks in a file")
    if face is None and len(found) > 1:
        warnings.warn(f"{len(found)} faces were found, and the largest is taken; choose another by its number",
                      stacklevel=2)
    if not 0 <= (face or 0) < len(found):
        raise UserError(f"face {face} was asked for, but {len(found)} were found; choose 0 to {len(found) - 1}")
    return found[face or 0]


@lru_cache(maxsize=2)
def load_detector(device: str = "cpu") -> Callable[[np.ndarray], list | None]:
    """face-alignment's detector, as `find_landmarks` takes it, from the published files in WEIGHTS; nothing is downloaded.

    Raises:
        UserError: the package is not installed or too old; its weights are missing or other files than the published ones.
    """
    try:
        from face_alignment import FaceAlignment, LandmarksType  # noqa: PLC0415  (an optional package)
    except ImportError as error:
        raise missing_extra("photos", "finding a face in a photo", OTHERWISE) from error
    if absent := [name for name in DETECTOR_FILES if not (WEIGHTS / name).is_file()]:
        raise UserError(f"finding a face in a photo needs {' and '.join(absent)}, missing in {WEIGHTS}; download with: "
                        f"python -m attention.download {' '.join(absent)}{OTHERWISE}")
    files = [_verified(WEIGHTS / name) for name in DETECTOR_FILES]
    with _torch_hub_of(files):
        try:                    # given its path, it reads the detector's file as tensors only; compiled, it reads a pickle
            found = FaceAlignment(LandmarksType.TWO_D, device=device, compile=False,
                                  face_detector_kwargs={"path_to_detector": str(WEIGHTS / S3FD)})
        except TypeError as error:
            raise UserError(f"the installed face-alignment is another version ({error}), expected 1.5 or newer; get it "
                            "with: pip install -U face-alignment") from error

    def detect(pixels: np.ndarray) -> list | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                     # it warns where find_landmarks refuses
            return found.get_landmarks_from_image(pixels)

    return detect


def _verified(path: Path) -> Path:
    """A published file, once its hash is right and it holds tensors only: read again in any way, it runs no code.

    Raises:
        UserError: it is another file.
    """
    digest, expected = hashlib.sha256(path.read_bytes()).hexdigest(), PUBLISHED[path.name]["sha256_prefix"]
    if not digest.startswith(expected):
        raise UserError(f"{path} is not the published file: its SHA-256 is {digest[:16]}..., but one that begins with "
                        f"{expected} was expected; delete it and run: {download_command(path)}")
    read_torch_file(path)
    return path


@contextmanager
def _torch_hub_of(files: list[Path]) -> Iterator[None]:
    """A torch hub that holds these files, in which packages then find what they otherwise would download."""
    before = torch.hub.get_dir()
    with TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        for file in files:
            (checkpoints / file.name).symlink_to(file.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
