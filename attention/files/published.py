"""The published files, which are not shipped: where they go, and the error of a run that lacks one.

Names, sources, licences, sizes and hashes are in published.json; `python -m attention.download` gets them.
"""

import json
import os
from pathlib import Path

from attention.errors import UserError

E4E_FILE, RECOGNISER_FILE, VGG_FILE = "e4e_ffhq_encode.pt", "model_ir_se50.pth", "vgg16-397923af.pth"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "pretrained_models/drawn"          # made by this project, part of the repository
WEIGHTS = Path(os.environ.get("WHERE2EDIT_WEIGHTS", ROOT / "pretrained_models"))    # published files; may lie elsewhere
PUBLISHED: dict[str, dict] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
SETS = {"ffhq": ("stylegan2-ffhq-config-f.pt", "ViT-B-32.pt", VGG_FILE)}          # names of several files at once


def download_command(path: Path) -> str:
    """The command line that gets the published file of this name into this folder."""
    elsewhere = "" if path.parent.resolve() == WEIGHTS else f" --folder {path.parent}"
    return f"python -m attention.download {path.name}{elsewhere}"


def missing(path: Path) -> UserError:
    """The error of a run that lacks `path`: what it is for and the command that gets it, if it is a published file."""
    path = Path(path)
    if path.name not in PUBLISHED:
        return UserError(f"{path} is missing and has no published file's name; check the path, or make the file again")
    return UserError(f"{path} is missing ({PUBLISHED[path.name]['for']}); get it with: {download_command(path)}")
