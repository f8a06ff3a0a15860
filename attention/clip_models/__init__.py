"""CLIP models. A new one: a file here with a class that keeps base.TextImageModel, and an entry in CLIP_MODELS."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attention.clip_models.base import TextImageModel


def _released(source: Path | str, trust: bool = False) -> TextImageModel:
    from attention.clip_models.released import load_clip
    return load_clip(source, trust=trust)


def _released_gelu(source: Path | str, trust: bool = False) -> TextImageModel:
    from attention.clip_models.released import load_clip
    return load_clip(source, trust=trust, gelu=True)


def _tiny(source: Path | str, trust: bool = False) -> TextImageModel:
    from attention.clip_models.tiny import TinyCLIP
    return TinyCLIP.load(source)


TINY_FILE = "where2edit tiny clip 1"       # what a file of a small CLIP says that it is
HEAD = 2**20                # bytes in which a safetensors file says what it is


def kind_of(source: Path | str) -> str:
    """The kind of a CLIP that is named by its file alone, or by a name of open_clip's: ours says in its file what it is."""
    if not str(source).endswith(".safetensors") or not os.path.isfile(source):
        return "released"
    try:
        with open(source, "rb") as file:
            return "tiny" if TINY_FILE.encode() in file.read(HEAD) else "released"
    except OSError:
        return "released"           # whose loader says what is wrong with it


# Name -> loader(source, trust=False) of a file (or of a named model); every loader returns a frozen TextImageModel on the
# CPU. Only the released models come as archives that need trust.
CLIP_MODELS: dict[str, Callable[..., TextImageModel]] = {"released": _released, "released-gelu": _released_gelu,
                                                         "tiny": _tiny}
# Kinds that read only the words that they were taught.
TAUGHT = frozenset(("tiny",))


def words_of(text: str) -> list[str]:
    """The words of a text as a CLIP that was taught whole words tells them apart: lower case, no punctuation."""
    return re.findall(r"[^\W_]+", text.lower().replace("'", "").replace("’", ""))
