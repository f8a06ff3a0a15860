"""All that a GPU has to show, in one command: tests, kernels, precisions, training, editing. At most nine minutes.

    bash benchmarks/gpu.sh                       on a machine with an NVIDIA GPU; report, figures and log into runs/gpu
    bash benchmarks/gpu.sh --rehearse            the same code at tiny sizes on a CPU, in a minute
    bash benchmarks/gpu.sh --only kernels,edit   some parts

Every part (gpu_parts.py) runs in a process of its own with a time limit. One that fails or takes longer is told at once,
what it had measured by then is kept, and the others follow; the exit code is then 1. Needs no network. Writes
OUT/report.json, OUT/report.md and OUT/log.txt after every part.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from attention.config import Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder, write_text
from benchmarks import gpu_parts
from benchmarks.gpu_parts import Row
from benchmarks.measure import machine, own_process, say

BUDGET = 530                # seconds of all parts together: what is asked for, less the start
LAST_LINES = 6              # of a failed part's log that the report has


@dataclass(frozen=True)
class Part:
    """What is asked for, seconds that it may take, and the work: a device -> its rows, one after another."""

    goal: str
    limit: float
    work: Callable[[torch.device], Iterable[Row]]


# In the order of worth: what comes last goes without its time where the others have used it up.
PARTS = {
    "tests": Part("all pass, none is skipped", 120, gpu_parts.tests),
    "kernels": Part("as exact as the dtype; no slower than torch.compile", 110, gpu_parts.kernels),
    "step": Part("the plain step's gradients; 7 times faster, 0.4 of its memory", 60, gpu_parts.step),
    "eight_prompts": Part("8 prompts at 1024 px under 8 GB, one at a time", 60, gpu_parts.eight_prompts),
    "edit": Part("20 ms from a text to the picture at 1024 px", 90, gpu_parts.edit),
    "processes": Part("two processes have the gradients of one", 60, gpu_parts.processes),
    "convolutions": Part("the grouped form's values; faster in every layer", 60, gpu_parts.convolutions),
    "clustering": Part("the same bits twice; as tight as on the CPU", 60, gpu_parts.clustering),
    "stylegan2_1024": Part("half precision 40 dB from float32", 110, partial(gpu_parts.generators, "StyleGAN2", 1024)),
    "mobile": Part("half precision 40 dB from float32", 70, partial(gpu_parts.generators, "MobileStyleGAN", 1024)),
    "stylegan2_256": Part("half precision 40 dB from float32", 70, partial(gpu_parts.generators, "StyleGAN2", 256)),
}


class GpuConfig(Config):
    """Options."""

    rehearse: bool = option(False, "tiny sizes on the CPU, to see that everything runs")
    only: str | None = option(None, f"parts, separated by commas, of {', '.join(PARTS)}")
    out: Path = option(Path("runs/gpu"), "folder to write to")


def main(argv: Sequence[str] | None = None, parts: Mapping[str, Part] = PARTS, budget: float = BUDGET) -> Path:
    """Run the parts, write, and tell what failed; returns the JSON file.

    Raises:
        UserError: there is no GPU, or no part of a name.
        SystemExit: a part failed, code 1.
    """
    config = parse_config(GpuConfig, argv, __doc__)
    if not config.rehearse and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here; on a machine without one rehearse with: bash benchmarks/gpu.sh --rehearse")
    names = list(parts) if config.only is None else config.only.split(",")
    if unknown := [name for name in names if name not in parts]:
        raise UserError(f"--only has {unknown[0]!r}, expected parts of {', '.join(parts)}")
    device, folder = torch.device("cpu" if config.rehearse else "cuda:0"), run_folder(config.out, "--out")
    report = {"rehearsed": config.rehearse, **machine(device), "parts": {}}
    write_text(folder / "log.txt", "")
    end = time.monotonic() + budget
    for name in names:
        found = run_part(parts[name], device, folder / "log.txt", end - time.monotonic())
        report["parts"][name] = found
        say("\n    ".join([f"{name}: {found['state']}, {found['seconds']:.1f} s", *found["last_lines"]]))
        write(report, folder)
    failed = [name for name in names if report["parts"][name]["state"] != "done"]
    if failed:
        say(f"failed: {', '.join(failed)}; see {folder / 'report.md'}")
        sys.exit(1)
    return folder / "report.json"


# --- one part


def run_part(part: Part, device: torch.device, log: Path, left: float) -> dict:
    """Run a part in a process of its own, with at most `left` seconds; how it ended, its rows, and what it last said."""
    limit, start = min(part.limit, left), time.monotonic()
    before = log.stat().st_size
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows"
        rows.touch()
        state = "no time was left" if limit <= 0 else state_of(process_of(part.work, device, rows, log), limit)
        found = [json.loads(line) for line in rows.read_text().splitlines() if line.endswith("}")]    # the last may be torn
    said = log.read_bytes()[before:].decode(errors="replace").splitlines()
    return {"goal": part.goal, "state": state, "seconds": time.monotonic() - start, "rows": found,
            "last_lines": [] if state == "done" else [line for line in said if line.strip()][-LAST_LINES:]}


def process_of(work: Callable, device: torch.device, rows: Path, log: Path):
    """A started process of the work."""
    process = own_process().Process(target=write_rows, args=(work, device, rows, log))
    process.start()
    return process


def state_of(process, limit: float) -> str:
    """How the process ended; with all that it started, it is ended after `limit` seconds."""
    try:
        process.join(limit)
        late = process.is_alive()
    finally:                                                    # also after Ctrl-C, and what a failed part has left behind
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    if late:
        return f"stopped after {limit:.0f} s"
    return "done" if process.exitcode == 0 else f"failed, code {process.exitcode}"


def write_rows(work: Callable[[torch.device], Iterable[Row]], device: torch.device, rows: Path, log: Path) -> None:
    """In the part's process: write row by row, and end with code 1 if one of them has a fault."""
    os.setsid()                                                 # a group of its own, which can be ended as a whole
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.manual_seed(0)
    if device.type == "cpu":
        torch.set_num_threads(1)                                # several wait for each other where cores are busy
    faults = 0
    with rows.open("w") as file:
        for row in work(device):
            print(json.dumps(row), file=file, flush=True)
            if row.get("fault"):
                faults += 1
                print(f"{row['what']}: {row['fault']}", file=sys.stderr)
    sys.exit(1 if faults else 0)


