"""Train the text mapper and its region attention.

    python -m attention.run_attention --domain drawn --run runs/drawn           # CPU, nothing to download
    python -m attention.run_attention --domain ffhq --run runs/ffhq
    torchrun --nproc_per_node 8 -m attention.run_attention --domain ffhq --batch_size 1

Needs RUN/regions.safetensors (or --cluster_path FILE) from clustering_feature, or --init EDITOR, whose weights and regions
it then starts from (with --attention_start 1.15 its attention stays as it is). A stopped run ends with exit code 128 + the
signal's number and goes on with --resume auto. Writes editor.safetensors, checkpoints/,
config.json, metrics.jsonl, plot.png, tensorboard/ and samples/ into the run folder.
"""

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import TrainConfig, parse_config
from attention.errors import exit_with_message
from attention.extras import need
from attention.processes import launched, rank, restarts
from attention.worlds.registry import world_defaults


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, start more processes where the flags ask for them, train; returns the run folder."""
    config = parse_config(TrainConfig, argv, __doc__, world_defaults)
    need("training", "training")

    from attention.training.folder import refuse_run, refuse_strange
    if config.resume is None and rank() == 0 and restarts() == 0:
        refuse_run(config.run, config.overwrite, "a new training")
        refuse_strange(config.run, config.overwrite)

    from attention.devices import checked_device
    from attention.training import distributed
    from attention.training.loop import run
    device = checked_device(config.device)
    processes = distributed.process_count(config.gpu_id, device, config.multiprocessing_distributed)
    if launched():
        distributed.check_count(processes)
        return run(config)
    if processes > 1:
        distributed.start(processes, config.gpu_id, partial(run, config))
        return config.run
    if config.gpu_id is not None and device.type == "cuda":
        config = config.replaced(device=f"cuda:{config.gpu_id.split(',')[0]}")
    return run(config)


if __name__ == "__main__":
    # By its name in the package: the processes that it may start have to find it there.
    exit_with_message(importlib.import_module("attention.run_attention").main)
