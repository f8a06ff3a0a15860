"""Files that torch.save wrote: tensors and plain values only, nothing in them is executed."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attention.errors import UserError
from attention.files.disk import write_atomically
from attention.files.pickles import Ignored, check_torch_file, is_torch_file
from attention.files.published import found
from attention.files.reading import shown
from attention.files.safetensors import all_of, is_safetensors
from attention.files.tensors import checked

# What programs keep beside the weights, which no weight depends on: options, numpy's numbers, paths.
INERT = ("argparse.Namespace", "types.SimpleNamespace", "easydict.EasyDict", "collections.defaultdict", "numpy.dtype",
         "numpy.ndarray", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib.PureWindowsPath",
         "pathlib.Path", "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "datetime.datetime", "datetime.date",
         "datetime.timedelta", "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
         "pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
         *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")))

Network = TypeVar("Network", bound=nn.Module)


def atomic_torch_save(state: dict, path: Path) -> None:
    """torch.save that leaves the previous file whole if it is interrupted."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def first_line(error: Exception) -> str:
    """What an error says, printable and short: the line in which torch names what it refused, else the first."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shown(next((line for line in lines if "GLOBAL" in line), lines[0]).strip(), 120)


def read_torch_file(path: Path, inert: Sequence[str] = ()) -> dict:
    """A dictionary of tensors that torch.save wrote; nothing in the file is executed.

    Args:
        inert: classes, by module and name, whose objects become ones that hold nothing.
    Raises:
        UserError: the file is missing, cut short, holds code, would unpack to more than it is, or is no dictionary.
    """
    path = found(path, "a torch file of tensors")
    try:
        with path.open("rb") as file:
            check_torch_file(file, path.stat().st_size)
        # Of an open file: given a path, torch goes by its ending.
        with path.open("rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(
                [(type("Ignored", (Ignored,), {}), name) for name in inert]):
            warnings.simplefilter("ignore")             # about protocols of pickles, and classes of storages
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:          # zipfile, pickle and torch each raise their own kinds
        raise UserError(f"{path} is not a whole torch file of plain tensors ({first_line(error)}); "
                        "download or make it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, but a dictionary of tensors was expected")
    return content


def read_tensors(path: Path) -> dict:
    """What a safetensors file or a torch file holds, whatever the name of the file says it is; see INERT.

    Raises:
        UserError: see `read_torch_file`; or it is no whole safetensors file.
    """
    path = found(path, "weights")
    if is_safetensors(path) or (path.suffix == ".safetensors" and not is_torch_file(path)):
        return all_of(path, "make or download it again")[0]
    return read_torch_file(path, INERT)


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
    advice = f"fetch that file with: python -m attention.download {published}"
    expected = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    given = {name: state[name] for name in expected if isinstance(state.get(name), Tensor)}
    problems = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [shown(name, 80) for name in state if name not in expected and name not in given],
        "of another shape": [f"{name} {shown(tuple(given[name].shape), 80)} instead of {tuple(tensor.shape)}"
                             for name, tensor in expected.items() if name in given and given[name].shape != tensor.shape],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
                           for kind, names in problems.items() if names)
        raise UserError(f"{path} does not have the {len(expected)} tensors of {published} ({listed}); {advice}")
    # Assigned, not copied: the file's tensors become the weights, so a large file is held in memory once.
    module.load_state_dict({name.removeprefix(prefix): tensor.to(expected[name].dtype)
                            for name, tensor in checked(given, path, advice, repeated=True).items()}, assign=True)
    module.requires_grad_(False).eval()
    return module
