"""What a picture remembers of how it was made: a recipe in its PNG, and tensors as JSON holds them.

A recipe comes from anywhere: `Recipe` says all that may be in it, and no number of it is used before that has been checked.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from torch import Tensor

from attention.editing.masks import unpack_mask
from attention.editing.words import LONGEST_TEXT
from attention.errors import UserError
from attention.files.pictures import check_size, decoding, open_picture
from attention.files.reading import parse_json, readable, shown
from attention.method.defaults import COVERAGE, STRENGTH

RECIPE_KEY = "where2edit"       # of the PNG text that holds the recipe
LONGEST_RECIPE = 16_000_000     # characters; a hundred changes that each carry a w+ of 18 x 512 need a third of it
MOST_CHANGES = 1000             # in one chain: every one costs an edit when it is replayed
MOST_VALUES = 200 * MOST_CHANGES            # numbers, texts and lists in a recipe
MOST_REGIONS = 1000             # that one change names
LARGEST_SEED = 2**63 - 1        # that torch takes
MOST_THREADS = 1024
FARTHEST = 1e7                  # pixels from the corner of a photo to its face
A_RECIPE = "a picture that an edit was saved to"


def read_recipe(path: str | Path) -> dict:
    """The recipe in a PNG that `Edited.save` wrote, as JSON says it: see `checked`.

    Raises:
        UserError: no such file, no picture, no recipe in it, or one that no edit can have written.
    """
    name = shown(readable(path, A_RECIPE))
    with decoding(name, "a picture with a recipe"), open_picture(Path(path)) as picture:
        check_size(picture, name)
        text = picture.info.get(RECIPE_KEY)
        if text is None and isinstance(picture, PngImagePlugin.PngImageFile):
            text = picture.text.get(RECIPE_KEY)                 # behind the pixels, where other programs put it
    if not isinstance(text, str):
        raise UserError(f"{name} has no recipe in it; only pictures that an edit was saved to can be made again")
    if len(text) > LONGEST_RECIPE:
        raise UserError(f"{name} has a recipe of {len(text):,} characters, but at most {LONGEST_RECIPE:,} are read; it was "
                        "not written by an edit")
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise UserError(f"{name} has a recipe of more than {MOST_VALUES:,} values; it was not written by an edit")
    recipe = parse_json(text, f"{name} cannot be read as a picture with a recipe", "JSON")
    if not isinstance(recipe, dict):
        raise UserError(f"{name} has no recipe in it; only pictures that an edit was saved to can be made again")
    changes = recipe.get("changes")
    if isinstance(changes, list) and len(changes) > MOST_CHANGES:
        raise UserError(f"{name} has a recipe of {len(changes):,} changes, but at most {MOST_CHANGES} are made again")
    return recipe


# --- what may be in it

class Sizes(NamedTuple):
    """What an editor takes: shapes of latents and of embeddings, the side of masks, the number of regions."""

    latents: Sequence[tuple[int, ...]]
    embeddings: Sequence[tuple[int, ...]]
    side: int
    regions: int


def _sizes(info: ValidationInfo) -> Sizes:
    assert isinstance(info.context, Sizes)
    return info.context


def _is_latent(packed: dict, info: ValidationInfo) -> dict:
    unpack(packed, _sizes(info).latents)
    return packed


def _is_embedding(packed: dict, info: ValidationInfo) -> dict:
    unpack(packed, _sizes(info).embeddings)
    return packed


def _is_mask(packed: str, info: ValidationInfo) -> str:
    unpack_mask(packed, _sizes(info).side)
    return packed


def _are_regions(regions: list[int], info: ValidationInfo) -> list[int]:
    if not all(0 <= region < _sizes(info).regions for region in regions):
        raise ValueError(f"regions are numbers from 0 to {_sizes(info).regions - 1}")
    return regions


Number = Annotated[float, Field(ge=-FARTHEST, le=FARTHEST)]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Regions = Annotated[list[int], Field(min_length=1, max_length=MOST_REGIONS), AfterValidator(_are_regions)]
Latent = Annotated[dict, AfterValidator(_is_latent)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Embedding(_Part):
    embedding: Annotated[dict, AfterValidator(_is_embedding)]


class StylesOf(_Part):
    styles_of: Latent


class Mask(_Part):
    mask: Annotated[str, AfterValidator(_is_mask)]


class SaidChange(_Part):
    """See `session.Change`, which checks strength and coverage."""

    what: Text | Embedding | StylesOf = Field(description="a text, an embedding or a latent of this editor's sizes")
    where: Text | Regions | Mask = Field(description="a text, numbers of this editor's regions, or a mask of its side")
    strength: float = Field(STRENGTH, description="a number")
    coverage: float = Field(COVERAGE, description="a number")
    replace: bool = Field(False, description="true or false")
    dose: float = Field(1.0, description="a number")
    edges: bool = Field(False, description="true or false")


class SaidPhoto(_Part):
    """Which photo it was, and where in it the face is: see `Frame`."""

    name: Annotated[str, BeforeValidator(shown)] = Field(description="a text")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="a SHA-256")
    center: list[Number] = Field(min_length=2, max_length=2, description="a place of a photo")
    right: list[Number] = Field(min_length=2, max_length=2, description="a place of a photo")


class SaidSource(_Part):
    """A seed or a latent, and how it was come by."""

    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="a whole number from 0")
    w: Latent | None = Field(None, description="a latent of this editor's sizes")
    photo: SaidPhoto | None = None
    psnr: list[float] = Field([], max_length=2, description="two numbers")
    lpips: list[float] = Field([], max_length=2, description="two numbers")
    distance: list[float] = Field([], max_length=2, description="two numbers")
    threads: int | None = Field(None, ge=1, le=MOST_THREADS, description="a number of threads")

    @model_validator(mode="after")
    def _one_source(self) -> "SaidSource":
        if (self.seed is None) == (self.w is None) or (self.photo is not None and self.w is None):
            raise ValueError("it says neither a seed nor a latent, or both")
        return self


class Recipe(_Part):
    """All that a recipe may hold."""

    editor: str
    domain: str = ""
    source: SaidSource = Field(description="a seed or a latent")
    changes: list[SaidChange] = Field(max_length=MOST_CHANGES, description="a list of changes")


def check_recipe(recipe: dict, sizes: Sizes, name: str) -> None:
    """Refuse a recipe of which anything is of another kind, size or range than this editor's are.

    Raises:
        UserError: names the picture `name`, the place in its recipe, and what was expected there.
    """
    try:
        Recipe.model_validate(recipe, context=sizes)
    except ValidationError as error:
        first = error.errors()[0]
        place = [part for part in first["loc"] if isinstance(part, int) or part in FIELDS][:3]
        expected = "what an edit writes"
        for part in place:
            expected = getattr(FIELDS.get(str(part)), "description", None) or expected
        if first["type"] == "extra_forbidden":
            expected = f"no {shown(first['loc'][-1], 40)!r}"
        told = ".".join(map(str, place)) or "as a whole"
        raise UserError(f"{name} has a garbled recipe ({told}: expected {expected}); it cannot be made again") from None


FIELDS = Recipe.model_fields | SaidSource.model_fields | SaidPhoto.model_fields | SaidChange.model_fields


# --- tensors, masks, photos

def pack(tensor: Tensor) -> dict:
    """A tensor as JSON holds it: float32, to the bit."""
    array = tensor.detach().cpu().float().numpy()
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode()}


def unpack(packed: dict, shapes: Sequence[tuple[int, ...]] | None = None) -> Tensor:
    """What `pack` packed, on the CPU.

    Args:
        shapes: that it may have; None where it was packed here.
    Raises:
        ValueError: it is something else.
    """
    text, shape = packed.get("float32"), packed.get("shape")
    if not isinstance(text, str) or set(packed) != {"float32", "shape"}:
        raise ValueError("no packed tensor")
    if shapes is not None and (shape not in [list(one) for one in shapes] or any(type(side) is not int for side in shape)
                               or len(text) != 4 * math.ceil(4 * math.prod(shape) / 3)):        # of base64
        raise ValueError("a packed tensor of another shape")
    array = np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError("numbers that are not finite")
    return torch.from_numpy(array.astype(np.float32))


def pixel_hash(photo: Image.Image) -> str:
    """SHA-256 of a picture's size and pixels."""
    return hashlib.sha256(repr(photo.size).encode() + photo.tobytes()).hexdigest()
