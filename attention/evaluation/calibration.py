"""What suits each text, measured on generated faces: how far its attention reaches, then how much of a strength; see
attention/calibrate.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attention.config import CalibrateConfig
from attention.devices import autocast
from attention.errors import UserError
from attention.evaluation.metrics import iou, lacking
from attention.evaluation.tables import markdown
from attention.files.disk import run_folder
from attention.generator import sample_z
from attention.method.defaults import STRENGTH
from attention.method.editor import RegionEditor, Source
from attention.method.spatial_attention import threshold_for
from attention.training.folder import EDITOR
from attention.training.runs import Calibration, load_run, write_calibration
from attention.worlds.truth import Faces
from attention.worlds.world import World

SHARES = (0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)         # of the usual strength, that are tried
FALL = 0.2          # of success: a share at which it has fallen by so much is overdone, whatever succeeds beyond it
OFFSETS = tuple(step / 4 for step in range(-24, 17))            # of the attention's logits, that are tried


def calibrate(config: CalibrateConfig) -> Path:
    """Measure every prompt, write what suits it into the editor's file; returns its path.

    Raises:
        UserError: the run has no whole editor, or nothing is known of its world's faces.
    """
    path = config.run / EDITOR
    if not path.exists():
        raise UserError(f"--run {config.run} holds no {EDITOR}, expected the folder of a run that was trained")
    run_folder(config.run, "--run")                     # what cannot be written is told before the work
    if config.forget:
        write_calibration(path, Calibration())
        print(f"{path} gives every text the same strength and the same gate again")
        return path
    editor, world, _ = load_run(config.run, config.device, config.trust, config.ckpt, World.preview)
    Calibration().teach(editor, world)
    z = sample_z(config.faces, world.generator.style_dim, config.seed)
    faces, sources = world.truth.faces(z), [editor.source(w[None]) for w in world.w_from_z(z)]
    overlap = overlaps(editor, world, sources, faces, config)
    offsets = {text: max(by_offset, key=by_offset.__getitem__) for text, by_offset in overlap.items()}
    Calibration(offsets=offsets).teach(editor, world)
    success = successes(editor, world, sources, faces, config)
    amounts = {prompt: suiting(by_share, config.slack) for prompt, by_share in success.items()}
    write_calibration(path, Calibration(amounts, offsets))
    print(report(overlap, offsets, success, amounts))
    print(f"written into {path}")
    return path


def report(overlap: Mapping[str, Mapping[float, float]], offsets: Mapping[str, float],
           success: Mapping[str, Mapping[float, float]], amounts: Mapping[str, float]) -> str:
    """What was measured and what was taken, as two Markdown tables."""
    places: dict = {text: {"before": by_offset[0.0], "after": by_offset[offsets[text]], "taken": offsets[text]}
                    for text, by_offset in overlap.items()}
    shares: dict = {prompt: {**by_share, "taken": amounts[prompt]} for prompt, by_share in success.items()}
    columns: dict = {share: (f"{share:g}", ".2f") for share in SHARES} | {"taken": ("taken", "g")}
    return "\n\n".join([
        markdown(places, "IoU with the part", {"before": ("as trained", ".2f"), "after": ("calibrated", ".2f"),
                                               "taken": ("offset", "g")}),
        markdown(shares, f"success at {STRENGTH} times", columns)])


@torch.no_grad()
def overlaps(editor: RegionEditor, world: World, sources: Sequence[Source], faces: Faces,
             config: CalibrateConfig) -> dict[str, dict[float, float]]:
    """{text: {offset: mean IoU of what its gate lets through with its true part}}, of all prompts and names of parts."""
    meant = {text: prompt for prompt in world.prompts for text in (world.truth.part_name(prompt), prompt)}
    said, found = world.clip.encode_text(list(meant)), []
    for number, source in enumerate(tqdm(sources, desc="places")):
        part = torch.cat([faces.take([number]).part(prompt) for prompt in meant.values()]).to(said.device)  # (texts, S, S)
        logits = editor.attention(editor.generator.constant, source.features, said)                 # (texts, 1, h, h)
        places = [editor.place(source, logits + offset, threshold_for(config.coverage)) for offset in OFFSETS]
        found.append(torch.stack([iou(place.gated, part) for place in places], dim=1))              # (texts, offsets)
    means = torch.stack(found).mean(dim=0).tolist()
    return {text: dict(zip(OFFSETS, row, strict=True)) for text, row in zip(meant, means, strict=True)}


@torch.no_grad()
def successes(editor: RegionEditor, world: World, sources: Sequence[Source], faces: Faces,
              config: CalibrateConfig) -> dict[str, dict[float, float]]:
    """{prompt: {share: share of the faces that lacked it and then have it}}, as METRICS counts success; empty for a
    prompt that no face lacked."""
    rows = {attribute.phrase: row for row, attribute in enumerate(world.truth.attributes)}
    gained: dict[str, list[np.ndarray]] = {prompt: [] for prompt in world.prompts}              # of every face (shares,)
    for number, source in enumerate(tqdm(sources, desc="strengths")):
        face = faces.take([number])
        lacked = lacking(face, world.truth.read(source.image.clamp(-1, 1), face))[:, 0]
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
    """The least share whose success lies within `slack` of the best before the first FALL; 1 where none succeeds.

    Args:
        success: by share of the usual strength, in rising order.
    """
    before_fall: dict[float, float] = {}
    for share, value in success.items():
        if value < max(before_fall.values(), default=0.0) - FALL:
            break
        before_fall[share] = value
    best = max(before_fall.values(), default=0.0)
    return next((share for share, value in before_fall.items() if value >= best - slack), 1.0) if best else 1.0
