"""Files that torch.save wrote: tensors only, nothing in them is executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attention.errors import UserError
from attention.files.disk import write_atomically
from attention.files.published import missing


def atomic_torch_save(state: dict, path: Path) -> None:
    """torch.save that leaves the previous file whole if it is interrupted."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))

Network = TypeVar("Network", bound=nn.Module)


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


def fill_frozen(module: Network, state: Mapping[str, Any], path: Path, published: str, prefix: str = "") -> Network:
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
    module.requires_grad_(False).eval()
    return module
