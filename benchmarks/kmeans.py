"""Clustering at the published size against ten full runs of scikit-learn: seconds, inertia, memory, on the CPU.

    python -m benchmarks.kmeans                              # 100 faces: 409,600 points of 576 numbers, 20 regions
    python -m benchmarks.kmeans --faces 2 --full_runs 3      # 8,192 points: seconds

Prints one line of JSON. Both sides get all points, each in a process of its own, and are judged on all of them.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min

from attention.config import Config, option, parse_config
from attention.errors import exit_with_message
from attention.generator import StyleGAN2
from attention.method.regions import fit_kmeans, region_points

LAYER, PIXELS, WIDTH = 12, 64 * 64, 512 + 2 * 32        # published: the second convolution at 64 px, positions included
OUR_SEEDS = (0, 0, 1, 2)        # the first comes twice, to see that a seed gives the same bits


class KmeansConfig(Config):
    """Options."""

    faces: int = option(100, "faces that give the points, 4096 each", min=1)
    regions: int = option(20, "K", min=1)
    full_runs: int = option(10, "runs of scikit-learn on all points, of which the best counts", min=1)


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure and print; returns what was printed."""
    config = parse_config(KmeansConfig, argv, __doc__)
    report = compare(published_points(config.faces), config.regions, config.full_runs)
    print(json.dumps(report))
    return report


@torch.no_grad()
def published_points(faces: int = 100, seed: int = 0, side: int = 1024, device: torch.device | str = "cpu") -> np.ndarray:
    """(faces * 4096, 576) float32 features and positions of a generator with random weights, whatever its side."""
    torch.manual_seed(seed)
    generator, points = StyleGAN2(side).to(device), np.empty((faces * PIXELS, WIDTH), np.float32)
    for rows, z in zip(np.split(points, faces), torch.randn(faces, 1, generator.style_dim), strict=True):
        features = generator.synthesis(generator.styles(generator.mapping(z.to(device))), until=LAYER).features
        rows[:] = region_points(features[LAYER]).cpu()
    return points


def compare(points: np.ndarray, regions: int, full_runs: int) -> dict:
    """Seconds (of one of our fits, of all full runs), inertia and GiB above the points (N, D) float32, side by side."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        np.save(path := Path(folder) / "points.npy", points)
        for side, seeds in (("ours", OUR_SEEDS), ("full", range(full_runs))):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[side] = pool.submit(fit_in_turn, side, seeds, path, regions).result()
    (ours, seconds, gib), (full, full_seconds, full_gib) = found.values()
    inertia, full_inertia = (
        [float(np.square(pairwise_distances_argmin_min(points, fit)[1], dtype=np.float64).sum()) for fit in fits]
        for fits in (ours, full))
    return {"points": points.shape, "regions": regions, "full_runs": full_runs, "threads": torch.get_num_threads(),
            "seconds_ours": float(np.median(seconds)), "seconds_full": sum(full_seconds),
            "speedup": sum(full_seconds) / float(np.median(seconds)), "inertia_ours": inertia, "inertia_full": full_inertia,
            "inertia_ratio_of_our_worst": max(inertia) / min(full_inertia), "gib_ours": gib, "gib_full": full_gib,
            "gib_points": points.nbytes / 2**30, "repeatable": np.array_equal(ours[0], ours[1])}


def fit_in_turn(side: str, seeds: Sequence[int], path: Path, regions: int) -> tuple[list, list[float], float]:
    """Centroids and seconds of every seed, and the most GiB in use beyond the loaded points."""
    points, centroids, seconds = np.load(path), [], []
    before = peak_gib()
    for seed in seeds:
        start = time.perf_counter()
        if side == "ours":
            found = fit_kmeans(torch.from_numpy(points), regions, seed).numpy()
        else:
            found = KMeans(regions, n_init=1, algorithm="lloyd", random_state=seed).fit(points).cluster_centers_
        seconds.append(time.perf_counter() - start)
        centroids.append(found)
    return centroids, seconds, peak_gib() - before


def peak_gib() -> float:
    """The most this process had in use; ru_maxrss would start at what its parent had in use."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


if __name__ == "__main__":
    exit_with_message(main)
