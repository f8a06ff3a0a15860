"""What suits each text, measured on generated faces: how far its attention reaches, then which layers it changes and by
how much of a strength; see attention/calibrate.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attention.config import CalibrateConfig
from attention.devices import autocast
from attention.errors import UserError, shown
from attention.evaluation.metrics import iou, lacking
from attention.evaluation.tables import markdown
from attention.generator import LayerSpec, sample_z
from attention.method import dose
from attention.method.defaults import STRENGTH
from attention.method.editor import RegionEditor, Source
from attention.method.spatial_attention import threshold_for
from attention.training.folder import EDITOR, claimed
from attention.training.runs import Calibration, editor_file, load_run, read_editor, write_calibration
from attention.worlds.truth import Faces
from attention.worlds.world import World

SHARES = (0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)         # of the usual strength, that are tried
FALL = 0.2          # of success: a share at which it has fallen by so much is overdone, whatever succeeds beyond it
ENOUGHS = (0.8, 0.84, dose.ENOUGH, 0.9, 0.93, 0.96)               # of what a text can gain, that are tried
NEARLY = 0.95       # of the best IoU, which the narrowest gate must have that is taken
BETTER = 0.05       # of IoU, that another text must bring
KEPT_BELOW = (0, 16)            # px: layers of smaller maps leave their styles as they are; what is tried
OFFSETS = tuple(step / 4 for step in range(-24, 17))            # of the attention's logits, that are tried


def calibrate(config: CalibrateConfig) -> Path:
    """Measure every prompt, write what suits it into the editor's file, or show what stands there; returns its path.

    Raises:
        UserError: the run has no whole editor, or nothing is known of its world's faces.
    """
    if config.show:
        path = editor_file(config.run)
        print(known_table(read_editor(path).calibration))
        return path
    path = config.run / EDITOR
    if not path.exists():
        raise UserError(f"--run {config.run} holds no {EDITOR}, expected the folder of a run that was trained")
    with claimed(config.run):                           # what cannot be written is told before the work
        return _calibrate(config, path)


def _calibrate(config: CalibrateConfig, path: Path) -> Path:
    if config.forget:
        write_calibration(path, Calibration())
        print(f"{path} gives every text the same strength and the same gate again")
        return path
    editor, world, _ = load_run(config.run, config.device, config.trust, config.ckpt, World.preview)
    before = read_editor(path).calibration
    # What a text means, which nothing here measures.
    meant = Calibration(toward=before.toward, shares=before.shares, kept_last=before.kept_last, spared=before.spared,
                        structure=before.structure, reach=before.reach, surer=before.surer)
    z = sample_z(config.faces, world.generator.style_dim, config.seed)
    faces, sources = world.truth.faces(z), [editor.source(w[None]) for w in world.w_from_z(z)]
    above, below = rows_of(world, faces)
    known = meant._replace(above=above, below=below)
    known.teach(editor, world)
    overlap = overlaps(editor, world, sources, faces, config)
    places = better_named(overlap, world)
    reached = by_texts(overlap) | {prompt: overlap[name, prompt] for prompt, name in places.items()}
    offsets = {text: reaching(by_offset) for text, by_offset in reached.items()}
    known = known._replace(offsets=offsets, places=places)
    tried: dict[int, dict[str, Tried]] = {}
    for kept in kept_counts(editor.edited):
        known._replace(kept=dict.fromkeys(world.prompts, kept)).teach(editor, world)
        tried[kept] = at_all_shares(editor, world, sources, faces, config)
    suits = {prompt: suit({kept: by_prompt[prompt] for kept, by_prompt in tried.items() if prompt in by_prompt},
                          config.slack, editor.judge is not None) for prompt in world.prompts}
    write_calibration(path, known._replace(
        amounts={prompt: found.amount for prompt, found in suits.items()},
        enough={prompt: found.enough for prompt, found in suits.items() if found.enough is not None},
        kept={prompt: found.kept for prompt, found in suits.items() if found.kept}))
    print(report(reached, offsets, places, suits))
    print(f"written into {path}")
    return path


def known_table(calibration: Calibration) -> str:
    """What an editor's file knows of texts, as a Markdown table; texts in the order of the file."""
    texts = dict.fromkeys(text for table in calibration for text in table)
    columns = {"amounts": ("amount", "g"), "enough": ("enough", "g"), "kept": ("first layers left alone", "g"),
               "kept_last": ("last layers left alone", "g"), "offsets": ("offset of the gate", "g"),
               "places": ("found as", ""), "toward": ("toward", ""), "shares": ("so far", "g"), "spared": ("lips", "g"),
               "structure": ("structure kept", "g"), "reach": ("reach", "g"), "above": ("nothing above", ".3g"),
               "below": ("nothing below", ".3g"), "surer": ("sure by", "g")}
    rows: dict = {shown(text): {name: getattr(calibration, name).get(text) for name in columns} for text in texts}
    return markdown(rows, "text", columns)


