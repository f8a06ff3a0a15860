"""The authors' regions: a raw pickle of one tensor, read without running anything that it asks for."""

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention.errors import UserError
from attention.files.pickles import InertUnpickler, Table, check_torch_file
from attention.files.reading import readable
from attention.files.tensors import checked
from attention.files.torch_files import first_line
from attention.method.regions import UNKNOWN, RegionClusters, fit_command

REGION_SEED, ENLARGE = 42, 2            # of the published run


def released_regions(centroids: Tensor, layer: int, domain: str, generator_hash: str = UNKNOWN) -> RegionClusters:
    """Published centroids (K, D), fitted at conv layer `layer` (0-based), as regions."""
    return RegionClusters(centroids, layer, domain, REGION_SEED, generator_hash, enlarge=ENLARGE)


def regions_from_pickle(path: Path, layer: int, domain: str) -> RegionClusters:
    """The authors' cluster pickle as regions of conv layer `layer` (0-based), of which the file itself says nothing.

    Raises:
        UserError: see `read_cluster_pickle`.
    """
    regions = released_regions(read_cluster_pickle(path), layer, domain)
    regions.path = Path(path)
    return regions


def read_cluster_pickle(path: Path) -> Tensor:
    """The (K, D) float32 centroids of k_means_human_12_layer_10_clusters.pkl: one tensor, written by pickle.dump.

    Raises:
        UserError: the file is missing, cut short, or holds anything else; nothing that it asks for is run.
    """
    remake = f"get the authors' file again, or fit regions: {fit_command()}"
    path = readable(path, f"a pickle of one tensor ({remake})")
    try:
        with path.open("rb") as file:
            content = _TensorUnpickler(file).load()
    except Exception as error:          # pickle and torch each raise their own kinds
        raise UserError(f"{path} cannot be read as a pickle of one tensor ({first_line(error)}); {remake}") from error
    if not isinstance(content, Tensor) or content.ndim != 2 or not content.is_floating_point():
        found = f"{content.dtype} {tuple(content.shape)}" if isinstance(content, Tensor) else f"a {type(content).__name__}"
        raise UserError(f"{path} holds {found}, but floating centroids (regions, width) were expected; {remake}")
    return checked({"centroids": content}, path, remake)["centroids"].float()


class _TensorUnpickler(InertUnpickler):
    """Builds a tensor and refuses every class and function that a tensor does not need."""

    def find_class(self, module: str, name: str) -> Any:
        # Bound methods: a pickle may set attributes of what it is given, and these have none to set.
        needed = {"torch._utils._rebuild_tensor_v2": self._rebuild, "torch.storage._load_from_bytes": self._load_storage,
                  "collections.OrderedDict": Table}
        if f"{module}.{name}" not in needed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was refused")
        return needed[f"{module}.{name}"]

    def _load_storage(self, content: bytes) -> Any:
        check_torch_file(io.BytesIO(content), len(content))
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def _rebuild(self, storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
        flat = torch.empty(0, dtype=storage.dtype).set_(storage)                # (N,)
        if math.prod(size) > len(flat):
            raise ValueError(f"its shape {tuple(size)} needs more than the {len(flat)} numbers it holds")
        return flat.as_strided(size, stride, offset).clone()
