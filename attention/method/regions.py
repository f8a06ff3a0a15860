"""Regions: k-means clusters of the generator's features at the blend layer, and what is done per region."""

import colorsys
import math
import shlex
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.errors import UserError

POSITION_SHARE = 16         # one x plane and one y plane for every 16 channels, published
MAX_POINTS = 100_000        # more points make k-means slower, not visibly better
STARTS = 10                 # k-means++ starts that compete, published
TRIALS = 32                 # points that a start tries out for each centroid: more matter more than more starts
SEARCH_POINTS = 8192        # the points they compete on, for however many regions ...
REGION_POINTS = 50          # ... that have at least this many of them each
TOLERANCE = 1e-5            # Lloyd's iterations end when the inertia falls by a smaller share than this
MAX_ITERATIONS = 100        # or after this many
CHUNK_POINTS = 8192         # points whose distances are in memory at a time
FILE_KIND = "where2edit regions"
UNKNOWN = ""


def position_planes(channels: int) -> int:
    """How many x planes (and as many y planes) `region_features` adds to this many channels."""
    return channels // POSITION_SHARE


def region_features(feature: Tensor, position_weight: float = 1.0) -> Tensor:
    """Append position planes to a feature map, so that regions are places as well as looks.

    Both `fit_kmeans` and `RegionClusters.assign` see features through this one function.

    Args:
        feature: (B, C, h, w).
        position_weight: factor on the planes; published 1, a world may let positions count more.
    Returns:
        (B, C + 2 * (C // 16), h, w): the features, then x planes, then y planes, each from -1 to 1, ends included.
    """
    batch, channels, height, width = feature.shape
    planes = position_planes(channels)
    x = torch.linspace(-1, 1, width, device=feature.device, dtype=feature.dtype) * position_weight
    y = torch.linspace(-1, 1, height, device=feature.device, dtype=feature.dtype) * position_weight
    # Joined as rows of pixels: the generator's maps are channels-last, and so is what comes of them.
    return torch.cat([feature.movedim(1, -1), x[:, None].expand(batch, height, width, planes),
                      y[:, None, None].expand(batch, height, width, planes)], dim=3).movedim(3, 1)


def region_points(feature: Tensor, position_weight: float = 1.0, enlarge: int = 1) -> Tensor:
    """The rows that k-means clusters: (B, C, h, w) -> (B * h * w * enlarge^2, D), one per pixel.

    Enlarging (published 2) is bilinear with aligned corners, so positions still run from -1 to 1.
    """
    if enlarge != 1:
        feature = F.interpolate(feature, scale_factor=enlarge, mode="bilinear", align_corners=True)
    return region_features(feature, position_weight).movedim(1, -1).flatten(0, 2)


@torch.no_grad()
def fit_kmeans(points: Tensor, num_regions: int, seed: int, max_points: int = MAX_POINTS) -> Tensor:
    """Cluster points: Lloyd's iterations over all of them, from the best of ten k-means++ starts on a small subset.

    The subset finds the regions, all points place them: as tight as ten full runs for a small share of their cost, which
    is linear in points and regions. Each result is repeatable to the bit on one machine, CPU or GPU.

    Args:
        points: (N, D) on any device, see `region_points`.
        max_points: if there are more, a random subset of this many drawn with `seed`, so that fitting stays quick.
    Returns:
        (num_regions, D) float32 centroids on the device of the points.
    Raises:
        UserError: fewer points than regions, or no region asked for.
    """
    if not 1 <= num_regions <= len(points):
        raise UserError(f"cannot make {num_regions} regions of {len(points)} points: ask for at least 1 and at most as "
                        "many regions as there are pixels, or sample more faces")
    random = torch.Generator().manual_seed(seed)
    points = random_rows(points, max_points, random).float().contiguous()
    subset = random_rows(points, max(SEARCH_POINTS, REGION_POINTS * num_regions), random)
    runs = [lloyd(subset, kmeans_plus_plus(subset, num_regions, random)) for _ in range(STARTS)]
    best, _ = min(runs, key=lambda run: run[1])
    return lloyd(points, best)[0]


