"""What each part of the method is worth: the editor of drawn faces trained anew without it, and measured.

    python -m benchmarks.ablations                       every variant into runs/ablations, then the table
    python -m benchmarks.ablations --only K_5            one variant

Every variant has the same seeds and 600 steps, and is measured by attention.evaluate at the default
strength. What is trained already is not trained again, and the table has what is there:
benchmarks/results/ablations.{json,md}.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from attention import clustering_feature, evaluate, run_attention
from attention.config import Config, option, parse_config
from attention.errors import UserError, exit_with_message
from attention.evaluation.metrics import table
from attention.files.disk import run_folder, write_text
from attention.files.reading import read_report
from attention.method.defaults import STRENGTH

STEPS = 600
RESULTS = Path(__file__).parent / "results"
# Variant -> flags of both steps, of the regions alone, of the training alone.
VARIANTS: dict[str, tuple[str, str, str]] = {
    "as shipped (K 64)": ("", "", ""),
    "K 5": ("--cluster_num 5", "", ""),
    "K 10": ("--cluster_num 10", "", ""),
    "K 20": ("--cluster_num 20", "", ""),
    "K 40": ("--cluster_num 40", "", ""),
    "no position planes": ("", "--position_weight 0", ""),
    "no consistency term": ("", "", "--lambda_ess 0"),
    "no budget term": ("", "", "--lambda_sec 0"),
    "no area term": ("", "", "--lambda_area 0"),
    "no budget, no area": ("", "", "--lambda_sec 0 --lambda_area 0"),
    "image targets": ("", "", "--target image"),
    "mixed targets": ("", "", "--target mixed"),
    "blend at 32 px": ("--attention_layer 10", "", ""),
}


class Evaluated(BaseModel):
    """What the table takes of a metrics.json."""

    mean: dict[str, float | None]


class AblationConfig(Config):
    """Options."""

    only: str | None = option(None, "one variant, as its folder is called")
    runs: Path = option(Path("runs/ablations"), "folder of the runs")


def main(argv: Sequence[str] | None = None) -> Path:
    """Train what is missing, measure, write the table; returns its path."""
    config = parse_config(AblationConfig, argv, __doc__)
    chosen = [name for name in VARIANTS if config.only in (None, folder(name))]
    if not chosen:
        raise UserError(f"--only is {config.only}, expected one of {', '.join(map(folder, VARIANTS))}")
    run_folder(config.runs, "--runs")
    for name in chosen:
        run = config.runs / folder(name)
        if not (run / f"checkpoints/{STEPS:06d}.pt").is_file():
            train(run, *VARIANTS[name])
        evaluate.main(["--run", str(run), "--strengths", str(STRENGTH)])
    return write_table(config.runs)


def write_table(runs: Path) -> Path:
    """The means of every variant that is measured, as JSON and Markdown; returns the latter's path."""
    paths = {name: runs / folder(name) / "metrics.json" for name in VARIANTS}
    rows = {name: read_report(path, "a report of attention.evaluate", Evaluated).mean for name, path in paths.items()
            if path.is_file()}
    page = table(rows, "variant")
    write_text(RESULTS / "ablations.json", json.dumps(rows, indent=1))
    write_text(RESULTS / "ablations.md", page + "\n")
    print(page)
    return RESULTS / "ablations.md"


def folder(name: str) -> str:
    """A variant's name as a folder and on the command line."""
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_").replace("__", "_")


def train(run: Path, both: str, regions: str, training: str) -> None:
    """One variant, as the main job trains."""
    world = ["--domain", "drawn", "--run", str(run), "--overwrite", *both.split()]       # what was not finished
    clustering_feature.main([*world, *regions.split()])
    run_attention.main([*world, *training.split(), "--step", str(STEPS)])


if __name__ == "__main__":
    exit_with_message(main)
