"""Reading and writing files: safetensors and plain torch files, never anything that runs code.

    python -m attention.checkpoints convert pretrained_models/final_mapper.pt       # the authors' mapper, see released.py
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from attention.errors import UserError, exit_with_message
from attention.published import missing


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name beside `path`, then rename: a reader sees the old file or the whole new one.

    Raises:
        UserError: the folder cannot be written or the disk is full; the previous file is still whole.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    # torch.save turns a failed write into a RuntimeError, safetensors into its own kind.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} could not be written ({error}); what was there before is unchanged. Make room, or "
                        "choose a folder that can be written") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, its header sorted: the same content is the same file, byte for byte."""
    raw = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8:8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)             # the format aligns the tensors that follow
    write_atomically(path, lambda temporary: temporary.write_bytes(
        len(header).to_bytes(8, "little") + header + raw[8 + length:]))


def atomic_torch_save(state: dict, path: Path) -> None:
    """torch.save that leaves the previous file whole if it is interrupted."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def read_torch_file(path: Path) -> dict:
    """A dictionary of tensors that torch.save wrote; nothing in the file is executed.

    Raises:
        UserError: the file is missing, cut short, holds code, or is no dictionary.
    """
    if not Path(path).is_file():
        raise missing(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:          # zipfile, pickle and torch each raise their own kinds
        raise UserError(f"{path} is not a whole torch file of plain tensors ({_first_line(error)}); "
                        "download or make it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, but a dictionary of tensors was expected")
    return content


def fill_frozen(module: nn.Module, state: Mapping, path: Path, published: str, prefix: str = "") -> nn.Module:
    """Give a module that was built on the meta device its tensors, every name and shape checked.

    Args:
        state: what `path` holds, under the module's names with `prefix` before them.
        published: name of the published file whose layout this is.
    Returns:
        The module, float32 as built, frozen, in evaluation mode.
    Raises:
        UserError: names are missing or unknown, or shapes differ; the message lists a few of each.
    """
    expected = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    found = {name: state[name] for name in expected if isinstance(state.get(name), Tensor)}
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [str(name) for name in state if name not in expected],
        "of another shape": [f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
                             for name, tensor in expected.items() if name in found and found[name].shape != tensor.shape],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
                           for kind, names in problems.items() if names)
        raise UserError(f"{path} does not have the {len(expected)} tensors of {published} ({listed}); "
                        f"fetch that file with: python -m attention.download {published}")
    # Assigned, not copied: the file's tensors become the weights, so a large file is held in memory once.
    module.load_state_dict({name.removeprefix(prefix): tensor.to(expected[name].dtype)
                            for name, tensor in found.items()}, assign=True)
    return module.requires_grad_(False).eval()


def run_folder(path: Path, flag: str = "--run") -> Path:
    """Make the folder that a flag names and check that it can be written.

    Raises:
        UserError: it is a file, or may not be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written ({error.strerror}); choose another folder") from error
    return path


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


if __name__ == "__main__":
    from attention.released import main

    exit_with_message(main)
