"""Fitted regions as a file of their own, which says what they belong to."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from attention.errors import UserError
from attention.files.safetensors import write_safetensors
from attention.method.regions import FILE_KIND, RegionClusters, fit_command


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
    if not path.is_file():
        raise UserError(f"{path}: no regions there. Fit them: {remake}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            centroids = file.get_tensor("centroids") if "centroids" in names else None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}), but regions are one. "
                        f"Fit them again: {remake}") from error
    if metadata.get("kind") != FILE_KIND or centroids is None or centroids.ndim != 2:
        raise UserError(f"{path}: holds {metadata.get('kind', 'tensors')!r} ({', '.join(names[:3])}, ...), not "
                        f"{FILE_KIND!r}. Fit regions: {remake}")
    clusters = regions_from_metadata(centroids, metadata, path, remake)
    clusters.path = path
    return clusters


def regions_from_metadata(centroids: Tensor, metadata: Mapping[str, str], path: str | Path,
                          remake: str | None = None) -> RegionClusters:
    """Regions from their centroids and the strings of `RegionClusters.metadata`; `path` is the file to name in messages.

    Raises:
        UserError: a field is missing or garbled.
    """
    try:
        return RegionClusters(centroids, int(metadata["layer"]), metadata["domain"], int(metadata["seed"]),
                              metadata["generator_hash"], float(metadata["position_weight"]), int(metadata["enlarge"]))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its metadata lack or garble a field ({error}). "
                        f"Fit the regions again: {remake or fit_command()}") from error
