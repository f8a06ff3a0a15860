"""Train the text mapper and its region attention.

    python -m attention.run_attention --domain drawn --run runs/drawn           # CPU, nothing to download
    python -m attention.run_attention --domain ffhq --run runs/ffhq --device cuda

Needs RUN/regions.safetensors (or --cluster_path FILE) from clustering_feature. Writes config.json, editor.safetensors,
state.pt, metrics.jsonl and samples/ into the run folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.checkpoints import run_folder
from attention.config import GENERAL, RECIPES, TrainConfig, parse_config, resolve
from attention.domains import domain_entry, load_domain
from attention.errors import exit_with_message
from attention.generator import rgb_fed_by
from attention.perceptual import perceptual_features
from attention.training import train


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, load the domain, train; returns the run folder."""
    config = parse_config(TrainConfig, argv, __doc__)
    config = resolve(config, RECIPES[config.recipe], domain_entry(config.domain).settings, GENERAL)
    domain = load_domain(config.domain, config.ckpt, config.device)
    rgb_fed_by(domain.generator.layers, config.attention_layer - 1)     # refuses a layer that is not a conv layer
    run_folder(config.run)
    return train(config, domain, perceptual_features(domain))


if __name__ == "__main__":
    exit_with_message(main)