def report(reached: Mapping[str, Mapping[float, float]], offsets: Mapping[str, float], places: Mapping[str, str],
           suits: Mapping[str, "Suit"]) -> str:
    """What was measured and what was taken, as two Markdown tables."""
    gates: dict = {text: {"before": by_offset[0.0], "after": by_offset[offsets[text]], "taken": offsets[text],
                          "place": places.get(text)} for text, by_offset in reached.items()}
    shares: dict = {prompt: {**found.success, "taken": found.amount, "enough": found.enough, "kept": found.kept}
                    for prompt, found in suits.items()}
    columns: dict = {share: (f"{share:g}", ".2f") for share in SHARES}
    return "\n\n".join([
        markdown(gates, "IoU with the part", {"before": ("as trained", ".2f"), "after": ("calibrated", ".2f"),
                                              "taken": ("offset", "g"), "place": ("read as", "")}),
        markdown(shares, f"success at {STRENGTH} times", {**columns, "taken": ("taken", "g"), "enough": ("enough", "g"),
                                                          "kept": ("layers kept", "g")})])


def rows_of(world: World, faces: Faces) -> tuple[dict[str, float], dict[str, float]]:
    """Of every prompt and every part's name, the shares of the picture at its top and at its bottom where the part is in
    none of the faces; 0 too is known, lest a text take after another."""
    above: dict[str, float] = {}
    below: dict[str, float] = {}
    for prompt in world.prompts:
        rows = faces.part(prompt).any(dim=-1).any(dim=0).int()                                  # (S,) of all faces
        for free, ordered in ((above, rows), (below, rows.flip(0))):
            share = int(ordered.argmax()) / len(rows)                       # the first row; 0 where no face has the part
            for text in (prompt, world.truth.part_name(prompt)):
                free[text] = min(share, free.get(text, share))
    return above, below


Overlaps = dict[tuple[str, str], dict[float, float]]        # (text, prompt) -> offset -> IoU


@torch.no_grad()
def overlaps(editor: RegionEditor, world: World, sources: Sequence[Source], faces: Faces,
             config: CalibrateConfig) -> Overlaps:
    """Mean IoU of what the gate of a text lets through with the true part of a prompt, by offset: of every prompt by itself
    and by its part's name."""
    pairs = [(text, prompt) for prompt in world.prompts for text in dict.fromkeys((world.truth.part_name(prompt), prompt))]
    texts = list(dict.fromkeys(text for text, _ in pairs))
    row, part_of = [texts.index(text) for text, _ in pairs], [world.prompts.index(prompt) for _, prompt in pairs]
    said, found = world.clip.encode_text(texts), []
    for number, source in enumerate(tqdm(sources, desc="places")):
        face = faces.take([number])
        parts = torch.cat([face.part(prompt) for prompt in world.prompts]).to(said.device)          # (prompts, S, S)
        logits = editor.attention(editor.generator.constant, source.features, said)                 # (texts, 1, h, h)
        gated = [editor.place(source, logits + offset, said, threshold_for(config.coverage)).gated for offset in OFFSETS]
        found.append(torch.stack([iou(maps[row], parts[part_of]) for maps in gated], dim=1))        # (pairs, offsets)
    means = torch.stack(found).mean(dim=0).tolist()
    return {pair: dict(zip(OFFSETS, values, strict=True)) for pair, values in zip(pairs, means, strict=True)}


def by_texts(overlap: Overlaps) -> dict[str, dict[float, float]]:
    """By text and offset: of a part's name, the mean over the prompts that mean this part."""
    of: dict[str, list[dict[float, float]]] = {}
    for (text, _), by_offset in overlap.items():
        of.setdefault(text, []).append(by_offset)
    return {text: {offset: float(np.mean([one[offset] for one in some])) for offset in some[0]}
            for text, some in of.items()}


def reaching(by_offset: Mapping[float, float]) -> float:
    """The least offset, so the narrowest gate, that overlaps NEARLY as well as the best."""
    return min(offset for offset, value in by_offset.items() if value >= NEARLY * max(by_offset.values()))


def better_named(overlap: Overlaps, world: World) -> dict[str, str]:
    """The prompts whose part's name finds it better by BETTER than they do themselves, with that name."""
    names = {prompt: world.truth.part_name(prompt) for prompt in world.prompts}
    return {prompt: name for prompt, name in names.items()
            if max(overlap[name, prompt].values()) > max(overlap[prompt, prompt].values()) + BETTER}


class Tried(NamedTuple):
    """What became of a prompt in the faces that lacked it, at every one of SHARES."""

    held: np.ndarray        # (faces, shares) bool: the face has it, as METRICS counts success
    gains: Tensor           # (faces, shares): see `at_shares`

    @property
    def success(self) -> dict[float, float]:
        """By share."""
        return dict(zip(SHARES, self.held.mean(axis=0).tolist(), strict=True))


