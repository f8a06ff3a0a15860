"""The Triton kernels against the definitions: values, both derivatives, half precision, memory formats, a GPU's compiler.

On a machine with a GPU they run compiled, else in Triton's interpreter on a CPU: slow, so the shapes are tiny.
"""

import importlib.util
import struct
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_close_to_max
from test_ops import ACTIVATIONS, RESAMPLINGS, width

from attention.ops import dispatch, fused_leaky_relu, fused_leaky_relu_reference, upfirdn2d, upfirdn2d_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.contiguous_format, torch.channels_last]
HALVES = [torch.float16, torch.bfloat16]


def load_kernels():
    """A copy of the module of kernels: whether the interpreter runs them is settled when they are defined."""
    spec = importlib.util.find_spec("attention.ops.triton_kernels")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        yield load_kernels()


def randn(*shape, dtype=torch.float64, memory_format=torch.contiguous_format):
    """Random numbers that are the same on every device, as a leaf."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return x.to(DEVICE, dtype).to(memory_format=memory_format).requires_grad_()


def assert_same(actual, expected, tolerance=1e-12):
    """The same values as `expected`, which are a definition's in float64."""
    assert_close_to_max(actual.cpu(), expected.cpu(), tolerance)


def assert_rounded_once(actual, exact):
    """Values of a half precision that are those of `exact` but for their own rounding."""
    step = torch.finfo(actual.dtype).eps
    rounding = step if actual.dtype == torch.bfloat16 and DEVICE == "cpu" else step / 2     # the interpreter cuts it off
    torch.testing.assert_close(actual.detach().double(), exact.detach(), rtol=rounding * 1.001, atol=1e-6)


# --- the published values

def test_upfirdn2d_is_the_published_one(kernels, golden):
    arrays = {name: array.to(DEVICE) for name, array in golden("ops_upfirdn2d").items()}
    for case in range(7):
        x, kernel, y, grad_y, grad_x = (arrays[f"up{case}/{name}"] for name in ("x", "kernel", "y", "grad_y", "grad_x"))
        up, down, *pad = arrays[f"up{case}/params"].tolist()
        actual = kernels.upfirdn2d(x.requires_grad_(), kernel, up, down, tuple(pad))
        assert_same(actual, y, 2e-5)
        assert_same(*torch.autograd.grad(actual, x, grad_y), grad_x, 1e-4)


def test_fused_leaky_relu_is_the_published_one(kernels, golden):
    arrays = {name: array.to(DEVICE) for name, array in golden("ops_fused_leaky_relu").items()}
    for case in range(5):
        inputs = [arrays[name].requires_grad_() for name in (f"act{case}/x", f"act{case}/bias") if name in arrays]
        slope, scale = arrays[f"act{case}/params"].tolist()
        actual = kernels.fused_leaky_relu(*inputs, negative_slope=slope, scale=scale)
        assert_same(actual, arrays[f"act{case}/y"], 2e-5)
        gradients = torch.autograd.grad(actual, inputs, arrays[f"act{case}/grad_y"])
        for name, gradient in zip(("grad_x", "grad_bias"), gradients, strict=False):
            assert_same(gradient, arrays[f"act{case}/{name}"], 1e-4)


# --- values and gradients against the definitions

@pytest.mark.parametrize("memory_format", FORMATS)
def test_upfirdn2d_equals_its_reference_and_keeps_the_format(kernels, memory_format):
    edges = ((2, 1, (9, 0), (1, 3), (2, 3)),        # rows before the map that see padding only
             (3, 1, (0, 0), (2, 2), (2, 3)))        # phases on which no tap falls
    for up, down, pad, kernel_shape, size in (*RESAMPLINGS, *edges):
        x, kernel = randn(1, 3, *size, memory_format=memory_format), randn(*kernel_shape).detach()
        expected = upfirdn2d_reference(x, kernel, up, down, pad)
        actual = kernels.upfirdn2d(x, kernel, up, down, pad)
        assert_same(actual, expected)
        gradient = torch.randn_like(expected).contiguous()      # autograd may hand over a gradient of the other format
        grad_x, = torch.autograd.grad(actual, x, gradient)
        assert_same(grad_x, *torch.autograd.grad(expected, x, gradient))
        assert actual.is_contiguous(memory_format=memory_format) and grad_x.stride() == x.stride()


