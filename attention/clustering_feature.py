"""Find the regions of a world's faces: k-means over the blend layer's features.

    python -m attention.clustering_feature --domain drawn --run runs/drawn
    python -m attention.clustering_feature --domain ffhq --run runs/ffhq --attention_layer 13 --cluster_num 20

Writes RUN/regions.safetensors, RUN/regions.png (regions laid over sample faces) and, where the true parts of faces are
known, RUN/regions.json (how well the regions match them).
"""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import ClusterConfig, parse_config
from attention.errors import exit_with_message
from attention.extras import need
from attention.worlds.registry import world_defaults, world_of

REGIONS = "regions.safetensors"


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, sample, fit, save; returns the path of the regions."""
    config = parse_config(ClusterConfig, argv, __doc__, world_defaults)
    need("training", "finding regions")

    from attention.training.folder import claimed, refuse_run, refuse_strange
    refuse_run(config.run, config.overwrite, "other regions than its own")
    refuse_strange(config.run, config.overwrite, ("regions.png", "regions.json"), mark=REGIONS)
    with claimed(config.run):
        return write_regions(config)


def write_regions(config: ClusterConfig) -> Path:
    """Fit the regions that the options name and write all that is to be seen of them; returns their path."""
    from attention.evaluation.regions import regions_against_parts
    from attention.files.disk import write_picture, write_text
    from attention.files.regions import save_regions
    from attention.training.clustering import fit_regions, sample_overlay
    world, folder = world_of(config), config.run
    if world.has_truth:
        world.truth                                             # noqa: B018  (loaded now, so that it fails now)
    regions = fit_regions(world, config)
    if (folder / REGIONS).exists() and not config.overwrite:
        warnings.warn(f"the regions in {folder / REGIONS} are replaced", stacklevel=2)
    save_regions(regions, folder / REGIONS)
    write_picture(folder / "regions.png", sample_overlay(world, regions, config.seed + 1))
    if world.has_truth:
        report = regions_against_parts(world, regions)
        write_text(folder / "regions.json", json.dumps(report, indent=1))
        parts = ", ".join(f"{part} {value:.2f}" for part, value in report["best_union_iou"].items())
        print(f"adjusted mutual information {report['adjusted_mutual_information']:.3f}; best union IoU: {parts}")
    print(f"{config.cluster_num} regions of layer {config.attention_layer} in {folder / REGIONS}")
    return folder / REGIONS


if __name__ == "__main__":
    exit_with_message(main)
