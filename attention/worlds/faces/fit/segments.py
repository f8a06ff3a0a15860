"""Segments (worlds/faces/parts.py): k-means clusters of the features of the 128 px block, named by hand."""

from pathlib import Path

import numpy as np
import torch

from attention.files.safetensors import write_safetensors
from attention.generator import Generator, sample_z
from attention.method.regions import RegionClusters, fit_kmeans, region_points
from attention.worlds.faces.parts import KIND, SEGMENTS

LAYER, CLUSTERS, SEED = 15, 72, 3
FACES, TRUNCATIONS, SHARE = 24, (0.7, 0.85), 8000          # for each truncation; points of every four faces
# What the clusters of these seeds show, seen on 48 faces. On another machine k-means may number them otherwise: then
# lay them over faces (attention.method.regions.region_overlay) and name them anew.
NAMED = {
    "hair": (4, 7, 11, 13, 17, 19, 28, 31, 35, 36, 38, 42, 51, 55, 57, 70),
    "skin": (0, 1, 5, 6, 9, 15, 18, 20, 24, 25, 27, 30, 39, 40, 41, 44, 46, 54, 58, 59, 60, 62, 63, 64, 65, 66, 68, 69, 71),
    "dark": (33,)}


@torch.no_grad()
def fit_segments(generator: Generator, generator_hash: str) -> RegionClusters:
    """The clusters."""
    z = [sample_z(FACES, generator.style_dim, 100 + number) for number in range(len(TRUNCATIONS))]
    w = torch.cat([generator.mapping(part, truncation) for part, truncation in zip(z, TRUNCATIONS, strict=True)])
    points, random = [], np.random.default_rng(0)
    for part in w.split(4):
        seen = region_points(generator.synthesis(generator.styles(part), until=LAYER).features[LAYER])
        points.append(seen[torch.from_numpy(random.permutation(len(seen))[:SHARE])])
    return RegionClusters(fit_kmeans(torch.cat(points), CLUSTERS, SEED), LAYER, "faces", SEED, generator_hash)


def save_segments(regions: RegionClusters, path: Path) -> None:
    """Write the clusters with their names; those that NAMED leaves out are "other"."""
    names = torch.zeros(len(regions.centroids))
    for name, clusters in NAMED.items():
        names[list(clusters)] = SEGMENTS.index(name)
    write_safetensors(path, {"centroids": regions.centroids, "segments": names}, {**regions.metadata, "kind": KIND})
