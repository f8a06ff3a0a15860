"""A world that a TOML file describes; see pretrained_models/example.toml."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from attention.clip_models import CLIP_MODELS, kind_of
from attention.config import ClusterConfig, TrainConfig, expected, settings_of
from attention.errors import UserError
from attention.files.reading import read_text, shown
from attention.worlds.base import Part, WorldEntry
from attention.worlds.parts import ENCODERS, FRAMES, PERCEPTUAL, TRUTHS, VIEWS, WORDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE, MOST_BYTES = "pretrained_models/example.toml", 1_000_000
MOST_REFINED = 10_000       # steps
SETTINGS = {**settings_of(ClusterConfig), **settings_of(TrainConfig)}


LONGEST = 1000              # signs of a phrase


def _said(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("says nothing")
    return text


Name = Annotated[str, Field(min_length=1)]
Phrase = Annotated[str, Field(max_length=LONGEST), AfterValidator(_said)]


class TomlPart(BaseModel):
    """A part by its kind and its file or name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: str
    source: str


class TomlWorld(BaseModel):
    """What the file may say; paths count from its own folder. A description says what a value must be."""

    model_config = ConfigDict(extra="forbid", strict=True)
    generator: str = Field(description="a text")
    prompts: list[Phrase] = Field(min_length=1, description=f"a list of texts, each once, of at most {LONGEST} signs")
    clip: str | TomlPart = Field("ViT-B-32.pt", description="a text, or a table of kind and source")
    early: Name | None = Field(None, description="a text")
    preview: Name | None = Field(None, description="a text")
    encoder: TomlPart | None = Field(None, description="a table of kind and source")
    refine: int = Field(0, ge=0, le=MOST_REFINED, description=f"a whole number up to {MOST_REFINED:,}")
    layout: Name | None = Field(None, description="a text")
    recognised: bool = Field(False, description="true or false")
    dosed: bool = Field(False, description="true or false")
    follows_edges: bool = Field(False, description="true or false")
    truncation: float = Field(0.7, ge=0, le=1, description="a number from 0 to 1")
    captions: Name | None = Field(None, description="a text")
    where: list[Phrase] = Field([], description=f"a list of texts of at most {LONGEST} signs")
    words: str = Field("itself", description="a text")
    synonyms: dict[Phrase, list[Phrase]] = Field({}, description="a table of lists of texts")
    frame: str = Field("ffhq", description="a text")
    views: str = Field("plain", description="a text")
    perceptual: str = Field("vgg16", description="a text")
    truth: str | None = Field(None, description="a text")
    settings: dict[str, Any] = Field({}, description="a table")

    @field_validator("prompts")
    @classmethod
    def _different(cls, prompts: list[str]) -> list[str]:
        if len(set(prompts)) < len(prompts):
            raise ValueError("says one twice")
        return prompts


def read_toml(path: Path) -> WorldEntry:
    """A world from a TOML file.

    Raises:
        UserError: the file is missing or no TOML, or says something unknown or of another kind.
    """
    text = read_text(path, f"a world in TOML, such as {EXAMPLE}", MOST_BYTES)
    try:
        said = TomlWorld(**tomllib.loads(text))
    except RecursionError:
        raise _wrong(path, "cannot be read as TOML (nested too deeply)") from None
    except ValidationError as error:
        raise _wrong(path, _first_mistake(error.errors()[0])) from None
    except ValueError as error:                         # TOMLDecodeError, and what int() has to say of too many digits
        raise _wrong(path, f"cannot be read as TOML ({shown(error)})") from error
    clip = said.clip if isinstance(said.clip, TomlPart) else TomlPart(kind=kind_of(_local(path, said.clip)),
                                                                      source=said.clip)
    kinds: dict[str, tuple[str, Mapping[str, Any]]] = {
        "clip": (clip.kind, CLIP_MODELS), "words": (said.words, WORDS), "frame": (said.frame, FRAMES),
        "views": (said.views, VIEWS), "perceptual": (said.perceptual, PERCEPTUAL)}
    kinds |= {"encoder": (said.encoder.kind, ENCODERS)} if said.encoder else {}
    kinds |= {"truth": (said.truth, TRUTHS)} if said.truth else {}
    for key, (kind, known) in kinds.items():
        if kind not in known:
            raise _wrong(path, f"has {shown(repr(kind), 80)} for {key}, expected one of {', '.join(known)}")
    settings = {name: _setting(path, name, value) for name, value in said.settings.items()}
    return WorldEntry(
        name=path.stem, generator=path.parent / said.generator, prompts=tuple(said.prompts),
        clip=Part(clip.kind, _local(path, clip.source)), truncation=said.truncation,
        early=path.parent / said.early if said.early else None,
        preview=path.parent / said.preview if said.preview else None,
        layout=path.parent / said.layout if said.layout else None,
        encoder=Part(said.encoder.kind, _local(path, said.encoder.source)) if said.encoder else None, words=said.words,
        synonyms=said.synonyms, places=tuple(said.where), frame=said.frame, views=said.views,
        perceptual=said.perceptual, truth=said.truth, refine=said.refine, recognised=said.recognised, dosed=said.dosed,
        follows_edges=said.follows_edges, settings=settings,
        captions=path.parent / said.captions if said.captions else None)


def _local(path: Path, source: str) -> Path | str:
    """A file beside the TOML file if there is one of this name, else the name as it is: open_clip knows some."""
    local = path.parent / source
    return local if os.path.exists(local) else source


def _setting(path: Path, name: str, value: object) -> Any:
    if name not in SETTINGS:
        raise _wrong(path, f"has the setting {shown(repr(name), 80)}, but knows only {', '.join(SETTINGS)}")
    field = SETTINGS[name]
    try:
        kind: Any = Annotated[field.annotation, field]
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise _wrong(path, f"has {shown(repr(value), 80)} for the setting {name}, expected "
                           f"{expected(field, error.errors()[0])}") from None


def _first_mistake(error: Any) -> str:
    key = error["loc"][0]
    if error["type"] == "missing":
        return f"lacks {key}"
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        return f"has the key {shown(repr(key), 80)}, but knows only {', '.join(TomlWorld.model_fields)}"
    if error["type"] == "too_short":
        return f"lacks {key}"
    found = error["input"] if len(error["loc"]) == 1 else [error["input"]]
    return f"has {shown(repr(found), 80)} for {key}, expected {TomlWorld.model_fields[key].description}"


def _wrong(path: Path, reason: str) -> UserError:
    return UserError(f"{path} {reason}; see the example {EXAMPLE}")
