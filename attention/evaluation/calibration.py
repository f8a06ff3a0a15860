"""How much of a strength suits each prompt, measured on generated faces; see attention/calibrate.py."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attention.config import CalibrateConfig
from attention.errors import UserError
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder
from attention.generator import sample_z
from attention.method.defaults import STRENGTH
from attention.method.editor import RegionEditor, Source, autocast
from attention.method.spatial_attention import threshold_for
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
    run_folder(config.run, "--run")                     # what cannot be written is told before the work
    if config.forget:
        write_amounts(path, {})
        print(f"{path} gives every text the same strength again")
        return path
    editor, world, _ = load_run(config.run, config.device, config.trust, config.ckpt, World.preview)
    editor.mapper.forget_amounts()
    success = successes(editor, world, sample_z(config.faces, world.generator.style_dim, config.seed), config)
    amounts = {prompt: suiting(by_share, config.slack) for prompt, by_share in success.items()}
    write_amounts(path, amounts)
    table = {prompt: {**by_share, "taken": amounts[prompt]} for prompt, by_share in success.items()}
    columns: dict = {share: (f"{share:g}", ".2f") for share in SHARES} | {"taken": ("taken", "g")}
    print(markdown(table, f"success at {STRENGTH} times", columns))
    print(f"written into {path}")
    return path


@torch.no_grad()
def successes(editor: RegionEditor, world: World, z: Tensor, config: CalibrateConfig) -> dict[str, dict[float, float]]:
    """{prompt: {share: share of the faces z (N, style_dim) that lacked it and then have it}}, as METRICS counts success;
    empty for a prompt that no face lacked."""
    faces, w = world.truth.faces(z), world.w_from_z(z)
    rows = {attribute.phrase: row for row, attribute in enumerate(world.truth.attributes)}
    gained: dict[str, list[np.ndarray]] = {prompt: [] for prompt in world.prompts}              # of every face (shares,)
    for number in tqdm(range(len(z)), desc="calibration"):
        source, face = editor.source(w[number:number + 1]), faces.take([number])
        lacked = (face.states()[:, 0] == 0) & ~world.truth.read(source.image.clamp(-1, 1), face).holds()[:, 0]
        for prompt in world.prompts:
            if lacked[rows[prompt]]:
                edits, same = at_shares(editor, world, source, prompt, config), faces.take([number] * len(SHARES))
                held = world.truth.read(edits, same).holds()[rows[prompt]]
                gained[prompt].append(held & same.shows(prompt, edits))
    return {prompt: dict(zip(SHARES, np.mean(held, axis=0).tolist(), strict=True)) if held else {}
            for prompt, held in gained.items()}


def at_shares(editor: RegionEditor, world: World, source: Source, prompt: str, config: CalibrateConfig) -> Tensor:
    """(shares, 3, R, R) in [-1, 1]: one face edited at every share of the usual strength."""
    text = world.clip.encode_text([prompt])
    place = editor.locate(source, text, threshold_for(config.coverage))
    strengths = STRENGTH * torch.tensor(SHARES, device=text.device)[:, None]
    styles = editor.mapper(source.styles, text.expand(len(SHARES), -1), strengths)
    with autocast(config.precision, world.device):
        image = editor.apply(source, styles, place.mask.expand(len(SHARES), -1, -1, -1), keep_features=False).image
    return image.clamp(-1, 1)


def suiting(success: Mapping[float, float], slack: float) -> float:
    """The least share whose success lies within `slack` of the best; 1 where nothing is known.

    Args:
        success: by share of the usual strength, in rising order.
    """
    return next((share for share, value in success.items() if value >= max(success.values()) - slack), 1.0)
