"""Bias, leaky ReLU and gain in one call: y = leaky_relu(x + bias, slope) * scale."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.ops import dispatch


def bias_shape(x: Tensor) -> list[int]:
    """Where the bias sits: dim 1, except for (B, N, C) sequences, whose channels come last."""
    shape = [1] * x.ndim
    shape[-1 if x.ndim == 3 else 1] = -1
    return shape


def fused_leaky_relu(
    x: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5, overwrite: bool = False
) -> Tensor:
    """Add a bias, apply a leaky ReLU and multiply by a gain that keeps the variance.

    Args:
        x: (B, C), (B, N, C) or (B, C, ...), any float dtype.
        bias: (C,), converted to the dtype of x; None for no bias.
        negative_slope: factor of the negative side, at least 0.
        scale: gain of the result, positive.
        overwrite: nothing but this call needs the values of x, so that they may give way to the result.
    Returns:
        Same shape and dtype as x; differentiable twice.
    Raises:
        ValueError: `scale` is not positive or the slope is negative.
    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN".
    """
    if scale <= 0:
        raise ValueError(f"scale is {scale}, but it must be positive: the gain is applied before the leaky ReLU")
    if negative_slope < 0:
        raise ValueError(f"negative_slope is {negative_slope}, but the gradient goes by the sign of the result: at least 0")
    kernels = dispatch.triton_for(x)
    if kernels is not None:
        return kernels.fused_leaky_relu(x, bias, negative_slope, scale)
    # A positive gain commutes with the leaky ReLU, and then bias and gain are one pass over memory instead of two.
    if bias is not None:
        bias = (bias * scale).to(x.dtype).view(bias_shape(x))
        x = x.add_(bias) if overwrite and scale == 1 else torch.add(bias, x, alpha=scale)
    elif scale != 1:
        x = x * scale
    elif not overwrite:
        return F.leaky_relu(x, negative_slope)
    return F.leaky_relu_(x, negative_slope)


def fused_leaky_relu_reference(
    x: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """The definition, term by term; every other form of `fused_leaky_relu` is tested against it."""
    if bias is not None:
        x = x + bias.to(x.dtype).view(bias_shape(x))
    return F.leaky_relu(x, negative_slope) * scale
