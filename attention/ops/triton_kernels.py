"""Both operations as Triton kernels; `attention.ops.dispatch` decides when they run.

Every kernel computes in float32 (float64 for float64), writes in the dtype of its input and keeps the memory format.
Floats reach it as compile-time constants: as arguments they would arrive in float32, too coarse for float64.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attention.ops.fused_leaky_relu import bias_shape
from attention.ops.upfirdn2d import resampled

BLOCK = 1024            # values per program: 8 for each of its 128 threads


def _compute_dtype(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


# --- bias, leaky ReLU and gain

def fused_leaky_relu(x: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
    """The public operation for a slope of at least 0; computes with a bias of any dtype.

    Raises:
        RuntimeError: the bias is neither (C,) nor (1,).
    """
    if bias is not None:
        bias = bias.expand(x.shape[bias_shape(x).index(-1)]).contiguous()
    return _LeakyReLU.apply(x, bias, float(negative_slope), float(scale))


class _LeakyReLU(torch.autograd.Function):
    """Keeps its output alone, whose sign says which side a value was on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, slope: float, scale: float) -> Tensor:
        y = _leaky_relu(x, bias, None, slope, scale)
        ctx.save_for_backward(y)
        ctx.factors, ctx.bias_dtype = (slope, scale), None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_bias = _LeakyReLUGradient.apply(gradient, *ctx.saved_tensors, *ctx.factors), None
        if ctx.needs_input_grad[1]:
            others = [dim for dim, side in enumerate(bias_shape(grad_x)) if side == 1]
            # An ordinary sum, so that runs repeat exactly; not rounded to half precision on its way to a float32 bias.
            at_least_float32 = torch.promote_types(grad_x.dtype, torch.float32)
            grad_bias = grad_x.sum(others, dtype=at_least_float32).to(ctx.bias_dtype)
        return grad_x, grad_bias, None, None