# --- report


def write(report: dict, folder: Path) -> None:
    """What is known so far, as JSON and as Markdown."""
    write_text(folder / "report.json", json.dumps(report, indent=1))
    said, parts = report["machine"], report["parts"]
    where = (f"{'Rehearsed at tiny sizes, which says nothing of speed, on' if report['rehearsed'] else 'Measured on'} "
             f"{said['gpu'] or said['cpu']}; torch {report['versions']['torch']}; commit {report['commit']}.")
    summary = {name: {**part, "seconds": f"{part['seconds']:.1f}"} for name, part in parts.items()}
    columns = {"goal": ("goal", ""), "state": ("state", ""), "seconds": ("s", "")}
    pages = [where, markdown(summary, "part", columns), *(page(name, part) for name, part in parts.items())]
    write_text(folder / "report.md", "\n\n".join(pages) + "\n")


def page(name: str, part: dict) -> str:
    """A part with its goal, its rows as a table, and what it last said if it failed."""
    rows = {row["what"]: {key: shown(value) for key, value in row.items()} for row in part["rows"]}
    columns = {key: (key, "") for row in part["rows"] for key in row if key != "what"}
    said = ["```\n" + "\n".join(part["last_lines"]) + "\n```"] * bool(part["last_lines"])
    return "\n\n".join([f"## {name}: {part['state']}", f"Goal: {part['goal']}.",
                        *([markdown(rows, "what", columns)] * bool(rows)), *said])


def shown(value: object) -> str | None:
    """A cell: numbers to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else None if value is None else str(value)


if __name__ == "__main__":
    exit_with_message(main)
