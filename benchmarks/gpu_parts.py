"""The parts of benchmarks/gpu.py: each a function of the device whose rows come one by one, tiny on a CPU.

A row is named by its "what"; its "fault", if it has one, says which value is wrong. Times are medians after warming up: of
edits one by one, as a user waits for them; of all else some in a row, so that the GPU is measured and not how soon Python
sets it to work. A goal of speed that is missed is no fault: the report has it beside the figure.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from attention.config import TrainConfig
from attention.devices import autocast
from attention.editing.session import Editor
from attention.files.published import ROOT
from attention.generator import Generator, StyleGAN2, conv_layers, sample_z
from attention.generator.layers import fir_kernel, modulated_conv2d
from attention.images import psnr, to_pixels
from attention.method.editor import RegionEditor, Source
from attention.method.regions import fit_kmeans, lloyd_step
from attention.ops import fused_leaky_relu_reference, upfirdn2d_reference
from attention.training.captions import PhraseSampler
from attention.training.step import Learner, draw, gradients
from attention.worlds.ffhq import FFHQ
from attention.worlds.registry import configured
from attention.worlds.world import World
from benchmarks import editing, plain, training_step
from benchmarks.items import ITEMS, REGIONS, Models, mobile_network
from benchmarks.kmeans import published_points
from benchmarks.measure import check, give_back, seconds_of, wait

Row = dict[str, object]

NOT_HERE = "not on a CPU"
WARMING, REPEATS, IN_A_ROW, EDITS = 3, 5, 5, 30
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
# dtype -> how far from float64, relative and in the norm.
EXACT = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float64: 1e-12}
PRECISIONS, GPU_ONLY, COMPILED = ("fp32", "tf32", "bf16", "fp16"), ("tf32", "fp16"), "bf16, compiled"
WANTED_PSNR, ANOTHER_PICTURE = 40.0, 20.0               # dB
MOST_GB, MOST_SECONDS = 8.0, 0.020                      # of eight prompts; of an edit
FASTER, SHARE = 7.0, 0.4                                # of a step, against the plain one
LOOSER, SAME_GRADIENT = 0.01, 1e-4
PROMPTS = 4                                             # of all processes together


# --- measuring


def sized(device: torch.device, full: int, tiny: int) -> int:
    """The size on a GPU, or that of the rehearsal."""
    return full if device.type == "cuda" else tiny


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call: the median over rows of calls, after some that warm up."""
    for _ in range(sized(device, WARMING, 0)):
        run()
    calls, taken = sized(device, IN_A_ROW, 1), []
    for _ in range(sized(device, REPEATS, 1)):
        wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait(device)
        taken.append(1000 * (time.perf_counter() - start) / calls)
    return median(taken)


def peak_gib(run: Callable[[], object], device: torch.device) -> float | None:
    """GiB of the GPU that a call needs at most, above what is there before."""
    if device.type == "cpu":
        return None
    give_back(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30


def compiled(function: Callable, device: torch.device) -> Callable:
    """Through torch.compile, anew; a CPU traces it and then runs it as it is, for compiling takes half a minute there."""
    torch.compiler.reset()
    return torch.compile(function, backend="inductor" if device.type == "cuda" else "eager", dynamic=False)


@contextmanager
def in_precision(name: str, device: torch.device) -> Iterator[None]:
    """Without gradients, in a precision of PRECISIONS; torch's own default lets convolutions of float32 run in tf32."""
    with torch.no_grad(), autocast("fp32" if name == "tf32" else name, device), tf32(name == "tf32"):
        yield


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products and convolutions of float32 may run in tf32."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def distance(actual: Tensor, expected: Tensor) -> float:
    """Of two tensors in the norm, relative to the second; infinite for anything that is not a number."""
    actual, expected = actual.detach().double(), expected.detach().double()
    found = float((actual - expected).norm() / expected.norm())
    return found if found < float("inf") else float("inf")


def fault(value: float, most: float) -> str | None:
    """What is wrong with a value above the most that it may be."""
    return None if value <= most else f"{value:.2e}, at most {most:.0e} is allowed"


def goal(met: bool, device: torch.device) -> str:
    """Whether a goal of speed or memory is met; tiny sizes on a CPU do not say."""
    return NOT_HERE if device.type == "cpu" else "met" if met else "missed"


# --- tests and kernels


def tests(device: torch.device) -> Iterator[Row]:
    """Those marked `gpu`, and on a GPU all tests of the kernels, which run compiled there."""
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "@pytest.mark.gpu" in path.read_text()]
    asked = [["-m", "gpu", *files], ["-n", "4", "tests/test_triton.py"]]
    for arguments in asked[:sized(device, 2, 1)]:
        command, said = [sys.executable, "-m", "pytest", "-vv", "-rs", "-p", "no:cacheprovider", *arguments], ""
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            for line in running.stdout or ():           # at once into the log: what is stopped tells where it was
                print(line, end="", flush=True)
                said = line.strip("= \n") or said
        wrong = running.returncode != 0 or (device.type == "cuda" and "skipped" in said)
        names = " ".join(Path(word).name for word in arguments)
        yield {"what": f"pytest {names}", "said": said, "fault": f"code {running.returncode}, {said}" if wrong else None}


