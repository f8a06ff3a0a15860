"""Measure an editor on drawn faces, where the truth is known to the pixel.

    python -m attention.evaluate --run runs/drawn

Every prompt of the domain edits the same unseen faces. Writes RUN/metrics.json and RUN/edits.png and prints a table:
  success     share of the faces that lacked the attribute for which the attribute reader now sees it
  PSNR out    dB of edit against source outside the prompt's true part, grown by 2 px (peak 2)
  in / out    mean absolute change inside and outside the true part, pictures in [-1, 1]
  IoU         of the gated mask (before its blur) with the true part, where = the prompt; again with the part's name
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.checkpoints import write_atomically
from attention.config import EvaluateConfig, parse_config
from attention.domains import Domain
from attention.drawn.concepts import BY_PHRASE, PART_NAMES, Concept
from attention.drawn.faces import FaceParams
from attention.drawn.reader import AttributeReader, accuracy
from attention.drawn.truth import grow, true_part
from attention.editor import Edit, RegionEditor, Source, autocast
from attention.errors import UserError, exit_with_message
from attention.published import SHIPPED
from attention.runs import load_run
from attention.sheets import edit_sheet, evenly
from attention.spatial_attention import threshold_attention, threshold_for

MARGIN = 2          # px around the true part that do not count as outside
FACES_AT_ONCE = 16
SHEET_FACES, SHEET_PROMPTS = 4, 16


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, load, measure every prompt, write; returns the path of metrics.json."""
    config = parse_config(EvaluateConfig, argv, __doc__)
    editor, domain, trained = load_run(config.run, config.device, config.trust)
    if not domain.entry.drawn:
        raise UserError(f"{config.run} edits {domain.name}, but this evaluation needs the truth that only drawn faces "
                        "have; evaluate a run of --domain drawn")
    reader = AttributeReader.load(SHIPPED / "reader.safetensors").to(domain.device)
    z = torch.randn(config.faces, domain.generator.style_dim, generator=torch.Generator().manual_seed(config.seed))
    params, w = FaceParams.from_z(z.numpy()), domain.w_from_z(z)
    sources = [editor.source(part) for part in w.split(FACES_AT_ONCE)]
    trust = accuracy(reader, torch.cat([source.image for source in sources]), params)

    rows, shown = {}, {}
    for prompt in tqdm(domain.entry.prompts, desc="prompts"):
        edits = edit_all(editor, domain, sources, prompt, config)
        rows[prompt] = measure(editor, domain, reader, sources, edits, params, BY_PHRASE[prompt], config)
        shown[prompt] = (edits[0].image[:SHEET_FACES], edits[0].mask[:SHEET_FACES])
    means = {name: _mean([row[name] for row in rows.values()]) for name in next(iter(rows.values()))}
    report = {"run": str(config.run), "faces": config.faces, "strength": config.strength, "coverage": config.coverage,
              "training_steps": trained.step, "reader_balanced_accuracy_on_unedited": trust,
              "mean": means, "prompts": rows}
    write_atomically(config.run / "metrics.json", lambda path: path.write_text(json.dumps(report, indent=1)))
    chosen = evenly(list(shown), SHEET_PROMPTS)
    sheet = edit_sheet(sources[0].image[:SHEET_FACES], chosen, *zip(*(shown[prompt] for prompt in chosen), strict=True))
    write_atomically(config.run / "edits.png", lambda path: sheet.save(path, format="PNG"))
    print(table(rows, means))
    print(f"the reader's own balanced accuracy on these faces unedited: {_mean(list(trust.values())):.3f}")
    print(f"pictures in {config.run / 'edits.png'}, figures in {config.run / 'metrics.json'}")
    return config.run / "metrics.json"


@torch.no_grad()
def edit_all(editor: RegionEditor, domain: Domain, sources: Sequence[Source], prompt: str,
             config: EvaluateConfig) -> list[Edit]:
    """Edit every source with *what* = *where* = the prompt."""
    text = domain.clip.encode_text([prompt])
    with autocast(config.precision, domain.device):
        return [editor(source, text.expand(len(source), -1), text.expand(len(source), -1), config.strength,
                       threshold_for(config.coverage)) for source in sources]


@torch.no_grad()
def measure(editor: RegionEditor, domain: Domain, reader: AttributeReader, sources: Sequence[Source],
            edits: Sequence[Edit], params: FaceParams, concept: Concept, config: EvaluateConfig) -> dict:
    """The figures of one prompt over all faces; a figure that no face can give is None."""
    before, after = (torch.cat([part.image for part in parts]) for parts in (sources, edits))
    part = torch.from_numpy(true_part(params, concept)).to(before.device)                # (N, S, S)
    outside, change = ~grow(part, MARGIN), (after - before).abs().mean(dim=1)            # (N, S, S)
    squared = (after.clamp(-1, 1) - before.clamp(-1, 1)).square().mean(dim=1)
    error = (squared * outside).sum(dim=(1, 2)) / outside.sum(dim=(1, 2))
    lacked = torch.from_numpy(concept.truth(params) == 0) & ~torch.from_numpy(reader.holds(concept, before))
    name = domain.clip.encode_text([PART_NAMES[concept.part][0]])
    named = [threshold_attention(editor.attend(source, name.expand(len(source), -1))[1],
                                 threshold_for(config.coverage)) for source in sources]
    gained = reader.holds(concept, after)[lacked.numpy()]
    return {"success": _mean(gained.astype(float).tolist()), "faces": int(lacked.sum()),
            # Faces without any change would be infinitely good; 80 dB is less than one 8-bit step anywhere.
            "psnr_outside": float((10 * torch.log10(4 / error.clamp(min=4e-8))).mean()),
            "change_inside": float(change[part].mean()), "change_outside": float(change[outside].mean()),
            "iou": iou(torch.cat([edit.gated for edit in edits]), part), "iou_part_name": iou(torch.cat(named), part)}


def iou(gated: Tensor, part: Tensor) -> float:
    """Mean over faces of the IoU of a gated map (N, 1, h, h) above 0 with a true part (N, S, S) bool."""
    mask = F.interpolate(gated, size=part.shape[-2:], mode="nearest")[:, 0] > 0
    return float(((mask & part).sum(dim=(1, 2)) / (mask | part).sum(dim=(1, 2)).clamp(min=1)).mean())


def table(rows: dict[str, dict], means: dict) -> str:
    """The figures as a Markdown table, one row a prompt and the mean last."""
    lines = ["| prompt | success | faces | PSNR out | in | out | IoU | IoU by name |", "|---|---|---|---|---|---|---|---|"]
    for prompt, row in [*rows.items(), ("**mean**", means)]:
        success = "-" if row["success"] is None else f"{row['success']:.2f}"
        lines.append(f"| {prompt} | {success} | {row['faces']:.0f} | {row['psnr_outside']:.1f} | "
                     f"{row['change_inside']:.3f} | {row['change_outside']:.4f} | {row['iou']:.2f} | "
                     f"{row['iou_part_name']:.2f} |")
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


if __name__ == "__main__":
    exit_with_message(main)
