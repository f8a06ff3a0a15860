"""The device that a flag names, and the precision of what runs there."""

import warnings
from functools import lru_cache

import torch

from attention.errors import UserError
from attention.processes import local_rank

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def checked_device(name: str) -> torch.device:
    """The torch device of a flag.

    Raises:
        UserError: an unknown device, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device("cuda", local_rank()) if name == "cuda" else torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device is {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices; "
                        "use --device cpu")
    return device


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The precision of synthesis, a key of PRECISIONS; regions, attention, gate and losses stay in float32 by themselves,
    and so does all on a device without bf16, which would imitate it: a CPU takes a dozen times as long for that.

    Raises:
        UserError: fp16 on a CPU, whose convolutions have no fast half precision.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision is fp16, but this runs on a CPU, which has no fast fp16; use --precision bf16 there")
    imitated = precision == "bf16" and not _has_bf16(device)
    if imitated:
        _tell_imitated()
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32" and not imitated)


def rough(device: torch.device) -> torch.autocast:
    """bf16 where the device has it: the precision of pictures that nobody keeps, such as those by which a dose is found."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_has_bf16(device))


@lru_cache
def _has_bf16(device: torch.device) -> bool:
    """Whether torch's convolutions have bf16 here: GPUs have it from Ampere on."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@lru_cache
def _tell_imitated() -> None:
    warnings.warn("this processor has no bf16, so that fp32 is taken in its place", stacklevel=3)