def random_rows(points: Tensor, count: int, random: torch.Generator) -> Tensor:
    """At most `count` rows of (N, D), chosen at random; all of them, uncopied, if there are no more."""
    if len(points) <= count:
        return points
    return points[torch.randperm(len(points), generator=random)[:count].to(points.device)]


def kmeans_plus_plus(points: Tensor, num_regions: int, random: torch.Generator) -> Tensor:
    """Start at points far apart: one at random, then again and again the best of TRIALS points.

    The trials are drawn in proportion to their squared distance from the nearest chosen point, and the best of them leaves
    the smallest sum of squared distances.

    Args:
        points: (N, D) float32, N >= num_regions.
        random: of the CPU, whatever the device, so that its draws are the same on every one.
    Returns:
        (num_regions, D) rows of `points`, all different as long as there are different ones.
    Source: Arthur and Vassilvitskii 2007, the greedy variant.
    """
    centred = points - points.mean(0)                                       # the mean would only cost precision
    squared = torch.linalg.vector_norm(centred, dim=1).square()                                     # (N,)
    chosen = torch.randint(len(points), (1,), generator=random).tolist()
    distance = (centred - centred[chosen]).square().sum(1)                                          # (N,)
    while len(chosen) < num_regions:
        cumulative = distance.cpu().double().cumsum(0)          # sums on a GPU differ from one time to the next
        draws = torch.rand(TRIALS, generator=random, dtype=torch.float64) * cumulative[-1]
        trials = torch.searchsorted(cumulative, draws).to(points.device)                            # (T,)
        others = squared[trials, None] + squared - 2 * (centred[trials] @ centred.t())              # (T, N)
        left = torch.minimum(others.clamp_(min=0), distance)                                        # (T, N)
        best = left.sum(1).argmin()
        chosen.append(int(trials[best]))
        distance = left[best]
        distance[chosen[-1]] = 0                                # rounding leaves more, and it would be drawn again
    return points[chosen]


