"""Train the text mapper and its region attention.

    python -m attention.run_attention --domain drawn --run runs/drawn           # CPU, nothing to download
    python -m attention.run_attention --domain ffhq --run runs/ffhq
    torchrun --nproc_per_node 8 -m attention.run_attention --domain ffhq --batch_size 1

Needs RUN/regions.safetensors (or --cluster_path FILE) from clustering_feature. Writes editor.safetensors, checkpoints/,
config.json, metrics.jsonl, plot.png, tensorboard/ and samples/ into the run folder.
"""

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention import distributed
from attention.checkpoints import run_folder
from attention.config import TrainConfig, parse_config
from attention.domains import checked_device, domain_of, settled
from attention.editor import autocast
from attention.errors import UserError, exit_with_message
from attention.generator import rgb_fed_by
from attention.perceptual import perceptual_features
from attention.training import train


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, start more processes where the flags ask for them, train; returns the run folder."""
    config = parse_config(TrainConfig, argv, __doc__)
    device = checked_device(config.device)
    processes = distributed.process_count(config.gpu_id, device, config.multiprocessing_distributed)
    if processes == 1 or distributed.launched():
        if config.gpu_id is not None and device.type == "cuda" and not distributed.launched():
            config = replace(config, device=f"cuda:{config.gpu_id.split(',')[0]}")
        return run(config)
    distributed.start(processes, config.gpu_id, partial(run, config))
    return settled(config).run


def run(config: TrainConfig) -> Path:
    """Train in this process, alone or as one of several; returns the run folder."""
    config = settled(config)
    domain = domain_of(config)
    rgb_fed_by(domain.generator.layers, config.attention_layer - 1)     # refuses a layer that is not a conv layer
    autocast(config.precision, domain.device)                           # refuses fp16 on a CPU
    if config.compile:
        domain.generator.synthesis = compiled(domain.generator.synthesis)
    run_folder(config.run)
    return train(config, domain, perceptual_features(domain))


def compiled(synthesis: Callable) -> Callable:
    """The function through torch.compile. Styles stay outside: torch 2.14.1 compiles `EqualLinear` wrongly on a CPU.

    Raises:
        UserError: there is no C++ compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise UserError("--compile needs a C++ compiler, and none of c++, g++ and clang++ is here; install one or leave "
                        "--compile out")
    return torch.compile(synthesis)


if __name__ == "__main__":
    # By its name in the package: the processes that it may start have to find it there.
    exit_with_message(importlib.import_module("attention.run_attention").main)