class _LeakyReLUGradient(torch.autograd.Function):
    """Linear in the gradient, so it is its own derivative; no derivative with respect to y, of which it takes the sign."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, y: Tensor, slope: float, scale: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.factors = slope, scale
        return _leaky_relu(gradient, None, y, slope, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _LeakyReLUGradient.apply(gradient, *ctx.saved_tensors, *ctx.factors), None, None, None


def _leaky_relu(x: Tensor, bias: Tensor | None, sign: Tensor | None, slope: float, scale: float) -> Tensor:
    """Run the kernel over memory as it lies, in the layout of `sign` if given, else of x.

    The bias needs the channel of every value. In memory, the dimensions around the channels are the rows of a matrix and
    those within are its columns: every row has one channel (NCHW), or every column where nothing is within (channels last).
    """
    y = torch.empty_like(x if sign is None else sign)
    if not y.numel():
        return y
    if x.stride() != y.stride():                # it has gaps, or is a gradient in another layout
        x = y.copy_(x)
    channels = 1 if bias is None else len(bias)
    within = y.stride(bias_shape(y).index(-1)) if channels > 1 else 1
    columns = y.numel() if bias is None else within if within > 1 else channels
    rows = y.numel() // columns
    block_columns = min(triton.next_power_of_2(columns), BLOCK)
    block_rows = BLOCK // block_columns
    column_blocks = triton.cdiv(columns, block_columns)
    with torch.cuda.device_of(y):
        _leaky_relu_kernel[(triton.cdiv(rows, block_rows) * column_blocks,)](
            x, bias, sign, y, rows, columns, channels, column_blocks, SLOPE=slope, SCALE=scale, BIAS_PER_ROW=within > 1,
            COMPUTE=_compute_dtype(y), ROWS=block_rows, COLUMNS=block_columns)
    return y


@triton.jit(do_not_specialize=["rows", "channels", "column_blocks"])
def _leaky_relu_kernel(x, bias, sign, y, rows, columns, channels, column_blocks, SLOPE: tl.constexpr, SCALE: tl.constexpr,
                       BIAS_PER_ROW: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """leaky(x + bias) * SCALE over a (rows, columns) matrix; if given, `sign` and not x + bias says which side it is."""
    program = tl.program_id(0).to(tl.int64)
    row = program // column_blocks * ROWS + tl.arange(0, ROWS)[:, None]
    column = program % column_blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside, offset = (row < rows) & (column < columns), row * columns + column
    value = tl.load(x + offset, mask=inside, other=0).to(COMPUTE)                # (ROWS, COLUMNS)
    if bias is not None:
        if BIAS_PER_ROW:
            value += tl.load(bias + row % channels).to(COMPUTE)
        else:
            value += tl.load(bias + column, mask=column < columns, other=0).to(COMPUTE)
    side = value
    if sign is not None:
        side = tl.load(sign + offset, mask=inside, other=0).to(COMPUTE)
    tl.store(y + offset, tl.where(side > 0, value, value * SLOPE) * SCALE, mask=inside)


# --- upsample, filter, downsample

def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """The public operation, without a gradient for the filter, which may have any dtype."""
    return resampled(_resample, x, kernel.contiguous(), up, down, pad)


def _resample(x: Tensor, fir: Tensor, up: int, down: int, before: tuple[int, int], size: tuple[int, int], flipped: bool,
              memory_format: torch.memory_format) -> Tensor:
    """Run the kernel on x of any strides; see `resampled`."""
    y = torch.empty(*x.shape[:2], *size, dtype=x.dtype, device=x.device, memory_format=memory_format)
    if not y.numel():
        return y
    extent = triton.cdiv(size[0], up), triton.cdiv(size[1], up), x.shape[1]      # of one phase: every up-th pixel
    tile = _tile(*extent, memory_format)
    tiles = [triton.cdiv(whole, part) for whole, part in zip(extent, tile, strict=True)]
    skipped = [max(triton.cdiv(lead, up), 0) for lead in before]                 # samples from the first pixel to x
    start = [skip * up - lead for skip, lead in zip(skipped, before, strict=True)]
    with torch.cuda.device_of(y):
        _resample_kernel[(math.prod(tiles) * up**2 * len(x),)](
            x, fir, y, *x.shape[1:], *size, *tiles, *start, *skipped, *x.stride(), *y.stride(),
            UP=up, DOWN=down, FIR_ROWS=fir.shape[0], FIR_COLUMNS=fir.shape[1], FLIPPED=flipped,
            COMPUTE=_compute_dtype(y), ROWS=tile[0], COLUMNS=tile[1], DEPTH=tile[2])
    return y


def _tile(height: int, width: int, channels: int, memory_format: torch.memory_format) -> tuple[int, int, int]:
    """Rows, columns and channels of one program's block, powers of two: long in memory, and several rows, which overlap."""
    height, width, channels = (triton.next_power_of_2(side) for side in (height, width, channels))
    if memory_format == torch.channels_last:
        depth = min(channels, 64)
        columns = min(width, 256 // depth)
        return min(height, BLOCK // (columns * depth)), columns, depth
    columns = min(width, 64)
    rows = min(height, BLOCK // columns)
    return rows, columns, min(channels, BLOCK // (rows * columns))


@triton.jit(do_not_specialize=["height", "width", "y_height", "tiles_y", "tiles_x", "tiles_channel", "start_y", "start_x",
                               "skipped_y", "skipped_x"])
def _resample_kernel(x, fir, y, channels, height, width, y_height, y_width, tiles_y, tiles_x, tiles_channel,
                     start_y, start_x, skipped_y, skipped_x, x_image, x_channel, x_row, x_column,
                     y_image, y_channel, y_row, y_column, UP: tl.constexpr, DOWN: tl.constexpr, FIR_ROWS: tl.constexpr,
                     FIR_COLUMNS: tl.constexpr, FLIPPED: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr,
                     COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """ROWS x COLUMNS output pixels of one phase (every UP-th, so that the same taps fall on samples) and DEPTH channels.

    Output pixel o sees the zero-stuffed pixels from o * DOWN + start on, counted from `skipped` samples before x: nothing
    that is divided may be negative, since a GPU rounds such a quotient the other way than Python.
    """
    tile = tl.program_id(0) // (UP * UP)
    phase_y, phase_x = tl.program_id(0) // UP % UP, tl.program_id(0) % UP
    seen_y, seen_x = phase_y * DOWN + start_y, phase_x * DOWN + start_x
    sample_y, sample_x = (seen_y + UP - 1) // UP, (seen_x + UP - 1) // UP        # the first at or after what is seen
    tap_y, tap_x = sample_y * UP - seen_y, sample_x * UP - seen_x                # where it is in the filter's window

    pixel = tl.arange(0, ROWS * COLUMNS)[:, None]
    column = tile % tiles_x * COLUMNS + pixel % COLUMNS                          # counted within the phase
    row = tile // tiles_x % tiles_y * ROWS + pixel // COLUMNS
    channel = tile // tiles_x // tiles_y % tiles_channel * DEPTH + tl.arange(0, DEPTH)[None, :]
    image = (tile // tiles_x // tiles_y // tiles_channel).to(tl.int64)
    x_y, x_x = row * DOWN + sample_y - skipped_y, column * DOWN + sample_x - skipped_x
    y_y, y_x = row * UP + phase_y, column * UP + phase_x
    kept, used = (y_y < y_height) & (y_x < y_width), channel < channels

    source = x + image * x_image + channel.to(tl.int64) * x_channel
    source += x_y.to(tl.int64) * x_row + x_x.to(tl.int64) * x_column             # (ROWS * COLUMNS, DEPTH)
    total = tl.full((ROWS * COLUMNS, DEPTH), 0, COMPUTE)
    for i in range(tap_y, FIR_ROWS, UP):
        in_row = kept & (x_y >= 0) & (x_y < height)
        sample = source
        for step in tl.static_range((FIR_COLUMNS + UP - 1) // UP):
            j = tap_x + step * UP
            tap = i * FIR_COLUMNS + j
            if not FLIPPED:
                tap = FIR_ROWS * FIR_COLUMNS - 1 - tap                           # a true convolution starts at the end
            weight = tl.load(fir + tap, mask=j < FIR_COLUMNS, other=0).to(COMPUTE)
            real = in_row & (x_x + step >= 0) & (x_x + step < width) & (j < FIR_COLUMNS)
            total += weight * tl.load(sample, mask=real & used, other=0).to(COMPUTE)
            sample += x_column
        x_y, source = x_y + 1, source + x_row
    result = y + image * y_image + channel.to(tl.int64) * y_channel
    result += y_y.to(tl.int64) * y_row + y_x.to(tl.int64) * y_column
    tl.store(result, total, mask=kept & used)
