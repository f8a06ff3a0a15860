"""Which tensors the Triton kernels take. Triton is imported when the first of them arrives, never on a CPU."""

import functools
import warnings
from types import ModuleType

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def triton_for(x: Tensor) -> ModuleType | None:
    """The module of Triton kernels if they take x, else None: the caller then computes with plain torch.

    They take float tensors on CUDA. Where Triton cannot be imported, or does not compile for the device, one warning says
    so. What torch.compile traces stays plain torch, of which it makes kernels of its own.
    """
    if not x.is_cuda or x.dtype not in DTYPES or torch.compiler.is_compiling():
        return None
    return _working_kernels(x.device, x.dtype)


@functools.cache
def _working_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module once both kernels have run on one pixel: most of what can be wrong with Triton shows when it compiles."""
    try:
        from attention.ops import triton_kernels  # noqa: PLC0415  (it imports Triton, which a CPU does not need)

        pixel = torch.zeros(1, 1, 1, 1, device=device, dtype=dtype)
        triton_kernels.fused_leaky_relu(pixel, pixel[0, 0, 0])
        triton_kernels.upfirdn2d(pixel, pixel[0, 0])
    except Exception as error:          # no Triton, no C compiler, an old GPU, a driver too old: each has its own kind
        _warn_once(f"{type(error).__name__}: {error}".splitlines()[0])
        return None
    return triton_kernels


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"Triton does not work here, so the fused operations run as plain torch, slower ({reason})", stacklevel=4)