def test_upfirdn2d_on_many_blocks_none_of_them_full(kernels):
    for shape, memory_format in (((2, 1, 17, 65), FORMATS[0]), ((1, 65, 5, 5), FORMATS[1])):
        x, kernel = randn(*shape, memory_format=memory_format), randn(2, 1).detach()
        assert_same(kernels.upfirdn2d(x, kernel, pad=(0, 1)), upfirdn2d_reference(x, kernel, pad=(0, 1)))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_fused_leaky_relu_equals_its_reference_and_keeps_the_format(kernels, biased, channels_last):
    for shape in (*ACTIVATIONS, (3, 1, 2, 2), (2, 3, 5, 211), (1, 1031), (400, 3), (2, 3, 1)):
        x = randn(*shape)
        if channels_last and len(shape) > 3:
            x = x.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
        inputs = [x, randn(width(shape))] if biased else [x]
        actual, expected = kernels.fused_leaky_relu(*inputs), fused_leaky_relu_reference(*inputs)
        assert_same(actual, expected)
        gradient = torch.randn_like(expected).contiguous()
        gradients = torch.autograd.grad(actual, inputs, gradient)
        for one, other in zip(gradients, torch.autograd.grad(expected, inputs, gradient), strict=True):
            assert_same(one, other)
        assert actual.stride() == gradients[0].stride() == x.stride(), shape


def test_fused_leaky_relu_takes_any_slope_and_gain_exactly(kernels):
    for factors in ((0.01, 1), (0, 3), (1, 1 / 3)):
        x = randn(3, 5)
        actual, expected = (op(x, None, *factors) for op in (kernels.fused_leaky_relu, fused_leaky_relu_reference))
        torch.testing.assert_close(actual, expected, rtol=1e-15, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x) for y in (actual, expected)), rtol=1e-15, atol=0)


VIEWS = {"cropped": lambda x: x[:, 1:, 1:-1, ::2], "expanded": lambda x: x[:, :, :1].expand_as(x),
         "transposed": lambda x: x.transpose(2, 3), "flattened": lambda x: x.permute(2, 0, 3, 1)}


def test_both_take_views_of_any_strides(kernels):
    for view in VIEWS.values():
        x, kernel = view(randn(2, 4, 5, 6)), randn(2, 2).detach()
        bias = randn(x.shape[1])
        assert_same(kernels.fused_leaky_relu(x, bias), fused_leaky_relu_reference(x, bias))
        assert_same(kernels.upfirdn2d(x, kernel, pad=(1, 0)), upfirdn2d_reference(x, kernel, pad=(1, 0)))


def test_an_empty_batch_gives_an_empty_batch(kernels):
    x, bias = randn(0, 3, 4, 4), randn(3)
    y = kernels.upfirdn2d(kernels.fused_leaky_relu(x, bias), randn(4, 4).detach(), up=2, pad=(2, 1))
    assert y.shape == (0, 3, 8, 8)
    grad_x, grad_bias = torch.autograd.grad(y.sum(), (x, bias))
    assert grad_x.shape == x.shape and torch.equal(grad_bias, torch.zeros_like(bias))


def test_a_bias_of_another_width_is_refused(kernels):
    with pytest.raises(RuntimeError, match="expand"):
        kernels.fused_leaky_relu(randn(2, 3), randn(4))


def test_a_filter_larger_than_the_map_is_refused(kernels):
    with pytest.raises(ValueError, match=r"\(4, 4\) filter leaves nothing of a map of \(2, 2\)"):
        kernels.upfirdn2d(randn(1, 1, 2, 2), randn(4, 4).detach())


# --- derivatives

@pytest.mark.parametrize(("up", "down", "pad", "kernel_shape", "size"), [
    (2, 1, (2, 1), (3, 3), (2, 2)), (1, 2, (1, 0), (2, 1), (3, 2)),
])
def test_upfirdn2d_has_correct_first_and_second_derivatives(kernels, up, down, pad, kernel_shape, size):
    x, kernel = randn(1, 1, *size), randn(*kernel_shape).detach()
    assert torch.autograd.gradcheck(lambda x: kernels.upfirdn2d(x, kernel, up, down, pad), x, fast_mode=True)
    # The op is linear, so its own second derivative is zero; a square makes the check mean something.
    assert torch.autograd.gradgradcheck(lambda x: kernels.upfirdn2d(x, kernel, up, down, pad).square(), x, fast_mode=True)


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 3), (2, 3, 1, 2), (1, 2, 1, 2, 1)])
def test_fused_leaky_relu_has_correct_first_and_second_derivatives(kernels, shape):
    inputs = randn(*shape), randn(width(shape))
    assert torch.autograd.gradcheck(kernels.fused_leaky_relu, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *inputs: kernels.fused_leaky_relu(*inputs).square(), inputs, fast_mode=True)


def test_fused_leaky_relu_keeps_its_output_alone(kernels):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()), lambda x: x):
        y = kernels.fused_leaky_relu(randn(2, 3), randn(3))
    assert kept == [y.data_ptr()]


# --- half precision

@pytest.mark.parametrize("dtype", HALVES)
def test_upfirdn2d_rounds_only_its_result_to_half_precision(kernels, dtype):
    x, kernel = randn(1, 2, 5, 6, dtype=dtype), randn(4, 4, dtype=torch.float32).detach()
    wide = x.detach().double().requires_grad_()
    actual, exact = kernels.upfirdn2d(x, kernel, pad=(2, 1)), upfirdn2d_reference(wide, kernel, pad=(2, 1))
    assert actual.dtype == dtype
    assert_rounded_once(actual, exact)
    gradient = randn(*exact.shape, dtype=dtype).detach()
    assert_rounded_once(torch.autograd.grad(actual, x, gradient)[0], torch.autograd.grad(exact, wide, gradient.double())[0])