def lloyd(points: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """Repeat `lloyd_step` until the inertia hardly falls; returns the centroids and the inertia before the last step."""
    inertia = math.inf
    for _ in range(MAX_ITERATIONS):
        before = inertia
        centroids, inertia = lloyd_step(points, centroids)
        if before - inertia <= TOLERANCE * inertia:
            break
    return centroids, inertia


def lloyd_step(points: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """Move each centroid to the mean of the points that are nearest to it.

    A centroid with no points stays: k-means++ starts at points, so that is rare, and the best of ten has what it needs.

    Args:
        points: (N, D) float32.
        centroids: (K, D) float32.
    Returns:
        (K, D) float32 moved centroids, and the inertia before: the sum over points of the squared distance to the nearest.
    """
    offset = centroids.square().sum(1)                                                          # (K,)
    totals = torch.zeros_like(centroids, dtype=torch.float64)
    counts, inertia = totals.new_zeros(len(centroids), 1), totals.new_zeros(())
    for chunk in points.split(CHUNK_POINTS):
        # |x - c|^2 without |x|^2, as in `assign`: one matrix product, and no (n, K, D) differences in memory.
        distance = torch.addmm(offset, chunk, centroids.t(), alpha=-2)                          # (n, K)
        nearest, labels = distance.min(1, keepdim=True)                                         # (n, 1) each
        squared = nearest + torch.linalg.vector_norm(chunk, dim=1, keepdim=True).square()       # (n, 1)
        inertia += squared.clamp(min=0).sum(dtype=torch.float64)
        # Sums as a product with one-hot rows: scattered additions on a GPU come in a random order, and so do their bits.
        member = distance.zero_().scatter_(1, labels, 1)                                        # (n, K), 0 or 1
        totals += member.t() @ chunk
        counts += member.sum(0)[:, None]
    moved = torch.where(counts > 0, totals / counts.clamp(min=1), centroids.double())
    return moved.float(), inertia.item()


class RegionClusters(nn.Module):
    """The fitted regions of one generator layer: centroids, and where they come from.

    Args:
        centroids: (K, D) with D = C + 2 * (C // 16) for a layer of C channels.
        layer: index of the layer in `synthesis_layers` (from 0; the flag --attention_layer counts from 1).
        domain: name of the world the faces were drawn from.
        seed: of the sampling and of k-means.
        generator_hash: of the weights that made the features; "" if unknown, as in the authors' files.
        position_weight: passed on to `region_features`.
        enlarge: how many times the maps were enlarged before fitting (published 2); assigning never enlarges.
    """

    centroids: Tensor

    def __init__(self, centroids: Tensor, layer: int, domain: str, seed: int = 0, generator_hash: str = UNKNOWN,
                 position_weight: float = 1.0, enlarge: int = 1):
        super().__init__()
        self.register_buffer("centroids", centroids.detach().float().contiguous())
        self.layer, self.domain, self.seed, self.generator_hash = layer, domain, seed, generator_hash
        self.position_weight, self.enlarge = position_weight, enlarge
        self.path: Path | None = None       # the file this came from, for messages

    @property
    def num_regions(self) -> int:
        return len(self.centroids)

    @property
    def metadata(self) -> dict[str, str]:
        """Everything but the centroids, as the strings that a safetensors file can hold."""
        return {"kind": FILE_KIND, "layer": str(self.layer), "domain": self.domain, "seed": str(self.seed),
                "generator_hash": self.generator_hash, "position_weight": repr(self.position_weight),
                "enlarge": str(self.enlarge), "num_regions": str(self.num_regions)}

    def assign(self, feature: Tensor, size: int | None = None) -> Tensor:
        """Give each pixel the region with the nearest centroid.

        Args:
            feature: (B, C, h, w) of the fitted layer.
            size: side of the map wanted, by nearest resize, where the blend is at another resolution than the regions.
        Returns:
            (B, h, w) int64 in [0, K).
        Raises:
            UserError: the feature map has another width than the centroids.
        """
        self.check(channels=feature.shape[1])
        with torch.autocast(feature.device.type, enabled=False):    # near ties must not depend on the precision around
            # |x - c|^2 without |x|^2, which is the same for every centroid: (N, C) @ (C, K) instead of (N, K, D). What the
            # position planes add is the same in every picture: no map with planes is made.
            product = feature.float().movedim(1, -1) @ self.centroids[:, :feature.shape[1]].T       # (B, h, w, K)
            labels = self._offsets(*feature.shape[1:]).sub(product, alpha=2).argmin(-1)            # (B, h, w)
        if size is None or labels.shape[1:] == (size, size):
            return labels
        return F.interpolate(labels[:, None].float(), size=(size, size), mode="nearest")[:, 0].long()

    def _offsets(self, channels: int, height: int, width: int) -> Tensor:
        """(h, w, K): |c|^2 less twice the product of a pixel's position planes with those of c."""
        planes = self.centroids[:, channels:].unflatten(1, (2, position_planes(channels)))
        across, down = planes.sum(2).T                                                              # (K,) each
        x = torch.linspace(-1, 1, width, device=across.device) * self.position_weight
        y = torch.linspace(-1, 1, height, device=across.device) * self.position_weight
        return self.centroids.square().sum(1) - 2 * (x[:, None] * across + y[:, None, None] * down)

    def check(self, *, layer: int | None = None, generator_hash: str | None = None, channels: int | None = None,
              num_regions: int | None = None, remake: str | None = None) -> None:
        """Refuse regions that were fitted for something else; None means any will do, and an unknown hash passes.

        `remake` is the command that fits the regions that are needed, where more is known of it than here.

        Raises:
            UserError: names the file, what it holds, what this run needs, and the command that fits the regions again.
        """
        width = None if channels is None else channels + 2 * position_planes(channels)
        for what, found, wanted in (
            ("layer (counted from 1)", self.layer + 1, None if layer is None else layer + 1),
            ("generator hash", self.generator_hash, generator_hash),
            (f"centroid width ({channels} channels need {width})", self.centroids.shape[1], width),
            ("number of regions", self.num_regions, num_regions),
        ):
            if wanted is not None and found not in (wanted, UNKNOWN):
                command = remake or fit_command(self.domain, self.layer if layer is None else layer, num_regions)
                raise UserError(f"{self.path or 'these regions'}: the {what} is {found}, but this run needs {wanted}. "
                                f"Fit them again: {command}")


def fit_command(domain: str | None = None, layer: int | None = None, num_regions: int | None = None,
                run: Path | None = None, ckpt: Path | None = None) -> str:
    """The command line that fits regions, for messages; unknown parts are left to the defaults."""
    flags = {"--domain": domain, "--ckpt": ckpt, "--run": run, "--attention_layer": None if layer is None else layer + 1,
             "--cluster_num": num_regions}
    given = [f"{flag} {shlex.quote(str(value))}" for flag, value in flags.items() if value is not None]
    return " ".join(["python -m attention.clustering_feature", *given])


def region_means(values: Tensor, labels: Tensor, num_regions: int) -> tuple[Tensor, Tensor]:
    """Mean of a map over each region, image by image.

    Args:
        values: (B, 1, H, W) float.
        labels: (B, H, W) or (1, H, W) int64 in [0, num_regions); one map of labels may serve the whole batch.
    Returns:
        means (B, K) float32, 0 where the region is empty, differentiable in `values`; counts (B, K) of pixels.
    Raises:
        ValueError: the maps differ in size; resize with `assign(feature, size)`.
    """
    if values.shape[-2:] != labels.shape[-2:]:
        raise ValueError(f"values are {tuple(values.shape[-2:])} but labels are {tuple(labels.shape[-2:])}")
    flat = values.float().flatten(1)                                                        # (B, HW)
    index = labels.flatten(1).expand(len(flat), -1)                                         # (B, HW)
    counts = flat.new_zeros(len(flat), num_regions).scatter_add(1, index, torch.ones_like(flat))    # (B, K)
    totals = flat.new_zeros(len(flat), num_regions).scatter_add(1, index, flat)             # (B, K)
    return totals / counts.clamp(min=1), counts


def pool_by_region(values: Tensor, labels: Tensor, num_regions: int) -> Tensor:
    """Give every pixel the mean value of its region, image by image; arguments and errors as in `region_means`.

    Returns:
        (B, 1, H, W) float32, constant inside a region and differentiable in `values`.
    """
    means, _ = region_means(values, labels, num_regions)                                    # (B, K)
    index = labels.flatten(1).expand(len(values), -1)                                       # (B, HW)
    return means.gather(1, index).view(values.shape)


def region_overlay(images: Tensor, labels: Tensor, opacity: float = 0.5) -> np.ndarray:
    """Colour the regions on pictures, for people to look at.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        labels: (B, h, w) int64; region k has the same colour in every picture.
    Returns:
        (2 * H, B * W, 3) uint8: the pictures in a row, and under each the same one with its regions.
    """
    # Hues one golden section apart, so that any number of regions differ and more regions keep the colours of the first
    colors = [colorsys.hsv_to_rgb(0.618034 * k % 1, 0.55 + 0.45 * (k % 2), 1) for k in range(int(labels.max()) + 1)]
    palette = torch.tensor(colors, device=images.device)                                    # (K, 3) in [0, 1]
    paint = F.interpolate(palette[labels].movedim(-1, 1), size=images.shape[-2:], mode="nearest")   # (B, 3, H, W)
    images = images.detach().float().clamp(-1, 1) / 2 + 0.5
    rows = torch.cat([images, images.lerp(paint, opacity)], dim=2)                          # (B, 3, 2H, W)
    return (rows.permute(2, 0, 3, 1).flatten(1, 2) * 255).round().byte().cpu().numpy()