@torch.no_grad()
def at_all_shares(editor: RegionEditor, world: World, sources: Sequence[Source], faces: Faces,
                  config: CalibrateConfig) -> dict[str, Tried]:
    """Every prompt that a face lacks, tried in all such faces."""
    rows = {attribute.phrase: row for row, attribute in enumerate(world.truth.attributes)}
    found: dict[str, list[tuple[np.ndarray, Tensor]]] = {prompt: [] for prompt in world.prompts}
    for number, source in enumerate(tqdm(sources, desc="strengths")):
        face, before = faces.take([number]), source.image.clamp(-1, 1)
        lacked = lacking(face, world.truth.read(before, face))[:, 0]
        for prompt in world.prompts:
            if lacked[rows[prompt]]:
                (edits, gains), same = at_shares(editor, world, source, prompt, config), faces.take([number] * len(SHARES))
                held = world.truth.read(edits, same).holds()[rows[prompt]] & same.shows(prompt, edits)
                found[prompt].append((held, gains))
    return {prompt: Tried(np.stack([held for held, _ in each]), torch.stack([gains for _, gains in each]))
            for prompt, each in found.items() if each}


def at_shares(editor: RegionEditor, world: World, source: Source, prompt: str,
              config: CalibrateConfig) -> tuple[Tensor, Tensor]:
    """One face edited at every share of the usual strength: pictures (shares, 3, R, R) in [-1, 1], and by how much the
    judge of doses finds each nearer to the text, (shares,) on the CPU; zeros where there is none."""
    text = world.clip.encode_text([prompt])
    place = editor.locate(source, text, threshold_for(config.coverage))
    strengths = STRENGTH * torch.tensor(SHARES, device=text.device)[:, None]
    styles = editor.mapper(source.styles, text.expand(len(SHARES), -1), strengths)
    with autocast(config.precision, world.device):
        mask = place.mask.expand(len(SHARES), -1, -1, -1)
        image = editor.apply(source, styles, mask, keep_features=False, what=text).image
        gains = editor.gains(source, text, place.mask, SHARES) if editor.judge else [torch.zeros(1)] * len(SHARES)
    return image.clamp(-1, 1), torch.cat(gains).float().cpu()


def suiting(success: Mapping[float, float], slack: float) -> float:
    """The least share whose success lies within `slack` of the best before the first FALL; 1 where none succeeds.

    Args:
        success: by share of the usual strength, in rising order.
    """
    kept = before_fall(success)
    best = max(kept.values(), default=0.0)
    return next((share for share, value in kept.items() if value >= best - slack), 1.0) if best else 1.0


def before_fall(success: Mapping[float, float]) -> dict[float, float]:
    """Success by share in rising order, as far as it has not fallen by FALL."""
    kept: dict[float, float] = {}
    for share, value in success.items():
        if value < max(kept.values(), default=0.0) - FALL:
            break
        kept[share] = value
    return kept


class Suit(NamedTuple):
    """What suits a prompt: `Mapper.kept`, `Mapper.amount`, `RegionEditor.enough` where doses are taken, and its success by
    share of the strength."""

    kept: int
    amount: float
    enough: float | None
    success: Mapping[float, float]


def kept_counts(layers: Sequence[LayerSpec]) -> tuple[int, ...]:
    """How many of the first edited layers are tried without a change, none first."""
    return tuple(dict.fromkeys(sum(layer.resolution < side for layer in layers) for side in KEPT_BELOW))


def suit(tried: Mapping[int, Tried], slack: float, dosed: bool) -> Suit:
    """The most layers that may be kept at a success within `slack` of the best, with what suits the prompt then; as trained
    where none succeeds.

    Args:
        tried: by how many layers were kept; empty where no face lacked the prompt.
    """
    found: list[tuple[float, Suit]] = []
    for kept, one in tried.items():
        amount, enough = dosing(one, slack) if dosed else (suiting(one.success, slack), None)
        success = one.success.get(amount, 0.0) if enough is None else at_doses(one, amount, enough)[0]
        found.append((success, Suit(kept, amount, enough, one.success)))
    best = max((success for success, _ in found), default=0.0)
    if not best:
        return Suit(0, 1.0, dose.ENOUGH if tried and dosed else None, {})
    return max((one for success, one in found if success >= best - slack), key=lambda one: one.kept)


def dosing(tried: Tried, slack: float) -> tuple[float, float]:
    """The amount, and how much of what a text can gain is enough, where every face gets the dose that they lead to: those
    by which faces move least on the mean, of all whose success lies within `slack` of the best before the first FALL; 1
    and dose.ENOUGH where none succeeds."""
    found = {(amount, enough): at_doses(tried, amount, enough)
             for amount in before_fall(tried.success) for enough in ENOUGHS}
    best = max(success for success, _ in found.values())
    moves = {pair: moved for pair, (success, moved) in found.items() if success >= best - slack}
    return min(moves, key=moves.__getitem__) if best else (1.0, dose.ENOUGH)


def at_doses(tried: Tried, amount: float, enough: float) -> tuple[float, float]:
    """Success, and the mean share of the strength, where every face gets the dose that an amount and what is enough lead
    to: of the share tried that is nearest."""
    gains = [torch.tensor([np.interp(amount * share, SHARES, row) for row in tried.gains.numpy()]) for share in dose.SHARES]
    shares = amount * dose.least_share(gains, enough=enough)                                    # (faces, 1)
    nearest = (shares / torch.tensor(SHARES)).log().abs().argmin(dim=1).numpy()
    return float(tried.held[np.arange(len(nearest)), nearest].mean()), float(shares.mean())
