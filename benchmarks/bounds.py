"""What bounds the speed of ours, and what precision and compilation do to it: figures in the text of docs/results.md.

    python -m benchmarks.bounds

Prints one line of JSON: seconds of the 1024 px generator and of its convolutions alone, the share of matrix products in
mapper, attention and regions, the worst PSNR of bf16 edits by the shipped editor, and what torch.compile gains there.
"""

import json
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from attention.devices import autocast
from attention.errors import exit_with_message
from attention.evaluation.generated import median_seconds
from attention.files.published import SHIPPED
from attention.generator import conv_layers
from attention.training.loop import compiled
from attention.training.runs import load_run
from benchmarks.items import ITEMS, Models

REPEATS, FACES, PROMPTS = 5, 16, 16
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


def main(argv: object = None) -> dict:
    """Measure and print on the CPU; returns what was printed."""
    models = Models(1024, torch.device("cpu"))
    report: dict[str, float] = {"threads": torch.get_num_threads()}
    for precision in ("fp32", "bf16"):
        report[f"convolutions_{precision}"] = convolutions(models, precision)
        report[f"generator_{precision}"] = median_seconds(generator(models, precision), REPEATS)
    report |= {**products(models), "worst_psnr_of_bf16_edits": worst_psnr(), "compiled_times_faster": compile_gain()}
    print(json.dumps(report))
    return report


def generator(models: Models, precision: str) -> Callable[[], object]:
    """One picture and all its features."""
    def run() -> None:
        with torch.no_grad(), autocast(precision, models.device):
            models.world.generator.synthesis(models.styles)
    return run


@torch.no_grad()
def convolutions(models: Models, precision: str) -> float:
    """Seconds of the generator's 3x3 convolutions alone, one after another, maps and weights channels-last."""
    total, dtype = 0.0, torch.bfloat16 if precision == "bf16" else torch.float32
    for number, layer in enumerate(conv_layers(models.world.generator.layers)):
        doubles = number % 2 == 1
        side = layer.resolution // 2 if doubles else layer.resolution
        x = torch.randn(1, layer.in_channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        shape = (layer.in_channels, layer.out_channels) if doubles else (layer.out_channels, layer.in_channels)
        weight = torch.randn(*shape, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
        if doubles:
            total += median_seconds(partial(F.conv_transpose2d, x, weight, stride=2), REPEATS)
        else:
            total += median_seconds(partial(F.conv2d, x, weight, padding=1), REPEATS)
    return total


def products(models: Models) -> dict[str, float]:
    """Milliseconds of mapper, attention and regions, of the matrix products among them, and the number of operations."""
    run = ITEMS["attention"].build(models).ours
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    own = {event.key: event.self_cpu_time_total / 1e3 for event in found.key_averages()}
    return {"attention_ms": sum(own.values()), "attention_products_ms": sum(own.get(name, 0.0) for name in PRODUCTS),
            "attention_operations": sum(event.count for event in found.key_averages() if event.key.startswith("aten::"))}


@torch.no_grad()
def worst_psnr() -> float:
    """The least PSNR in dB of any edit in bf16 against float32, all prompts of the drawn faces."""
    editor, world, _ = load_run(SHIPPED, device="cpu")
    source, worst = editor.source(world.sample_w(FACES, seed=77)), []
    for row in world.clip.encode_text(list(world.prompts)):
        text, images = row.expand(FACES, -1), []
        for precision in ("fp32", "bf16"):
            with autocast(precision, world.device):
                images.append(editor(source, text, text).image.clamp(-1, 1))
        worst.append(float(10 * torch.log10(4 / (images[0] - images[1]).square().mean(dim=(1, 2, 3)).max())))
    return min(worst)


def compile_gain() -> float:
    """How many times faster compiled synthesis edits PROMPTS prompts of drawn faces, forward and backward, in float32."""
    editor, world, _ = load_run(SHIPPED, device="cpu")
    source, text = editor.source(world.sample_w(1, seed=1)), torch.randn(PROMPTS, world.clip.dim)
    editor.mapper.requires_grad_(True)

    def step() -> None:
        editor(source, text, text, straight_through=True).image.square().mean().backward()

    plain = median_seconds(step, REPEATS)
    world.generator.synthesis = compiled(world.generator.synthesis)             # type: ignore[method-assign]
    return plain / median_seconds(step, REPEATS)


if __name__ == "__main__":
    exit_with_message(main)