@pytest.mark.parametrize("dtype", HALVES)
def test_fused_leaky_relu_rounds_only_its_result_to_half_precision(kernels, dtype):
    x, bias = randn(2, 3, 4, dtype=dtype), randn(4, dtype=torch.float32)
    wide = x.detach().double().requires_grad_()
    actual, exact = kernels.fused_leaky_relu(x, bias), fused_leaky_relu_reference(wide, bias)
    assert actual.dtype == dtype
    assert_rounded_once(actual, exact)
    gradient = randn(*exact.shape, dtype=dtype).detach()
    assert_rounded_once(torch.autograd.grad(actual, x, gradient)[0], torch.autograd.grad(exact, wide, gradient.double())[0])


def test_the_gradient_of_the_bias_counts_in_float32(kernels):
    x, bias = torch.ones(1, 2, 1601, 1, device=DEVICE, dtype=torch.bfloat16), randn(2, dtype=torch.float32)
    grad_bias, = torch.autograd.grad(kernels.fused_leaky_relu(x, bias + 9, scale=1).sum(), bias)
    assert grad_bias.tolist() == [1601, 1601]                   # bfloat16 has no odd number beyond 256


# --- behind the public functions

def name_of(y):
    return type(y.grad_fn).__name__


def test_the_public_functions_use_the_kernels_where_they_can(kernels, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_for", lambda x: kernels)
    x, bias, kernel = randn(1, 3, 4, 4), randn(3), randn(2, 2)
    y = fused_leaky_relu(x, bias, 0.1, 2)
    assert name_of(y) == "_LeakyReLUBackward"
    assert_same(y, fused_leaky_relu_reference(x, bias, 0.1, 2))
    y = upfirdn2d(x, kernel.detach(), 2, 1, (1, 0))
    assert name_of(y) == "_ResampleBackward"
    assert_same(y, upfirdn2d_reference(x, kernel, 2, 1, (1, 0)))


def test_a_filter_that_learns_does_without_the_kernels(kernels, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_for", lambda x: kernels)
    x, kernel = randn(1, 3, 4, 4), randn(2, 2)
    gradients = [torch.autograd.grad(op(x, kernel).square().sum(), kernel) for op in (upfirdn2d, upfirdn2d_reference)]
    assert_same(*gradients[0], *gradients[1])


# --- a GPU

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_every_launch_compiles_for_an_h100(dtype, monkeypatch, tmp_path):
    """Launches become compilations with the arguments that they would have, which needs no GPU."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = load_kernels()
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    driver = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0,
                             get_current_target=lambda: target)
    monkeypatch.setattr(kernels.triton.runtime.driver, "_active", driver)
    programs = []
    monkeypatch.setattr(kernels.triton.runtime.JITFunction, "__getitem__", lambda kernel, grid: lambda *args, **kwargs: (
        programs.append(kernel.warmup(*args, grid=grid, **kwargs).asm["ptx"])))

    x = torch.zeros(2, 32, 8, 16, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    y = kernels.upfirdn2d(kernels.fused_leaky_relu(x, torch.zeros(32)), torch.ones(4, 4), up=2, pad=(2, 1))
    y.backward(torch.zeros_like(y))
    kernels.fused_leaky_relu(torch.zeros(2, 3, 4, 4, dtype=dtype), torch.zeros(3))
    pixel = torch.zeros(1, 1, 1, 1, dtype=dtype)                # what the dispatch tries out: every size and stride is 1
    kernels.upfirdn2d(kernels.fused_leaky_relu(pixel, pixel[0, 0, 0]), pixel[0, 0])
    assert len(programs) == 7 and all(".target sm_90" in program for program in programs)
    slope = f"0d{struct.pack('>d', 0.2).hex().upper()}"         # as PTX writes a double
    assert (slope in programs[0]) == (dtype == torch.float64)   # not rounded to float32 on its way
    assert all(("cvt.rn.bf16" in program) == (dtype == torch.bfloat16) for program in programs)     # rounds to nearest


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU with 16 GB")
def test_the_last_of_more_than_2_31_values_is_reached(kernels):
    x = torch.zeros(2, 1, 2**15, 2**15 + 2, device=DEVICE, dtype=torch.bfloat16)
    x[-1, -1, -1, -1] = -1
    assert kernels.fused_leaky_relu(x, None, 0.5, 1)[-1, -1, -1, -1] == -0.5
    assert kernels.upfirdn2d(x, torch.ones(1, 1, device=DEVICE))[-1, -1, -1, -1] == -1
