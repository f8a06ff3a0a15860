"""How one pair of functions is measured: equal results first, then seconds in turns, memory in processes of their own."""

import ctypes
import gc
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

from attention.errors import UserError
from attention.files.published import ROOT
from attention.memory import keep_memory
from benchmarks.items import ITEMS, Item, Models, largest_difference
from benchmarks.training_step import memory

PACKAGES = ("torch", "torchvision", "open_clip_torch", "scikit-learn", "numpy")


def check(name: str, item: Item, models: Models) -> float:
    """The largest relative difference between the results of both sides.

    Raises:
        UserError: it is above the item's tolerance.
    """
    pair = item.build(models)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):        # TF32 would differ more than the sides do
        difference, where = largest_difference(pair.ours(), pair.plain())
    if not difference <= item.tolerance:
        raise UserError(f"{name}: ours differs from the plain implementation by {difference:.1e} in {where}, but at most "
                        f"{item.tolerance:.0e} of the largest value is allowed, so their times are no comparison; find the "
                        "cause with: python -m pytest tests/test_benchmarks.py")
    return difference


def measure(name: str, item: Item, models: Models, repeats: int) -> dict:
    """Seconds of both sides in turns, and the memory of each in a process of its own."""
    pair = item.build(models)
    pair.ours()                                                             # warms up
    (pair.part or pair.plain)()
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        for side, taken in seconds.items():
            taken.append(seconds_of(getattr(pair, side), models.device))
    del pair
    give_back(models.device)
    gib = {side: peak_in_own_process(name, side, models) for side in seconds}
    say(f"{name}: plain {statistics.median(seconds['plain']):.3g} s, ours {statistics.median(seconds['ours']):.3g} s")
    return {"what": item.what.format(prompts=models.prompts, faces=models.faces), "side": models.side,
            "target": item.target, **figures(seconds, gib)}


def figures(seconds: dict[str, list[float]], gib: dict[str, float]) -> dict:
    """What both sides took, and how much less ours did: seconds by the pairs of runs that were neighbours."""
    ratios = [slow / fast for slow, fast in zip(seconds["plain"], seconds["ours"], strict=True)]
    return {"time_ratio": spread(ratios), "memory_ratio": gib["ours"] / gib["plain"],
            **{side: {"seconds": spread(taken), "all_seconds": taken, "gib": gib[side]} for side, taken in seconds.items()}}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, all work of a GPU included."""
    gc.collect()
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_in_own_process(name: str, side: str, models: Models) -> float:
    """GiB that one side of an item needs at most, above what the process holds with its models loaded.

    Raises:
        UserError: the process was ended, most likely because the machine has too little memory.
    """
    with ProcessPoolExecutor(1, own_process()) as pool:
        try:
            return pool.submit(peak_gib, name, side, replace(models)).result()
        except BrokenProcessPool as error:
            raise UserError(f"{name}: the process that measured the memory of the {side} side was ended; give it more "
                            "memory, or measure smaller sizes with --quick") from error


def own_process() -> ForkServerContext:
    """Processes that are forked from one that has only imported the modules: it has no models, no threads, no memory of
    earlier items, and has never touched a GPU."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu_parts", "matplotlib.figure"])
    return context


def peak_gib(name: str, side: str, models: Models) -> float:
    """GiB of this process at most while one side runs, above those before."""
    keep_memory()                                                           # of both sides, as in the other process
    pair = ITEMS[name].build(models)
    run = (pair.part or pair.plain) if side == "plain" else pair.ours
    give_back(models.device)                                                 # what only loading needed
    if models.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(models.device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")                       # the peak starts again here
    before = memory(models.device)
    run()
    wait(models.device)
    return (memory(models.device) - before) / 2**30


def give_back(device: torch.device) -> None:
    """Give the memory that nothing uses any more back to the machine: this process otherwise keeps it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def machine(device: torch.device) -> dict:
    """What the numbers were measured on, and with."""
    models = re.findall(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True,
                                check=False).stdout.strip()
    return {
        "machine": {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(),
                    "threads": torch.get_num_threads(), "ram_gib": ram / 2**30,
                    "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
                    "system": platform.platform()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": commit or None,
    }


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
