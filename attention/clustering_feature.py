"""Find the regions of a domain's faces: k-means over the blend layer's features.

    python -m attention.clustering_feature --domain drawn --run runs/drawn
    python -m attention.clustering_feature --domain ffhq --run runs/ffhq --attention_layer 13 --cluster_num 20

Writes RUN/regions.safetensors, RUN/regions.png (regions laid over sample faces) and, on drawn faces, RUN/regions.json
(how well the regions match the parts).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.checkpoints import run_folder, write_atomically
from attention.config import ClusterConfig, parse_config
from attention.domains import Domain, domain_of, settled
from attention.drawn.truth import regions_against_parts
from attention.errors import exit_with_message
from attention.generator import rgb_fed_by
from attention.regions import MAX_POINTS, RegionClusters, fit_kmeans, position_planes, region_overlay, region_points

OVERLAY_FACES = 8


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, sample, fit, save; returns the path of the regions."""
    config = settled(parse_config(ClusterConfig, argv, __doc__))
    domain = domain_of(config)
    folder = run_folder(config.run)
    layer = config.attention_layer - 1
    rgb_fed_by(domain.generator.layers, layer)                          # refuses a layer that is not a conv layer

    centroids = fit_kmeans(sample_points(domain, config, layer), config.cluster_num, config.seed)
    regions = RegionClusters(centroids, layer, domain.name, config.seed, domain.generator_hash, config.position_weight,
                             config.enlarge).to(domain.device)
    regions.save(folder / "regions.safetensors")

    overlay = sample_overlay(domain, regions, config.seed + 1)
    write_atomically(folder / "regions.png", lambda path: Image.fromarray(overlay).save(path, format="PNG"))
    if domain.entry.drawn:
        report = regions_against_parts(domain, regions)
        write_atomically(folder / "regions.json", lambda path: path.write_text(json.dumps(report, indent=1)))
        parts = ", ".join(f"{part} {value:.2f}" for part, value in report["best_union_iou"].items())
        print(f"adjusted mutual information {report['adjusted_mutual_information']:.3f}; best union IoU: {parts}")
    print(f"{config.cluster_num} regions of layer {config.attention_layer} in {folder / 'regions.safetensors'}")
    return folder / "regions.safetensors"


@torch.no_grad()
def sample_points(domain: Domain, config: ClusterConfig, layer: int) -> torch.Tensor:
    """(N, D) features of the sampled faces; from each batch an equal random share, at most MAX_POINTS in all.

    They are written in place, batch by batch: joining the shares at the end would need twice the memory.
    """
    spec, random = domain.generator.layers[layer], np.random.default_rng(config.seed)
    share = min(max(1, MAX_POINTS // config.step), config.batch_size * (spec.resolution * config.enlarge)**2)
    width = spec.out_channels + 2 * position_planes(spec.out_channels)
    sampled = torch.empty(config.step * share, width, device=domain.device)
    w = domain.sample_w(config.step * config.batch_size, config.seed)
    for rows, part in zip(sampled.split(share), tqdm(w.split(config.batch_size), desc="features"), strict=True):
        features = domain.generator.synthesis(domain.generator.styles(part), until=layer).features
        points = region_points(features[layer], config.position_weight, config.enlarge)
        chosen = np.sort(random.permutation(len(points))[:share])
        rows.copy_(points[torch.from_numpy(chosen).to(domain.device)])
    return sampled


@torch.no_grad()
def sample_overlay(domain: Domain, regions: RegionClusters, seed: int) -> np.ndarray:
    """(2 * R, OVERLAY_FACES * R, 3) uint8 `region_overlay` of seeded faces, made one by one to save memory."""
    side, pictures = domain.generator.layers[regions.layer].resolution, []
    for w in domain.sample_w(OVERLAY_FACES, seed).split(1):
        image, features = domain.generator.synthesis(domain.generator.styles(w), feature_side=side)
        pictures.append(region_overlay(image, regions.assign(features[regions.layer])))
    return np.concatenate(pictures, axis=1)


if __name__ == "__main__":
    exit_with_message(main)
