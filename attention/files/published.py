"""The weights: those that are shipped, the published files that are not, and the error of a run that lacks one.

Names, sources, licences, sizes and hashes are in published.json; `python -m attention.download` gets them.
"""

import json
import os
from importlib.resources import files
from pathlib import Path

from platformdirs import user_cache_path

from attention.errors import UserError
from attention.files.reading import readable

E4E_FILE, RECOGNISER_FILE, VGG_FILE = "e4e_ffhq_encode.pt", "model_ir_se50.pth", "vgg16-397923af.pth"
INCEPTION_FILE, MOBILE_FILE = "weights-inception-2015-12-05-6726825d.pth", "mobilestylegan-ffhq.safetensors"
MESH_FILE = "mediapipe-face-mesh.zip"
_PACKAGE = Path(str(files("attention")))
ROOT = _PACKAGE.resolve().parent                    # of the checkout; of an installed copy, the folder of all packages
INSTALLED = (_PACKAGE / "shipped").is_dir()         # only a wheel brings the shipped weights inside of the package
# Of a checkout, pretrained_models is the home of all weights. An installed copy may lie where nothing can be written.
PRETRAINED = user_cache_path("where2edit") if INSTALLED else ROOT / "pretrained_models"
SHIPPED = _PACKAGE / "shipped" if INSTALLED else PRETRAINED / "drawn"               # made by this project
SHIPPED_FACES = _PACKAGE / "shipped_faces" if INSTALLED else PRETRAINED / "faces"
WEIGHTS = Path(os.environ.get("WHERE2EDIT_WEIGHTS") or PRETRAINED)                  # published files; may lie elsewhere
PUBLISHED: dict[str, dict] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
SETS = {"ffhq": ("stylegan2-ffhq-config-f.pt", "ViT-B-32.pt", VGG_FILE), "faces": (MOBILE_FILE,),
        "mesh": (MESH_FILE,)}                           # names of several


def download_command(path: Path) -> str:
    """The command line that gets the published file of this name into this folder."""
    elsewhere = "" if path.parent.resolve() == WEIGHTS.resolve() else f" --folder {path.parent}"
    return f"python -m attention.download {path.name}{elsewhere}"


def missing(path: Path) -> UserError:
    """The error of a run that lacks `path`: what it is for and the command that gets it, if it is a published file."""
    path = Path(path)
    if path.name not in PUBLISHED:
        return UserError(f"{path} is missing and has no published file's name; check the path, or make the file again")
    return UserError(f"{path} is missing ({PUBLISHED[path.name]['for']}); get it with: {download_command(path)}")


def found(path: Path | str, what: str) -> Path:
    """A path that can be opened; see `readable`. One that is missing is told with the command that gets it.

    Raises:
        UserError: it is missing, no regular file, or cannot be read.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        raise missing(Path(path)) from None
    except (OSError, ValueError):
        pass                                            # `readable` tells it
    return readable(path, what)
