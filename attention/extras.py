"""Packages that only some commands need, and what a user is told who lacks them."""

from importlib.util import find_spec

from attention.errors import UserError
from attention.files.published import INSTALLED, ROOT

# Extra of pyproject.toml -> the modules that it brings and we import.
EXTRAS = {
    "demo": ("gradio",),
    "photos": ("dlib", "face_recognition_models"),
    "training": ("tensorboard", "matplotlib", "sklearn"),
    "metrics": ("torchmetrics", "torch_fidelity", "matplotlib"),
    "truth": ("ai_edge_litert", "skimage", "dlib", "face_recognition_models"),
    "download": ("gdown", "pooch", "requests"),
}


def need(extra: str, purpose: str) -> None:
    """Refuse to begin what would stop half-way for want of a package; imports none of them.

    Args:
        extra: a key of EXTRAS.
        purpose: what needs it, in words.
    Raises:
        UserError: a module is not there.
    """
    if any(find_spec(module) is None for module in EXTRAS[extra]):
        raise missing_extra(extra, purpose)


def missing_extra(extra: str, purpose: str, otherwise: str = "") -> UserError:
    """The error of a command that lacks an extra: what is missing and the command that gets it."""
    absent = " and ".join(module for module in EXTRAS[extra] if find_spec(module) is None)
    package = f'"where2edit[{extra}]"' if INSTALLED else f'-e "{ROOT}[{extra}]"'
    return UserError(f"{purpose} needs what is not installed ({absent}); get it with: pip install {package}{otherwise}")
