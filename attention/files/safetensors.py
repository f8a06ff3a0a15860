"""Safetensors files: the same content is the same file, and a broken one is a sentence."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from attention.errors import UserError
from attention.files.disk import write_atomically
from attention.files.reading import readable, shown
from attention.files.tensors import checked

SCALE, LEVELS = ".scale", 127   # what follows a packed matrix's name for its rows' scales; the largest byte
LEAST_PACKED = 4096             # numbers of a matrix, below which packing saves nothing
HEADER_BYTES = 4_000_000        # names, shapes and metadata; those of a thousand tensors are a hundred thousand


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, its header sorted: the same content is the same file, byte for byte."""
    raw = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    _write(path, raw, metadata)


def write_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Give a whole safetensors file other metadata, its tensors untouched: what is packed stays so."""
    _write(path, path.read_bytes(), metadata)


def _write(path: Path, raw: bytes, metadata: dict[str, str]) -> None:
    """Write the tensors of a file's bytes under a sorted header with this metadata, all of it or nothing."""
    length = int.from_bytes(raw[:8], "little")
    said = json.loads(raw[8:8 + length]) | {"__metadata__": metadata}
    header = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)             # the format aligns the tensors that follow
    write_atomically(path, lambda temporary: temporary.write_bytes(
        len(header).to_bytes(8, "little") + header + raw[8 + length:]))


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in a quarter of the space: every row of a large matrix as bytes and a scale of its own, all else in
    half precision. What reads a safetensors file undoes it (`unpacked`); a weight is then off by at most 1/254 of the
    largest of its row, and half of that on average."""
    small: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.ndim < 2 or value.numel() < LEAST_PACKED:
            small[name] = value.half()
            continue
        scale = value.float().flatten(1).abs().amax(dim=1).clamp(min=1e-12) / LEVELS                # (rows,)
        rows = scale.view(-1, *[1] * (value.ndim - 1))
        small |= {name: (value.float() / rows).round().to(torch.int8), name + SCALE: scale}
    return small


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `packed` made, as floating-point numbers again; all else as it is."""
    bytes_of = {name for name, value in tensors.items() if value.dtype is torch.int8 and name + SCALE in tensors}
    whole = {name: value for name, value in tensors.items() if name.removesuffix(SCALE) not in bytes_of - {name}}
    for name in bytes_of:
        value, scale = tensors[name], tensors[name + SCALE]
        if scale.shape == value.shape[:1]:
            whole[name] = value * scale.view(-1, *[1] * (value.ndim - 1))
    return whole


@contextmanager
def consistent(path: Path, remake: str) -> Iterator[None]:
    """Around making a network of a file: what a file that contradicts itself raises becomes a sentence.

    Raises:
        UserError: names the file, what was wrong, and the command `remake`.
    """
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} contradicts its own configuration ({shown(' '.join(str(error).split()))}); make it "
                        f"again with: {remake}") from error


def read_safetensors(path: Path, kind: str, remake: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file whose metadata says that it is of this kind.

    Raises:
        UserError: the file is missing, cut short or of another kind; the message ends with the command `remake`.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{path} is not a file; it should be a {kind}, made by: {remake}") from None
    except (OSError, ValueError):
        pass                                                # `readable` says why
    advice = f"make it again with: {remake}"
    tensors, metadata = all_of(readable(path, f"a {kind}, made by: {remake}"), advice)
    if metadata.get("kind") != kind:
        raise UserError(f"{path} is marked {shown(repr(metadata.get('kind')), 80)}, but {kind!r} was expected; {advice}")
    return tensors, metadata


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as a safetensors file: the length of a header of JSON, and the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def all_of(path: Path, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, every tensor checked.

    Raises:
        UserError: it is cut short, or holds what no network has; the message ends with `advice`.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path} has a name that is no UTF-8, which safetensors cannot open; give it another one") from None
    try:
        with path.open("rb") as file:
            if (length := int.from_bytes(file.read(8), "little")) > HEADER_BYTES and is_safetensors(path):
                raise UserError(f"{path} has a header of {length:,} bytes, but at most {HEADER_BYTES:,} are read; "
                                f"{advice}")
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}      # noqa: SIM118 (not a dict)
    except UserError:
        raise
    except Exception as error:          # safetensors raises its own kind, torch others for what it cannot hold
        raise UserError(f"{path} is not a complete safetensors file ({shown(error)}); {advice}") from error
    return checked(unpacked(tensors), path, advice), metadata