def kernels(device: torch.device) -> Iterator[Row]:
    """Both operations in Triton against the plain form in every dtype and layout: values, both derivatives, times."""
    triton = triton_form(device)
    fir = fir_kernel().to(device)
    operations = {
        "fused_leaky_relu": (triton.fused_leaky_relu, fused_leaky_relu_reference),
        "upfirdn2d, blur": (lambda x, _: triton.upfirdn2d(x, fir, pad=(1, 1)),
                            lambda x, _: upfirdn2d_reference(x, fir, pad=(1, 1))),
        "upfirdn2d, doubling": (lambda x, _: triton.upfirdn2d(x, fir, up=2, pad=(2, 1)),
                                lambda x, _: upfirdn2d_reference(x, fir, up=2, pad=(2, 1))),
    }
    for name, (ours, reference) in operations.items():
        for dtype, most in list(EXACT.items())[:sized(device, len(EXACT), 2)]:
            for layout, order in LAYOUTS.items():
                found = differences(ours, reference, device, dtype, order)
                yield {"what": f"{name}, {str(dtype)[6:]}, {layout}", **found, "fault": fault(max(found.values()), most),
                       **times(ours, reference, device, dtype, order)}


def triton_form(device: torch.device) -> ModuleType:
    """The module of kernels, on a CPU in Triton's interpreter; without Triton a rehearsal has the plain torch of a CPU."""
    if device.type == "cpu":
        if find_spec("triton") is None:
            return importlib.import_module("attention.ops")
        os.environ["TRITON_INTERPRET"] = "1"            # read when the kernels are defined, on import
    return importlib.import_module("attention.ops.triton_kernels")


def differences(ours: Callable, reference: Callable, device: torch.device, dtype: torch.dtype,
                order: torch.memory_format) -> dict[str, float]:
    """How far value, gradients and second derivatives are from those of the definition in float64, on odd sizes."""
    batch, channels, side = sized(device, 2, 1), sized(device, 32, 3), sized(device, 65, 3)
    x = torch.randn(batch, channels, side, side + 2, device=device).to(dtype).contiguous(memory_format=order)
    bias = torch.randn(channels, device=device).to(dtype)
    found = derivatives(ours, x, bias, dtype)
    exact = derivatives(reference, x.double(), bias.double(), dtype)
    names = ("value", "gradient", "gradient of the bias", "second derivative")
    return {name: distance(one, other) for name, one, other in zip(names, found, exact, strict=True) if other.any()}


