"""The two operations: the published values, the definition, both derivatives, every float dtype."""

import pytest
import torch
from conftest import assert_close_to_max

from attention.ops import fused_leaky_relu, fused_leaky_relu_reference, upfirdn2d, upfirdn2d_reference

# up, down, pad, kernel shape, map size: doubling, halving, blurring, cropping, and sizes that divide nothing
RESAMPLINGS = [(1, 1, (1, 1), (4, 4), (9, 9)), (2, 1, (2, 1), (4, 4), (5, 7)), (1, 2, (2, 2), (4, 4), (8, 6)),
               (3, 2, (2, 3), (3, 5), (6, 7)), (2, 2, (-1, 2), (2, 3), (7, 5)), (1, 3, (-2, -1), (3, 3), (11, 12))]
ACTIVATIONS = [(5, 7), (2, 3, 6), (2, 6, 5, 4), (1, 3, 2, 2, 2)]


def width(shape):
    return shape[-1] if len(shape) == 3 else shape[1]


@pytest.mark.parametrize("op", [upfirdn2d, upfirdn2d_reference])
@pytest.mark.parametrize("case", range(7))
def test_upfirdn2d_is_the_published_one(op, case, golden):
    arrays = golden("ops_upfirdn2d")
    x, kernel, y, grad_y, grad_x = (arrays[f"up{case}/{name}"] for name in ("x", "kernel", "y", "grad_y", "grad_x"))
    up, down, *pad = arrays[f"up{case}/params"].tolist()
    actual = op(x.requires_grad_(), kernel, up, down, tuple(pad))
    assert_close_to_max(actual, y, 2e-5)
    assert_close_to_max(*torch.autograd.grad(actual, x, grad_y), grad_x, 1e-4)


@pytest.mark.parametrize("op", [fused_leaky_relu, fused_leaky_relu_reference])
@pytest.mark.parametrize("case", range(5))
def test_fused_leaky_relu_is_the_published_one(op, case, golden):
    arrays = golden("ops_fused_leaky_relu")
    inputs = [arrays[f"act{case}/x"].requires_grad_()]
    if f"act{case}/bias" in arrays:
        inputs.append(arrays[f"act{case}/bias"].requires_grad_())
    slope, scale = arrays[f"act{case}/params"].tolist()
    actual = op(*inputs, negative_slope=slope, scale=scale)
    assert_close_to_max(actual, arrays[f"act{case}/y"], 2e-5)
    gradients = torch.autograd.grad(actual, inputs, arrays[f"act{case}/grad_y"])
    for name, gradient in zip(("grad_x", "grad_bias"), gradients, strict=False):
        assert_close_to_max(gradient, arrays[f"act{case}/{name}"], 1e-4)


@pytest.mark.parametrize(("up", "down", "pad", "kernel_shape", "size"), RESAMPLINGS)
@pytest.mark.parametrize("op", [upfirdn2d, upfirdn2d_reference])
def test_upfirdn2d_equals_the_sum_written_out(op, up, down, pad, kernel_shape, size):
    x, kernel = torch.randn(1, 2, *size).double(), torch.randn(kernel_shape).double()
    (height, width_), (kh, kw) = size, kernel_shape
    sides = [(side * up + sum(pad) - k) // down + 1 for side, k in zip(size, kernel_shape, strict=True)]
    expected = torch.zeros(1, 2, *sides).double()
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            for i in range(kh):
                for j in range(kw):                             # a true convolution: the last tap meets the first pixel
                    y, x_ = row * down + i - pad[0], column * down + j - pad[0]
                    if y % up == 0 and x_ % up == 0 and 0 <= y < height * up and 0 <= x_ < width_ * up:
                        expected[:, :, row, column] += x[:, :, y // up, x_ // up] * kernel[kh - 1 - i, kw - 1 - j]
    assert_close_to_max(op(x, kernel, up, down, pad), expected, 1e-9)


@pytest.mark.parametrize(("up", "down", "pad", "kernel_shape", "size"), RESAMPLINGS)
def test_upfirdn2d_has_correct_first_and_second_derivatives(up, down, pad, kernel_shape, size):
    x, kernel = torch.randn(1, 2, *size).double().requires_grad_(), torch.randn(kernel_shape).double()
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, kernel, up, down, pad), x, fast_mode=True)
    # The op is linear, so its own second derivative is zero; a square makes the check mean something.
    assert torch.autograd.gradgradcheck(lambda x: upfirdn2d(x, kernel, up, down, pad).square(), x, fast_mode=True)


@pytest.mark.parametrize("shape", ACTIVATIONS)
def test_fused_leaky_relu_has_correct_first_and_second_derivatives(shape):
    torch.manual_seed(0)                                        # random values at a distance from the kink
    x, bias = torch.randn(shape).double(), torch.randn(width(shape)).double()
    inputs = (x.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(fused_leaky_relu, inputs)
    assert torch.autograd.gradgradcheck(lambda x, bias: fused_leaky_relu(x, bias).square(), inputs)


@pytest.mark.parametrize("shape", ACTIVATIONS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("slope", "scale"), [(0.2, 2**0.5), (0.01, 1), (0.5, 3)])
def test_fused_leaky_relu_equals_its_reference(shape, biased, slope, scale):
    x, bias = torch.randn(shape), torch.randn(width(shape)) if biased else None
    expected = fused_leaky_relu_reference(x, bias, slope, scale)
    torch.testing.assert_close(fused_leaky_relu(x, bias, slope, scale), expected)


@pytest.mark.parametrize("scale", [0, -1.0])
def test_fused_leaky_relu_refuses_a_gain_that_does_not_commute(scale):
    with pytest.raises(ValueError, match="must be positive"):
        fused_leaky_relu(torch.ones(1, 2), None, 0.2, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [True, False])
def test_ops_keep_the_dtype_of_their_input(dtype, autocast):
    x, kernel, bias = torch.randn(2, 3, 8, 8, dtype=dtype), torch.ones(4, 4), torch.zeros(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        results = fused_leaky_relu(x, bias), upfirdn2d(x, kernel, pad=(1, 1)), upfirdn2d(x, kernel, up=2, pad=(2, 1))
    assert [result.dtype for result in results] == [dtype] * 3
