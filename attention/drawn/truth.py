"""The truth about generated drawn faces: which attributes z asked for, and which pixels a prompt means."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from attention.drawn.concepts import Concept
from attention.drawn.faces import PARTS, FaceParams, draw_faces
from attention.regions import RegionClusters

VISIBLE = 16            # of 255: a channel that differs by more is a visible difference
BEST_UNION_PARTS = ("hair", "skin", "eyes", "brows", "nose", "lips", "cloth", "background")


def true_part(params: FaceParams, concept: Concept) -> np.ndarray:
    """(N, S, S) bool: the concept's part in the drawing and in the same drawing with the concept made true, joined
    with the pixels in which the two differ visibly."""
    before, after = draw_faces(params), draw_faces(concept.apply(params))
    differs = np.abs(before.images.astype(np.int16) - after.images).max(axis=3) > VISIBLE
    return before.mask(concept.part) | after.mask(concept.part) | differs


def grow(mask: Tensor, pixels: int) -> Tensor:
    """(N, S, S) bool grown by a square of `pixels` on each side."""
    return F.max_pool2d(mask[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0.5


@torch.no_grad()
def regions_against_parts(domain, regions: RegionClusters, faces: int = 64, seed: int = 7) -> dict:
    """How well regions match the drawn parts on unseen faces.

    Returns:
        {"adjusted_mutual_information": float, "best_union_iou": {part: float}}: for each part, the IoU of the union of
        those regions of which at least half lies in the part, region by region over all faces; the best union takes
        regions in the order of their share until the IoU falls.
    """
    z = torch.randn(faces, domain.generator.style_dim, generator=torch.Generator().manual_seed(seed))
    generator = domain.generator
    features = generator.synthesis(generator.styles(domain.w_from_z(z)), until=regions.layer).features
    labels = regions.assign(features[regions.layer]).cpu().numpy()                        # (N, h, w)
    side = labels.shape[1]
    drawn = draw_faces(FaceParams.from_z(z.numpy())).labels
    step = drawn.shape[1] // side
    parts = drawn[:, step // 2::step, step // 2::step]                                    # (N, h, w)
    counts = np.zeros((regions.num_regions, len(PARTS)), np.int64)
    np.add.at(counts, (labels.ravel(), parts.ravel()), 1)
    return {"adjusted_mutual_information": float(adjusted_mutual_info_score(parts.ravel(), labels.ravel())),
            "best_union_iou": {part: _best_union(counts, PARTS.index(part)) for part in BEST_UNION_PARTS}}


def _best_union(counts: np.ndarray, part: int) -> float:
    """Highest IoU of a union of regions with a part; adding regions by falling share of the part is optimal."""
    inside, size = counts[:, part], counts.sum(axis=1)
    order = np.argsort(-inside / np.maximum(size, 1))
    intersection, union = np.cumsum(inside[order]), inside.sum() + np.cumsum((size - inside)[order])
    return float((intersection / np.maximum(union, 1)).max())
