"""Safetensors files: the same content is the same file, and a broken one is a sentence."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from attention.errors import UserError
from attention.files.disk import write_atomically


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, its header sorted: the same content is the same file, byte for byte."""
    raw = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8:8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)             # the format aligns the tensors that follow
    write_atomically(path, lambda temporary: temporary.write_bytes(
        len(header).to_bytes(8, "little") + header + raw[8 + length:]))


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
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{path} contradicts its own configuration ({' '.join(str(error).split())[:200]}); make it again "
                        f"with: {remake}") from error


def read_safetensors(path: Path, kind: str, remake: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file whose metadata says that it is of this kind.

    Raises:
        UserError: the file is missing, cut short or of another kind; the message ends with the command `remake`.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file; it should be a {kind}, made by: {remake}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}      # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); make it again with: {remake}") from error
    if metadata.get("kind") != kind:
        raise UserError(f"{path} is marked {metadata.get('kind')!r}, but {kind!r} was expected; "
                        f"make it again with: {remake}")
    return tensors, metadata
