"""The device that a flag names."""

import torch

from attention.errors import UserError
from attention.processes import local_rank


def checked_device(name: str) -> torch.device:
    """The torch device of a flag.

    Raises:
        UserError: an unknown device, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device("cuda", local_rank()) if name == "cuda" else torch.device(name)
    except RuntimeError:
        raise UserError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device is {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices; "
                        "use --device cpu")
    return device
