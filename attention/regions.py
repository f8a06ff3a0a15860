"""Regions: k-means clusters of the generator's features at the blend layer, and what is done per region."""

import colorsys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from attention.checkpoints import write_safetensors
from attention.errors import UserError

POSITION_SHARE = 16         # one x plane and one y plane for every 16 channels, published
MAX_POINTS = 100_000        # more points make k-means slower, not visibly better
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
        position_weight: factor on the planes; published 1, a domain may let positions count more.
    Returns:
        (B, C + 2 * (C // 16), h, w): the features, then x planes, then y planes, each from -1 to 1, ends included.
    """
    batch, channels, height, width = feature.shape
    planes = position_planes(channels)
    x = torch.linspace(-1, 1, width, device=feature.device, dtype=feature.dtype) * position_weight
    y = torch.linspace(-1, 1, height, device=feature.device, dtype=feature.dtype) * position_weight
    return torch.cat([feature, x.expand(batch, planes, height, width),
                      y[:, None].expand(batch, planes, height, width)], dim=1)


def region_points(feature: Tensor, position_weight: float = 1.0, enlarge: int = 1) -> Tensor:
    """The rows that k-means clusters: (B, C, h, w) -> (B * h * w * enlarge^2, D), one per pixel.

    Enlarging (published 2) is bilinear with aligned corners, so positions still run from -1 to 1.
    """
    if enlarge != 1:
        feature = F.interpolate(feature, scale_factor=enlarge, mode="bilinear", align_corners=True)
    return region_features(feature, position_weight).movedim(1, -1).flatten(0, 2)


def fit_kmeans(points: Tensor, num_regions: int, seed: int, max_points: int = MAX_POINTS) -> Tensor:
    """Cluster points with scikit-learn's k-means (Lloyd, best of ten k-means++ starts).

    Args:
        points: (N, D), see `region_points`.
        max_points: if there are more, a random subset of this many drawn with `seed`, so that fitting stays quick.
    Returns:
        (num_regions, D) float32 centroids on the CPU.
    Raises:
        UserError: fewer points than regions, or no region asked for.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415  (two seconds that only fitting needs)

    points = points.detach().float().cpu()
    if not 1 <= num_regions <= len(points):
        raise UserError(f"cannot make {num_regions} regions of {len(points)} points: ask for at least 1 and at most as "
                        "many regions as there are pixels, or sample more faces")
    if len(points) > max_points:
        points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:max_points]]
    # n_init and algorithm are given because their defaults changed between scikit-learn versions.
    model = KMeans(num_regions, n_init=10, algorithm="lloyd", random_state=seed).fit(points.numpy())
    return torch.from_numpy(model.cluster_centers_.astype(np.float32))


class RegionClusters(nn.Module):
    """The fitted regions of one generator layer: centroids, and where they come from.

    Args:
        centroids: (K, D) with D = C + 2 * (C // 16) for a layer of C channels.
        layer: index of the layer in `synthesis_layers` (from 0; the flag --attention_layer counts from 1).
        domain: name of the domain the faces were drawn from.
        seed: of the sampling and of k-means.
        generator_hash: of the weights that made the features; "" if unknown, as in the authors' files.
        position_weight: passed on to `region_features`.
        enlarge: how many times the maps were enlarged before fitting (published 2); assigning never enlarges.
    """

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
            points = region_features(feature.float(), self.position_weight).flatten(2)              # (B, D, hw)
            # |x - c|^2 without |x|^2, which is the same for every centroid: (K, D) @ (B, D, hw) instead of (hw, K, D)
            distance = self.centroids.square().sum(1)[:, None] - 2 * (self.centroids @ points)      # (B, K, hw)
        labels = distance.argmin(1).unflatten(1, feature.shape[2:])                                 # (B, h, w)
        if size is None or labels.shape[1:] == (size, size):
            return labels
        return F.interpolate(labels[:, None].float(), size=(size, size), mode="nearest")[:, 0].long()

    def check(self, *, layer: int | None = None, generator_hash: str | None = None, channels: int | None = None,
              num_regions: int | None = None) -> None:
        """Refuse regions that were fitted for something else; None means any will do, and an unknown hash passes.

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
                command = fit_command(self.domain, self.layer if layer is None else layer, num_regions)
                raise UserError(f"{self.path or 'these regions'}: the {what} is {found}, but this run needs {wanted}. "
                                f"Fit them again: {command}")

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; a reader sees the old file or the new one, never half of one."""
        self.path = Path(path)
        write_safetensors(self.path, {"centroids": self.centroids}, self.metadata)

    @classmethod
    def load(cls, path: str | Path) -> "RegionClusters":
        """Read what `save` wrote, onto the CPU.

        Raises:
            UserError: no such file, not a whole safetensors file, or one that holds something else than regions.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no regions there. Fit them: {fit_command()}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, names = file.metadata() or {}, list(file.keys())
                centroids = file.get_tensor("centroids") if "centroids" in names else None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}), but regions are one. "
                            f"Fit them again: {fit_command()}") from error
        if metadata.get("kind") != FILE_KIND or centroids is None or centroids.ndim != 2:
            raise UserError(f"{path}: holds {metadata.get('kind', 'tensors')!r} ({', '.join(names[:3])}, ...), not "
                            f"{FILE_KIND!r}. Fit regions: {fit_command()}")
        clusters = cls.from_metadata(centroids, metadata, path)
        clusters.path = path
        return clusters

    @classmethod
    def from_metadata(cls, centroids: Tensor, metadata: dict[str, str], path: str | Path) -> "RegionClusters":
        """Regions from their centroids and the strings of `metadata`; `path` is the file to name in messages.

        Raises:
            UserError: a field is missing or garbled.
        """
        try:
            return cls(centroids, int(metadata["layer"]), metadata["domain"], int(metadata["seed"]),
                       metadata["generator_hash"], float(metadata["position_weight"]), int(metadata["enlarge"]))
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: its metadata lack or garble a field ({error}). "
                            f"Fit the regions again: {fit_command()}") from error


def fit_command(domain: str | None = None, layer: int | None = None, num_regions: int | None = None) -> str:
    """The command line that fits regions, for messages; unknown parts are left to the defaults."""
    flags = {"--domain": domain, "--attention_layer": None if layer is None else layer + 1,
             "--cluster_num": num_regions}
    given = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
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
