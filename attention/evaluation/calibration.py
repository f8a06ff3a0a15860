"""How much of a strength suits each prompt, measured on generated faces; see attention/calibrate.py."""

from collections.abc import Mapping
from pathlib import Path

from attention.config import CalibrateConfig, EvaluateConfig
from attention.errors import UserError
from attention.evaluation.generated import FACES_AT_ONCE, measure_all
from attention.evaluation.tables import markdown
from attention.generator import sample_z
from attention.method.defaults import STRENGTH
from attention.training.folder import EDITOR
from attention.training.runs import load_run, write_amounts
from attention.worlds.world import World

SHARES = (0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.6)         # of the usual strength, that are tried


def calibrate(config: CalibrateConfig) -> Path:
    """Measure every prompt at every share, write what suits it into the editor's file; returns its path.

    Raises:
        UserError: the run has no whole editor, or nothing is known of its world's faces.
    """
    path = config.run / EDITOR
    if not path.exists():
        raise UserError(f"--run {config.run} holds no {EDITOR}, expected the folder of a run that was trained")
    if config.forget:
        write_amounts(path, {})
        print(f"{path} gives every text the same strength again")
        return path
    editor, world, _ = load_run(config.run, config.device, config.trust, config.ckpt, World.preview)
    editor.mapper.forget_amounts()
    z = sample_z(config.faces, world.generator.style_dim, config.seed)
    faces, w = world.truth.faces(z), world.w_from_z(z)
    sources = [editor.source(part) for part in w.split(FACES_AT_ONCE)]
    asked = EvaluateConfig(run=config.run, faces=config.faces, coverage=config.coverage, precision=config.precision)
    rows, _ = measure_all(editor, world, sources, faces, [share * STRENGTH for share in SHARES], asked)
    success = {prompt: {share: rows[share * STRENGTH][prompt]["success"] for share in SHARES} for prompt in world.prompts}
    amounts = {prompt: suiting(by_share, config.slack) for prompt, by_share in success.items()}
    write_amounts(path, amounts)
    table = {prompt: {**by_share, "taken": amounts[prompt]} for prompt, by_share in success.items()}
    columns: dict = {share: (f"{share:g}", ".2f") for share in SHARES} | {"taken": ("taken", "g")}
    print(markdown(table, f"success at {STRENGTH} times", columns))
    print(f"written into {path}")
    return path


def suiting(success: Mapping[float, float | None], slack: float) -> float:
    """The least share whose success lies within `slack` of the best; 1 where no face lacked the attribute.

    Args:
        success: by share of the usual strength, in rising order.
    """
    known = {share: value for share, value in success.items() if value is not None}
    if not known:
        return 1.0
    return next(share for share, value in known.items() if value >= max(known.values()) - slack)