def derivatives(operation: Callable, x: Tensor, bias: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The value of operation(x, bias), its gradients, and the derivative of these by the gradient that comes in.

    What comes in is random, the same at every call, and rounded to `dtype` whatever that of x.
    """
    random = torch.Generator().manual_seed(0)

    def like(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=random).to(dtype).to(value)

    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = operation(x, bias)
    incoming = like(y).requires_grad_()
    inner = torch.autograd.grad(y, (x, bias), incoming, create_graph=True, materialize_grads=True)
    learned = [gradient for gradient in inner if gradient.requires_grad]        # not that of a bias that has no use
    second, = torch.autograd.grad(learned, incoming, [like(gradient) for gradient in learned])
    return [y, *inner, second]


def times(ours: Callable, reference: Callable, device: torch.device, dtype: torch.dtype,
          order: torch.memory_format) -> dict[str, float | str]:
    """Milliseconds forward and back to the map, the largest of the 1024 px generator."""
    channels, side = sized(device, 32, 2), sized(device, 1024, 4)
    x = torch.randn(1, channels, side, side, device=device).to(dtype).contiguous(memory_format=order).requires_grad_()
    bias = torch.randn(channels, device=device).to(dtype)
    incoming = torch.randn_like(reference(x, bias))

    def taken(operation: Callable) -> float:
        return milliseconds(lambda: torch.autograd.grad(operation(x, bias), x, incoming), device)

    found = {"ours, ms": taken(ours), "plain, ms": taken(reference), "compiled, ms": taken(compiled(reference, device))}
    return {**found, "speed": goal(found["ours, ms"] <= found["compiled, ms"], device)}


def convolutions(device: torch.device) -> Iterator[Row]:
    """Modulated convolution as grouped weights (plain) and as scales, for each layer of the 1024 px generator."""
    generator_layers = conv_layers(StyleGAN2(sized(device, 1024, 16), style_dim=1, mapping_layers=0).layers)
    blur = fir_kernel(gain=4).to(device)
    for number, layer in enumerate(generator_layers):
        doubles = number % 2 == 1
        side = sized(device, layer.resolution // 2 if doubles else layer.resolution, 4)
        width = (layer.out_channels, layer.in_channels) if device.type == "cuda" else (8, 8)
        for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
            for batch in (1, 4):
                x = torch.randn(batch, width[1], side, side, device=device).to(dtype)
                weight = torch.randn(*width, 3, 3, device=device).to(dtype)
                style = 1 + 0.2 * torch.randn(batch, width[1], device=device).to(dtype)
                kernel = blur.to(dtype) if doubles else None
                found = grouped_and_scaled(x, weight, style, kernel, device)
                yield {"what": f"layer {layer.index + 1}, {layer.resolution} px, {width[1]} to {width[0]}, "
                               f"{str(dtype)[6:]}, batch {batch}", **found, "fault": fault(found["difference"], most),
                       "speed": goal(found["scaled, ms"] <= found["grouped, ms"], device)}


@torch.no_grad()
def grouped_and_scaled(x: Tensor, weight: Tensor, style: Tensor, blur: Tensor | None,
                       device: torch.device) -> dict[str, float]:
    """Milliseconds of both forms and how far their results differ, each in the memory order that it is used with."""
    near, scale = torch.channels_last, (weight.shape[1] * 9) ** -0.5
    pixels, weights = x.contiguous(memory_format=near), (weight * scale).contiguous(memory_format=near)

    def grouped() -> Tensor:
        return plain.modulated_conv2d(x, weight[None], style, blur=blur)

    def scaled() -> Tensor:
        return modulated_conv2d(pixels, weights, style, up_kernel=blur)

    with tf32(False):
        return {"difference": distance(scaled(), grouped()), "grouped, ms": milliseconds(grouped, device),
                "scaled, ms": milliseconds(scaled, device)}


# --- generators and edits


def generators(kind: str, side: int, device: torch.device) -> Iterator[Row]:
    """One generator with random weights in all precisions, eager and compiled: time, memory, PSNR to float32."""
    network = made(kind, side, device).requires_grad_(False).eval().to(device)
    styles = network.styles(network.mapping(sample_z(1, network.style_dim, seed=1).to(device)))
    exact = pictured(network.synthesis, styles, "fp32", device)
    name = f"{kind} {network.resolution} px"
    contrast = 2 * float(exact.std())                     # random weights make pictures of any contrast
    for way in ("eager", "compiled"):
        for precision in PRECISIONS:
            if device.type == "cpu" and precision in GPU_ONLY:
                yield {"what": f"{name}, {precision}, {way}", "note": NOT_HERE}
                continue
            synthesis = network.synthesis if way == "eager" else compiled(network.synthesis, device)
            run = partial(pictured, synthesis, styles, precision, device)
            decibels = float(psnr(run() / contrast, (exact / contrast).clamp(-1, 1)).clamp(max=200))
            wrong = None if decibels >= ANOTHER_PICTURE else f"{decibels:.1f} dB from float32, which is another picture"
            yield {"what": f"{name}, {precision}, {way}", "ms a picture": milliseconds(run, device),
                   "GiB": peak_gib(run, device), "PSNR to fp32, dB": decibels, "fault": wrong,
                   "40 dB": goal(decibels >= WANTED_PSNR, device)}


def made(kind: str, side: int, device: torch.device) -> Generator:
    """A generator of the published widths, or a narrow one for the rehearsal."""
    torch.manual_seed(0)
    if kind == "MobileStyleGAN":
        return mobile_network(sized(device, 1024, 32), thin=device.type == "cpu")
    return StyleGAN2(side) if device.type == "cuda" else StyleGAN2(8, 8, 2, channels={4: 8, 8: 8})


def pictured(synthesis: Callable, styles: Sequence[Tensor], precision: str, device: torch.device) -> Tensor:
    """A picture (1, 3, R, R) float32."""
    with in_precision(precision, device):
        return synthesis(styles, feature_side=0).image.float()


def edit(device: torch.device) -> Iterator[Row]:
    """What a user waits for at 1024 px, a text in and the picture's pixels out: through the session, and by itself."""
    models = Models(sized(device, 1024, 64), device, thin=device.type == "cpu")
    editor, world = models.editor(configured(TrainConfig, domain=FFHQ.name)), models.world
    session, repeats = Editor(editor, world, "random"), sized(device, EDITS, 1)
    for name, actions in editing.actions_of(session, repeats).items():
        yield waited(f"session, {name}", editing.timed(actions)[0], device)
    source = editor.source(world.sample_w(1, seed=1))
    for precision in (*PRECISIONS, COMPILED):
        if device.type == "cpu" and precision in GPU_ONLY:
            continue
        if precision == COMPILED:
            world.generator.synthesis = compiled(world.generator.synthesis, device)      # type: ignore[method-assign]
        run = partial(edited, editor, world, source, precision.removesuffix(", compiled"))
        for _ in range(sized(device, WARMING, 0)):
            run()
        yield waited(f"editor, {precision}", [seconds_of(run, device) for _ in range(repeats)], device)


def edited(editor: RegionEditor, world: World, source: Source, precision: str) -> np.ndarray:
    """A text's edit of a face as pixels (1, R, R, 3) uint8; CLIP reads in float32, as everywhere."""
    with torch.no_grad(), tf32(precision == "tf32"):
        text = world.clip.encode_text(["grey hair"])
    with in_precision(precision, world.device):
        return to_pixels(editor(source, text, text).image)


def waited(what: str, seconds: list[float], device: torch.device) -> Row:
    """Milliseconds of an action, held against the goal."""
    return {"what": what, "ms": 1000 * median(seconds), "least": 1000 * min(seconds), "most": 1000 * max(seconds),
            "20 ms": goal(median(seconds) <= MOST_SECONDS, device)}


# --- training


def step(device: torch.device) -> Iterator[Row]:
    """A training step at the published setting against the plain one: gradients, time, memory."""
    thin, item, repeats = device.type == "cpu", ITEMS["step_image"], sized(device, REPEATS, 1)
    with tf32(False):
        difference = check("step_image", item, Models(64, device, prompts=2, thin=thin, exact=True))
    yield {"what": "64 px, gradients and losses", "difference": difference}
    side = sized(device, 1024, 64)
    pair = item.build(Models(side, device, thin=thin))
    sides = {"plain": pair.plain, "ours": pair.ours}
    for allowed in (False, True):
        with tf32(allowed):
            for run in sides.values():
                run()
            taken = {name: median(seconds_of(run, device) for _ in range(repeats)) for name, run in sides.items()}
            gib = {name: peak_gib(run, device) for name, run in sides.items()}
        faster = taken["plain"] / taken["ours"]
        share = gib["ours"] / gib["plain"] if gib["ours"] is not None and gib["plain"] else None
        yield {"what": f"{side} px, {'tf32' if allowed else 'fp32'}", "plain, s": taken["plain"], "ours, s": taken["ours"],
               "times faster": faster, "plain, GiB": gib["plain"], "ours, GiB": gib["ours"], "share of memory": share,
               "7 times": goal(faster >= FASTER, device), "0.4": goal(share is not None and share <= SHARE, device)}


def eight_prompts(device: torch.device) -> Iterator[Row]:
    """A training step with eight prompts in bf16, one after another: time, and memory with all models."""
    side, prompts = sized(device, 1024, 64), sized(device, 8, 2)
    config = training_step.StepConfig(side=side, batch_size=prompts, micro_batch=1, precision="bf16",
                                      steps=sized(device, REPEATS, 1), device=str(device))
    report = training_step.measure(config, Models(side, device, thin=device.type == "cpu").world)
    whole = (report["models_gib"] + report["peak_gib_above_models"]) * 2**30 / 1e9
    yield {"what": f"{prompts} prompts, {side} px", "s a step": report["seconds_a_step"],
           "models, GiB": report["models_gib"], "GiB above": report["peak_gib_above_models"], "GB in all": whole,
           "8 GB": goal(whole <= MOST_GB, device)}


def processes(device: torch.device) -> Iterator[Row]:
    """Two processes' gradients against those of one: by gloo on one device and, where there are more GPUs, by NCCL."""
    with tempfile.TemporaryDirectory() as folder:
        alone = gradients_in(1, "gloo", [device], Path(folder))[0]
        yield in_two("gloo", [device, device], alone, Path(folder))
        if torch.cuda.device_count() > 1:
            yield in_two("nccl", [torch.device("cuda", number) for number in range(2)], alone, Path(folder))
        else:
            yield {"what": "2 processes, nccl", "note": "needs two GPUs"}


def in_two(backend: str, devices: Sequence[torch.device], alone: Tensor, folder: Path) -> Row:
    """How far the gradients of two processes are from those of one."""
    start = time.perf_counter()
    most = max(distance(gradient, alone) for gradient in gradients_in(2, backend, devices, folder))
    return {"what": f"2 processes, {backend}", "difference": most, "s with loading": time.perf_counter() - start,
            "fault": fault(most, SAME_GRADIENT)}


def gradients_in(count: int, backend: str, devices: Sequence[torch.device], folder: Path) -> list[Tensor]:
    """The gradients of a step that each of `count` processes has at its end.

    Raises:
        RuntimeError: one of them failed; the log has its own words.
    """
    context = get_context("fork")               # of a process that has not touched the GPU and has imported everything
    started = [context.Process(target=step_of_one, args=(rank, count, backend, device, folder))
               for rank, device in enumerate(devices[:count])]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if codes := [process.exitcode for process in started if process.exitcode]:
        raise RuntimeError(f"{backend}: a process ended with {codes[0]}")
    return [torch.load(folder / f"{backend} {count} {rank}", weights_only=True) for rank in range(count)]


def step_of_one(rank: int, count: int, backend: str, device: torch.device, folder: Path) -> None:
    """In one of the processes: its step of PROMPTS prompts in all, and the gradients written to the folder."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
        dist.init_process_group(backend, init_method=f"file://{folder}/{backend}", rank=rank, world_size=count)
    models = Models(sized(device, 256, 64), device, thin=device.type == "cpu", exact=True)
    config = configured(TrainConfig, domain=FFHQ.name, batch_size=PROMPTS // count)
    learner = Learner.of(config, models.world, models.editor(config))
    with tf32(False):
        gradients(learner, draw(learner, PhraseSampler(models.world.prompts, seed=0), config.step // 2))
    found = [parameter.grad.flatten() for parameter in learner.editor.parameters() if parameter.grad is not None]
    torch.save(torch.cat(found).cpu(), folder / f"{backend} {count} {rank}")
    if count > 1:
        dist.destroy_process_group()


def clustering(device: torch.device) -> Iterator[Row]:
    """Clustering of 409,600 points into 20 regions: time, memory, the same bits twice, inertia against the CPU's."""
    points = torch.from_numpy(published_points(sized(device, 100, 1), side=sized(device, 1024, 64), device=device))
    points = points[:sized(device, len(points), 256)]
    there, found = points.to(device), {}
    for name, own in (("GPU", there), ("CPU", points)):
        start = time.perf_counter()
        found[name] = fit_kmeans(own, REGIONS, seed=0).to(device)
        yield {"what": f"{name if device.type == 'cuda' else 'CPU'}, {'first time' if name == 'GPU' else 'to compare'}",
               "s": time.perf_counter() - start}
    run, repeats = partial(fit_kmeans, there, REGIONS, 0), sized(device, REPEATS, 1)
    inertia = {name: lloyd_step(there, centroids)[1] for name, centroids in found.items()}
    looser, same = inertia["GPU"] / inertia["CPU"] - 1, torch.equal(run(), found["GPU"])
    wrong = fault(looser, LOOSER) if same else "another time the centroids are others"
    yield {"what": f"{len(points):,} points", "s": median(seconds_of(run, device) for _ in range(repeats)),
           "GiB": peak_gib(run, device), "looser than on the CPU": looser, "fault": wrong}
