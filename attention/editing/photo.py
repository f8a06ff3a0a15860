"""Photos: read anything safely, cut a face out as its generator frames faces, and put an edit back where it belongs."""

import hashlib
import json
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageOps

from attention.errors import UserError
from attention.extras import missing_extra
from attention.files.pictures import open_picture
from attention.files.published import PUBLISHED, WEIGHTS, download_command
from attention.files.reading import read_text, readable, shown
from attention.files.torch_files import read_torch_file
from attention.inversion.frame import checked_landmarks

MEGAPIXELS = 100            # a larger picture is refused: it would need gigabytes
SMALLEST_SIDE = 16
LANDMARK_BYTES = 100_000    # of a file of at most 68 points
ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")       # other formats keep previews and depth maps as further frames
DETECTION_SIDE = 1600       # longer sides are shrunk to this before a face is searched, which else takes minutes
DETECTOR_FILES = FAN, S3FD = "2DFAN4-11f355bf06.pth.tar", "s3fd-619a316812.pth"     # landmarks, faces
OTHERWISE = ", or give the landmarks in a file, or say that the picture is framed already (aligned)"


def read_photo(source: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """Any picture as upright RGB: EXIF rotation applied, transparency on white, first frame of several.

    Args:
        source: a path, a picture, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8.
    Raises:
        UserError: not a whole picture, larger than MEGAPIXELS, or smaller than SMALLEST_SIDE.
    """
    name = "the picture" if isinstance(source, Image.Image | np.ndarray) else str(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,), (4,)):
            raise UserError(f"the picture is an array of {source.dtype} and shape {source.shape}, expected uint8 and "
                            "(H, W), (H, W, 3) or (H, W, 4)")
        source = Image.fromarray(source)
    try:
        picture = source if isinstance(source, Image.Image) else _opened(Path(source))
        width, height = picture.size
        if width * height > MEGAPIXELS * 1e6:
            raise UserError(f"{name} has {width * height / 1e6:.2f} megapixels, but at most {MEGAPIXELS} are read; make it "
                            "smaller first")
        if min(width, height) < SMALLEST_SIDE:
            raise UserError(f"{name} is {width} x {height} pixels, expected at least {SMALLEST_SIDE} on each side")
        if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format in ANIMATED:
            warnings.warn(f"{name} has {frames} frames, and the first is taken", stacklevel=2)
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture))
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, KeyError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be read as a picture ({error}); give a JPEG, PNG or WebP file") from error


def _opened(path: Path) -> Image.Image:
    readable(path, "a picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)      # the size is checked before pixels are read
        return open_picture(path)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":                  # 16 bits of grey; convert() would clip them
        values = np.asarray(picture, np.float64)
        picture = Image.fromarray((values / (257 if values.max() > 255 else 1)).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def read_landmarks(path: str | Path) -> np.ndarray:
    """(68, 2) or (5, 2) points x, y in pixels from a JSON or text file.

    Raises:
        UserError: no such file, or it holds something else.
    """
    path = Path(path)
    text = read_text(path, "landmarks", LANDMARK_BYTES)
    try:
        return checked_landmarks(json.loads(text) if path.suffix.lower() == ".json" else
                                 [line.replace(",", " ").split() for line in text.splitlines() if line.strip()])
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as landmarks ({shown(error)}); give x and y of 68 or 5 points, one a "
                        "line or as JSON") from error


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
