"""How well regions match the parts of faces, where those are known."""

import numpy as np
import torch
from sklearn.metrics import adjusted_mutual_info_score

from attention.generator.base import sample_z
from attention.method.regions import RegionClusters
from attention.worlds.world import World


@torch.no_grad()
def regions_against_parts(world: World, regions: RegionClusters, faces: int = 64, seed: int = 7) -> dict:
    """How well regions match the true parts on unseen faces.

    Returns:
        {"adjusted_mutual_information": float, "best_union_iou": {part: float}}: for each part, the IoU of the union of
        those regions of which at least half lies in the part, region by region over all faces; the best union takes
        regions in the order of their share until the IoU falls.
    """
    z = sample_z(faces, world.generator.style_dim, seed)
    features = world.generator.synthesis(world.generator.styles(world.w_from_z(z)), until=regions.layer).features
    labels = regions.assign(features[regions.layer]).cpu().numpy()                        # (N, h, w)
    whole = world.truth.faces(z).labels()                                                 # (N, S, S)
    step = whole.shape[1] // labels.shape[1]
    parts = whole[:, step // 2::step, step // 2::step]                                    # (N, h, w)
    names = list(world.truth.parts)
    counts = np.zeros((regions.num_regions, len(names)), np.int64)
    np.add.at(counts, (labels.ravel(), parts.ravel()), 1)
    return {"adjusted_mutual_information": float(adjusted_mutual_info_score(parts.ravel(), labels.ravel())),
            "best_union_iou": {part: best_union(counts, names.index(part)) for part in world.truth.matched_parts}}


def best_union(counts: np.ndarray, part: int) -> float:
    """Highest IoU of a union of regions with a part, of counts (K, parts) of pixels.

    Adding regions by their falling share of the part is optimal.
    """
    inside, size = counts[:, part], counts.sum(axis=1)
    order = np.argsort(-inside / np.maximum(size, 1))
    intersection, union = np.cumsum(inside[order]), inside.sum() + np.cumsum((size - inside)[order])
    return float((intersection / np.maximum(union, 1)).max())
