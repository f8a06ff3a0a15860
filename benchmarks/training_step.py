"""What one training step costs at the published sizes, with random weights: seconds, and memory above the models.

    python -m benchmarks.training_step                                        # 1024 px, 8 prompts at once
    python -m benchmarks.training_step --micro_batch 1                        # the same gradients, one prompt at a time
    python -m benchmarks.training_step --side 256 --batch_size 2 --steps 3

Prints one line of JSON. Generator (channel multiplier 2), CLIP ViT-B/32 and VGG-16 have the published shapes; time and
memory do not depend on the values of their weights.
"""

import json
import platform
import resource
import time
from collections.abc import Sequence

import open_clip
import torch
from torch import nn
from torchvision.models import vgg16

from attention.clip_models.released import OpenClip
from attention.config import DEVICE, Config, Precision, TrainConfig, option, parse_config
from attention.devices import checked_device
from attention.errors import exit_with_message
from attention.generator import StyleGAN2
from attention.images import area_resize
from attention.inversion.perceptual import RELU2_2, VGG_SIDE
from attention.method.regions import RegionClusters
from attention.training.captions import PhraseSampler
from attention.training.runs import build_editor
from attention.training.step import Learner, draw, gradients
from attention.worlds.ffhq import FFHQ
from attention.worlds.registry import configured
from attention.worlds.world import World

LAYER, REGIONS = 13, 20         # published; the layer counts from 1


class StepConfig(Config):
    """Options."""

    side: int = option(1024, "pixels of the generator's picture, a power of two", min=64, max=1024)
    batch_size: int = option(8, "prompts a step", min=2)
    micro_batch: int | None = option(None, "prompts at once", min=1)
    precision: Precision = option("fp32", "of synthesis; fp16 on a GPU only")
    steps: int = option(1, "steps to measure, after one that warms up", min=1)
    device: str = option("auto", DEVICE)


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure and print; returns what was printed."""
    config = parse_config(StepConfig, argv, __doc__)
    device = checked_device(config.device)
    torch.manual_seed(0)
    report = measure(config, random_world(config.side, vgg16().features[:RELU2_2], device))
    print(json.dumps(report))
    return report


def measure(config: StepConfig, world: World) -> dict:
    """The report of some steps in a world whose pictures have the configured side."""
    device = world.device
    train = configured(TrainConfig, domain=FFHQ.name, batch_size=config.batch_size, micro_batch=config.micro_batch,
                       precision=config.precision)
    channels = world.generator.layers[LAYER - 1].out_channels
    regions = RegionClusters(torch.randn(REGIONS, channels + 2 * (channels // 16)), LAYER - 1, world.name).to(device)
    learner = Learner.of(train, world, build_editor(train, world, regions))
    sampler = PhraseSampler(world.prompts + tuple(f"prompt {i}" for i in range(64)), seed=0)
    before, seconds = memory(device), []
    for step in range(config.steps + 1):
        start = time.perf_counter()
        # Halfway through a run: every term has its full weight, and the attention learns.
        gradients(learner, draw(learner, sampler, train.step // 2 + step))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {**config.model_dump(), "seconds_a_step": sorted(seconds[1:])[config.steps // 2],
            "peak_gib_above_models": (memory(device) - before) / 2**30, "models_gib": before / 2**30,
            "threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None, "torch": torch.__version__}


def random_world(side: int, vgg: nn.Module, device: torch.device) -> World:
    """FFHQ's world with random weights: a generator of this side, CLIP ViT-B/32, and this VGG-16 up to relu2_2."""
    clip = open_clip.create_model("ViT-B-32", pretrained=None, force_quick_gelu=True)
    return world_around(StyleGAN2(side), clip, vgg, device)


def world_around(generator: StyleGAN2, clip: nn.Module, vgg: nn.Module, device: torch.device, samples: int = 4096) -> World:
    """FFHQ's world with these networks in place of the published ones.

    Args:
        clip: of open_clip.
        vgg: VGG-16 up to relu2_2.
        samples: of the mean w.
    """
    for network in (generator, vgg):
        network.requires_grad_(False).eval().to(device)
    generator.set_mean_w(samples)
    return World(FFHQ, generator, "", device, clip=OpenClip(clip).to(device),
                 perceptual=lambda images: vgg(area_resize(images, VGG_SIDE)))


def memory(device: torch.device) -> int:
    """The most bytes in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    exit_with_message(main)
