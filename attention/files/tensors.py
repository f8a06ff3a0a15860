"""The one check of tensors that come from a file: numbers that a network can have, no more than the file can hold."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attention.errors import UserError
from attention.files.reading import shown

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 1e8           # no trained weight comes near; products of such numbers are no pictures any more
MOST_AXES = 6
REPEATED = 256_000_000  # bytes that views of the same numbers may have beyond those of the file
FREE_NUMBERS, FREE_TENSORS = 10_000_000, 1000      # that a network may have for itself, beside its file's
COUNTER = ".num_batches_tracked"        # of a batch norm: the one tensor of a network that counts, and is never used
VARIANCE = ".running_var"
WRAPPERS = ("module.", "_orig_mod.")    # what DataParallel and torch.compile write before every name


def checked(state: Mapping[Any, Any], path: Path | str, remake: str, repeated: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, once each is one that a network can have.

    Args:
        state: by name; anything else than names and tensors is refused.
        path, remake: the file to name in messages, and the advice that they end with.
        repeated: views may repeat numbers without end, because all shapes were held against those that can be.
    Returns:
        The same tensors, without gradients.
    Raises:
        UserError: one is not floating-point, not finite, huge, empty, of too many axes, or they are more than the file has.
    """
    total, most = 0, float("inf") if repeated else Path(path).stat().st_size + REPEATED
    for name, value in state.items():
        if reason := _reason(str(name), value if isinstance(name, str) else None):
            raise UserError(f"{path} holds {shown(name, 80)} {reason}; {remake}")
        total += value.numel() * value.element_size()
        if total > most:
            raise UserError(f"{path} holds {shown(name, 80)} of the shape {tuple(value.shape)}, which is more than the "
                            f"file's own bytes; {remake}")
    return {name: value.detach() for name, value in state.items()}


class Bounded(TorchFunctionMode):
    """While a network is built of what a file says of itself: no more tensors and numbers than the file's can fill.

    Raises:
        ValueError: on entering torch with one more.
    """

    MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange})

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        self.numbers = FREE_NUMBERS + 2 * sum(tensor.numel() for tensor in state.values())
        self.tensors = FREE_TENSORS + 4 * len(state)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in self.MAKERS:
            sizes = [size for arg in (*args, (kwargs or {}).get("size", ())) for size in (
                arg if isinstance(arg, tuple | list) else [arg]) if isinstance(size, int)]
            self.tensors, self.numbers = self.tensors - 1, self.numbers - math.prod(sizes)
            if min(self.tensors, self.numbers) < 0:
                raise ValueError("it says that it is larger than its tensors")
        return func(*args, **(kwargs or {}))


def bare(state: Mapping[Any, Any]) -> dict[str, Any]:
    """A state dict without what DataParallel and torch.compile write before every name."""
    state = {str(name): value for name, value in state.items()}
    while found := next((word for word in WRAPPERS if state and all(name.startswith(word) for name in state)), None):
        state = {name.removeprefix(found): value for name, value in state.items()}
    return state


def _reason(name: str, value: Any) -> str | None:
    """Why this is no weight of a network."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    if not plain or value.is_quantized:
        return "that is no plain tensor, expected floating-point numbers"
    if name.endswith(COUNTER) and value.dtype is torch.int64 and value.ndim == 0:
        return None
    if value.dtype not in FLOATS:
        return f"of {str(value.dtype).removeprefix('torch.')}, expected floating-point numbers"
    if not 0 <= value.ndim <= MOST_AXES or value.numel() == 0:
        return f"of the shape {shown(tuple(value.shape), 80)}, expected at least one number and at most {MOST_AXES} axes"
    # A view may repeat a number without end along an axis.
    stored = value.detach()[tuple(slice(1) if stride == 0 else slice(None) for stride in value.stride())]
    low, high = (float(end) for end in torch.aminmax(stored))
    if not -LARGEST < low <= high < LARGEST:
        return "with numbers that are not finite, or beyond any trained weight's"
    return "with a negative variance" if name.endswith(VARIANCE) and low < 0 else None
