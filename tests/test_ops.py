"""The two operations: the published values, the definition, both derivatives, every float dtype, and who computes them."""

import functools
import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_close_to_max

from attention import ops
from attention.ops import dispatch, fused_leaky_relu, fused_leaky_relu_reference, upfirdn2d, upfirdn2d_reference

# up, down, pad, kernel shape, map size: doubling, halving, blurring, cropping, and sizes that divide nothing
RESAMPLINGS = [(1, 1, (1, 1), (4, 4), (9, 9)), (2, 1, (2, 1), (4, 4), (5, 7)), (1, 2, (2, 2), (4, 4), (8, 6)),
               (3, 2, (2, 3), (3, 5), (6, 7)), (2, 2, (-1, 2), (2, 3), (7, 5)), (1, 3, (-2, -1), (3, 3), (11, 12))]
ACTIVATIONS = [(5, 7), (2, 3, 6), (2, 6, 5, 4), (1, 3, 2, 2, 2)]


def width(shape):
    return shape[-1] if len(shape) == 3 else shape[1]


@pytest.mark.parametrize("op", [upfirdn2d, upfirdn2d_reference])
def test_upfirdn2d_is_the_published_one(op, golden):
    arrays = golden("ops_upfirdn2d")
    for case in range(7):
        x, kernel, y, grad_y, grad_x = (arrays[f"up{case}/{name}"] for name in ("x", "kernel", "y", "grad_y", "grad_x"))
        up, down, *pad = arrays[f"up{case}/params"].tolist()
        actual = op(x.requires_grad_(), kernel, up, down, tuple(pad))
        assert_close_to_max(actual, y, 2e-5)
        assert_close_to_max(*torch.autograd.grad(actual, x, grad_y), grad_x, 1e-4)


@pytest.mark.parametrize("op", [fused_leaky_relu, fused_leaky_relu_reference])
def test_fused_leaky_relu_is_the_published_one(op, golden):
    arrays = golden("ops_fused_leaky_relu")
    for case in range(5):
        inputs = [arrays[name].requires_grad_() for name in (f"act{case}/x", f"act{case}/bias") if name in arrays]
        slope, scale = arrays[f"act{case}/params"].tolist()
        actual = op(*inputs, negative_slope=slope, scale=scale)
        assert_close_to_max(actual, arrays[f"act{case}/y"], 2e-5)
        gradients = torch.autograd.grad(actual, inputs, arrays[f"act{case}/grad_y"])
        for name, gradient in zip(("grad_x", "grad_bias"), gradients, strict=False):
            assert_close_to_max(gradient, arrays[f"act{case}/{name}"], 1e-4)


@pytest.mark.parametrize("op", [upfirdn2d, upfirdn2d_reference])
def test_upfirdn2d_equals_the_sum_written_out(op):
    for up, down, pad, kernel_shape, size in RESAMPLINGS:
        x, kernel = torch.randn(1, 2, *size).double(), torch.randn(kernel_shape).double()
        assert_close_to_max(op(x, kernel, up, down, pad), written_out(x, kernel, up, down, pad), 1e-9)


