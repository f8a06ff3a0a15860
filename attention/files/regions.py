"""Fitted regions as a file of their own, which says what they belong to."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from attention.errors import UserError
from attention.files.reading import readable, shown
from attention.files.safetensors import all_of, write_safetensors
from attention.method.regions import FILE_KIND, RegionClusters, fit_command

MOST_LAYERS, MOST_ENLARGED = 100, 16    # a generator of 2048 px has 29 layers, the published fit enlarges twice


def save_regions(regions: RegionClusters, path: str | Path) -> None:
    """Write a safetensors file; a reader sees the old file or the new one, never half of one."""
    regions.path = Path(path)
    write_safetensors(regions.path, {"centroids": regions.centroids}, regions.metadata)


def load_regions(path: str | Path, remake: str | None = None) -> RegionClusters:
    """Read what `save_regions` wrote, onto the CPU; `remake` is the command that fits them, for messages.

    Raises:
        UserError: no such file, not a whole safetensors file, or one that holds something else than regions.
    """
    path, remake = Path(path), remake or fit_command()
    again = f"Fit them again: {remake}"
    if not os.path.exists(path):
        raise UserError(f"{path}: no regions there. Fit them: {remake}")
    tensors, metadata = all_of(readable(path, "fitted regions"), again)
    if metadata.get("kind") != FILE_KIND or "centroids" not in tensors:
        raise UserError(f"{path}: holds {shown(repr(metadata.get('kind', 'tensors')), 80)} "
                        f"({shown(', '.join(list(tensors)[:3]))}, ...), not {FILE_KIND!r}. {again}")
    clusters = regions_from_metadata(tensors["centroids"], metadata, path, remake)
    clusters.path = path
    return clusters


def regions_from_metadata(centroids: Tensor, metadata: Mapping[str, str], path: str | Path,
                          remake: str | None = None) -> RegionClusters:
    """Regions from their centroids and the strings of `RegionClusters.metadata`; `path` is the file to name in messages.

    Raises:
        UserError: a field is missing or garbled.
    """
    if centroids.ndim != 2:
        raise UserError(f"{path}: has centroids of shape {tuple(centroids.shape)}, expected regions and their width. "
                        f"Fit the regions again: {remake or fit_command()}")
    try:
        layer, enlarge, weight = int(metadata["layer"]), int(metadata["enlarge"]), float(metadata["position_weight"])
        if not (0 <= layer < MOST_LAYERS and 1 <= enlarge <= MOST_ENLARGED and math.isfinite(weight)):
            raise ValueError(f"layer {layer}, enlarge {enlarge}, position_weight {weight}")
        return RegionClusters(centroids, layer, shown(metadata["domain"]), int(metadata["seed"]),
                              shown(metadata["generator_hash"]), weight, enlarge)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: its metadata lack or garble a field ({shown(error)}). "
                        f"Fit the regions again: {remake or fit_command()}") from error
