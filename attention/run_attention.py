"""Train the text mapper and its region attention.

    python -m attention.run_attention --domain drawn --run runs/drawn           # CPU, nothing to download
    python -m attention.run_attention --domain ffhq --run runs/ffhq
    torchrun --nproc_per_node 8 -m attention.run_attention --domain ffhq --batch_size 1

Needs RUN/regions.safetensors (or --cluster_path FILE) from clustering_feature. Writes editor.safetensors, checkpoints/,
config.json, metrics.jsonl, plot.png, tensorboard/ and samples/ into the run folder.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention import distributed
from attention.checkpoints import run_folder
from attention.config import TrainConfig, parse_config
from attention.domains import checked_device, domain_of, settled
from attention.errors import exit_with_message
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
    run_folder(config.run)
    return train(config, domain, perceptual_features(domain))


if __name__ == "__main__":
    # By its name in the package: the processes that it may start have to find it there.
    exit_with_message(importlib.import_module("attention.run_attention").main)