def written_out(x, kernel, up, down, pad):
    """The definition, pixel by pixel and tap by tap."""
    (height, width_), (kh, kw) = x.shape[2:], kernel.shape
    sides = [(side * up + sum(pad) - k) // down + 1 for side, k in zip(x.shape[2:], kernel.shape, strict=True)]
    expected = torch.zeros(1, 2, *sides).double()
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            for i in range(kh):
                for j in range(kw):                             # a true convolution: the last tap meets the first pixel
                    y, x_ = row * down + i - pad[0], column * down + j - pad[0]
                    if y % up == 0 and x_ % up == 0 and 0 <= y < height * up and 0 <= x_ < width_ * up:
                        expected[:, :, row, column] += x[:, :, y // up, x_ // up] * kernel[kh - 1 - i, kw - 1 - j]
    return expected


def test_upfirdn2d_has_correct_first_and_second_derivatives():
    for up, down, pad, kernel_shape, size in RESAMPLINGS:
        x, kernel = torch.randn(1, 2, *size).double().requires_grad_(), torch.randn(kernel_shape).double()

        def resampled(x, kernel=kernel, up=up, down=down, pad=pad):
            return upfirdn2d(x, kernel, up, down, pad)

        assert torch.autograd.gradcheck(resampled, x, fast_mode=True)
        # The op is linear, so its own second derivative is zero; a square makes the check mean something.
        assert torch.autograd.gradgradcheck(lambda x, op=resampled: op(x).square(), x, fast_mode=True)


def test_fused_leaky_relu_has_correct_first_and_second_derivatives():
    torch.manual_seed(0)                                        # random values at a distance from the kink
    for shape in ACTIVATIONS:
        x, bias = torch.randn(shape).double(), torch.randn(width(shape)).double()
        inputs = (x.requires_grad_(), bias.requires_grad_())
        assert torch.autograd.gradcheck(fused_leaky_relu, inputs)
        assert torch.autograd.gradgradcheck(lambda x, bias: fused_leaky_relu(x, bias).square(), inputs)


def test_fused_leaky_relu_equals_its_reference():
    for shape, biased, factors in product(ACTIVATIONS, (True, False), ((0.2, 2**0.5), (0.01, 1), (0.5, 3))):
        x, bias = torch.randn(shape), torch.randn(width(shape)) if biased else None
        expected = fused_leaky_relu_reference(x, bias, *factors)
        torch.testing.assert_close(fused_leaky_relu(x, bias, *factors), expected)


def test_ops_keep_the_dtype_of_their_input():
    for dtype, autocast in product((torch.bfloat16, torch.float32, torch.float64), (True, False)):
        x, kernel, bias = torch.randn(2, 3, 8, 8, dtype=dtype), torch.ones(4, 4), torch.zeros(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = fused_leaky_relu(x, bias), upfirdn2d(x, kernel, pad=(1, 1)), upfirdn2d(x, kernel, up=2, pad=(2, 1))
        assert [result.dtype for result in results] == [dtype] * 3, (dtype, autocast)


def test_factors_that_the_sign_of_the_result_does_not_survive_are_refused():
    for factors, words in (({"scale": 0}, "scale is 0.*must be positive"), ({"scale": -1.0}, "must be positive"),
                           ({"negative_slope": -0.1}, "slope is -0.1")):
        with pytest.raises(ValueError, match=words):
            fused_leaky_relu(torch.ones(1, 2), **factors)


def test_resampling_keeps_no_map_for_its_gradient():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape), lambda x: x):
        upfirdn2d(torch.ones(1, 2, 8, 8, requires_grad=True), torch.ones(4, 4), pad=(1, 1))
    assert kept == [(4, 4)]


# --- who computes them

def test_a_cpu_never_imports_triton():
    program = """
import sys, torch
from attention.ops import fused_leaky_relu, upfirdn2d
x = torch.ones(1, 2, 4, 4, requires_grad=True)
upfirdn2d(fused_leaky_relu(x, torch.zeros(2)), torch.ones(2, 2), up=2).sum().backward()
print([name for name in ("triton", "attention.ops.triton_kernels") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def on_gpu(monkeypatch):
    """Gives what stands for a tensor of a dtype on a GPU, in a process that has met none yet."""
    for name in ("_working_kernels", "_warn_once"):
        monkeypatch.setattr(dispatch, name, functools.cache(getattr(dispatch, name).__wrapped__))
    return lambda dtype: SimpleNamespace(is_cuda=True, device=torch.device("cpu"), dtype=dtype)


def test_without_triton_a_gpu_computes_with_plain_torch_and_one_warning(on_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)            # an import of it fails
    monkeypatch.delitem(sys.modules, "attention.ops.triton_kernels", raising=False)
    monkeypatch.delattr(ops, "triton_kernels", raising=False)
    with pytest.warns(UserWarning, match=r"Triton does not work here.* plain torch.*ModuleNotFoundError") as caught:
        assert {dispatch.triton_for(on_gpu(dtype)) for dtype in dispatch.DTYPES * 2} == {None}
    assert len(caught) == 1


@pytest.mark.parametrize("broken", ["fused_leaky_relu", "upfirdn2d"])
def test_kernels_that_do_not_compile_are_replaced_by_plain_torch_with_one_warning(on_gpu, monkeypatch, broken):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    kernels = {"fused_leaky_relu": fused_leaky_relu, "upfirdn2d": upfirdn2d, broken: fail}
    monkeypatch.setattr(ops, "triton_kernels", SimpleNamespace(**kernels), raising=False)
    with pytest.warns(UserWarning, match=r"Triton does not work here.* plain torch.*Failed to find C compiler") as caught:
        assert {dispatch.triton_for(on_gpu(dtype)) for dtype in dispatch.DTYPES * 2} == {None}
    assert len(caught) == 1


def test_kernels_that_work_take_every_float_dtype_on_a_gpu_and_nothing_else(on_gpu, monkeypatch):
    kernels = SimpleNamespace(fused_leaky_relu=fused_leaky_relu, upfirdn2d=upfirdn2d)
    monkeypatch.setattr(ops, "triton_kernels", kernels, raising=False)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert dispatch.triton_for(on_gpu(dtype)) is kernels and dispatch.triton_for(torch.zeros(1, dtype=dtype)) is None
    assert dispatch.triton_for(on_gpu(torch.complex64)) is None
