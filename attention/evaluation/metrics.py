"""What an edit is worth, whatever method made it, of faces whose truth is known (`worlds/truth.py`).

    figures = measure(before, after, gated, Asked.of(world.truth, faces, "grey hair"), world.clip)

One-sided figures are won by doing nothing (locality, collateral) or by changing everything (success): read them together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from attention.clip_models.base import TextImageModel
from attention.evaluation.tables import markdown
from attention.files.disk import write_atomically
from attention.worlds.truth import Faces, Seen, Truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 2              # px around the true part that do not count as outside
LEAST_ERROR = 1e-8      # mean square below which pictures count as equal: 80 dB, less than one 8-bit step anywhere
AT_ONCE = 16            # pictures; bounds the memory of SSIM and LPIPS
# Key of `measure` -> heading in tables, format.
COLUMNS = {"success": ("success", ".2f"), "faces": ("faces", ".0f"), "collateral": ("collateral", ".3f"),
           "psnr_outside": ("PSNR out", ".1f"), "ssim_outside": ("SSIM out", ".4f"), "mse_outside": ("MSE out", ".1e"),
           "lpips_outside": ("LPIPS out", ".4f"), "largest_outside": ("largest out", ".3f"),
           "change_inside": ("in", ".3f"), "change_outside": ("out", ".4f"), "iou": ("IoU", ".2f"),
           "iou_part_name": ("IoU by name", ".2f"), "identity": ("identity", ".2f"), "clip_gain": ("CLIP gain", ".3f")}


@dataclass(frozen=True)
class Asked:
    """A prompt, N faces that it is asked of, what is really so of them, and part (N, S, S) bool, the pixels it means."""

    prompt: str
    faces: Faces
    truth: Truth
    part: Tensor

    @classmethod
    def of(cls, truth: Truth, faces: Faces, prompt: str) -> "Asked":
        return cls(prompt, faces, truth, faces.part(prompt))

    @property
    def row(self) -> int:
        """Of the prompt among the attributes."""
        return [attribute.phrase for attribute in self.truth.attributes].index(self.prompt)


@torch.no_grad()
def measure(before: Tensor, after: Tensor, gated: Tensor | None, asked: Asked, clip: TextImageModel,
            lpips: Callable[[Tensor, Tensor], Tensor] | None = None) -> dict[str, float | None]:
    """The figures of one prompt over N faces; one that no face can give is None.

    Pictures count as a screen shows them, in [-1, 1]: a colour beyond that is no edit that anybody sees. "Outside" is
    all but the true part grown by MARGIN; what is said of it is computed with the inside of `after` replaced by `before`,
    so that no window of SSIM and no feature of LPIPS sees what the edit may change.

    Args:
        before, after: (N, 3, S, S), the faces asked about and their edits.
        gated: (N, 1, h, h), above 0 where the method means to edit; None for a method without a mask.
        lpips: see perceptual.load_lpips.
    Returns:
        success: share of the faces that lacked the attribute, by the truth and by the reader, in which the reader sees it
            now; faces: their number.
        collateral: see `collateral`. identity: share of faces that are the same face (`Seen.same_face`).
        clip_gain: see `clip_gain`. iou: see `iou`.
        psnr_outside (dB, at most 80 a face), ssim_outside, mse_outside, lpips_outside, largest_outside: means over faces of
            `locality`, of pixels in [0, 1].
        change_inside, change_outside: mean absolute change of pixels in [-1, 1], inside the true part and outside.
    """
    before, after, part = before.clamp(-1, 1), after.clamp(-1, 1), asked.part.to(before.device)
    outside, change = ~grow(part, MARGIN), (after - before).abs().mean(dim=1)               # (N, S, S)
    batches = zip(*(tensor.split(AT_ONCE) for tensor in (after, before, outside)), strict=True)
    parts = [locality(*batch, lpips) for batch in batches]
    kept = {f"{name}_outside": float(torch.cat([figures[name] for figures in parts]).nanmean()) for name in parts[0]}
    seen_before, seen_after = asked.truth.read(before), asked.truth.read(after)
    return {**success(asked, seen_before, seen_after), "collateral": collateral(asked, seen_before, seen_after),
            "lpips_outside": None, **kept,
            "change_inside": float(change[part].mean()), "change_outside": float(change[outside].mean()),
            "iou": None if gated is None else iou(gated, part),
            "identity": float(seen_before.same_face(seen_after).mean()),
            "clip_gain": clip_gain(before, after, asked.prompt, clip)}


def success(asked: Asked, before: Seen, after: Seen) -> dict[str, float | None]:
    """The success of `measure`, and the faces that it counts, from what the reader saw before and after."""
    lacked = (asked.faces.states()[asked.row] == 0) & ~before.holds()[asked.row]
    return {"success": mean(after.holds()[asked.row][lacked].tolist()), "faces": int(lacked.sum())}


def collateral(asked: Asked, before: Seen, after: Seen) -> float:
    """Share of a face's other attributes that the reader sees changed, mean over faces.

    Phrases about the prompt's own attribute do not count: a face with red hair cannot keep black hair. Only what was
    plainly true or false of the face counts; where the truth is a matter of taste, the reader is near its bound and turns
    over by itself. Drawings with the prompt made true, the perfect edit, have 0.002; with matters of taste 0.014.
    """
    own = asked.truth.attributes[asked.row].attribute
    others = [row for row, attribute in enumerate(asked.truth.attributes) if attribute.attribute != own]
    plain = ~np.isnan(asked.faces.states()[others])                                         # (others, N)
    changed = before.holds()[others] != after.holds()[others]
    return float(((changed & plain).sum(axis=0) / np.maximum(plain.sum(axis=0), 1)).mean())


def clip_gain(before: Tensor, after: Tensor, prompt: str, clip: TextImageModel) -> float:
    """By how much the edit raises a picture's cosine similarity to the prompt, mean over faces."""
    text = clip.encode_text([prompt])
    similar = [F.cosine_similarity(clip.encode_image(images), text) for images in (before, after)]
    return float((similar[1] - similar[0]).mean())


def iou(gated: Tensor, part: Tensor) -> float:
    """Mean over faces of the IoU of a gated map (N, 1, h, h) above 0 with a true part (N, S, S) bool."""
    mask = F.interpolate(gated, size=part.shape[-2:], mode="nearest")[:, 0] > 0
    return float(((mask & part).sum(dim=(1, 2)) / (mask | part).sum(dim=(1, 2)).clamp(min=1)).mean())


def locality(edited: Tensor, reference: Tensor, keep: Tensor,
             lpips: Callable[[Tensor, Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """How far pictures (B, 3, R, R) in [-1, 1] stayed like a reference where they should, each figure (B,).

    Elsewhere the reference is pasted over the edit. SSIM is then averaged over every pixel of `keep`, also those near the
    border: leaving them out would leave out the seams.

    Args:
        keep: (B, R, R) bool, the pixels that should not change.
        lpips: see perceptual.load_lpips.
    Returns:
        Of pixels in [0, 1]: "mse", "psnr" and "ssim" over `keep`, "largest" the largest change of a channel; "lpips" of the
        whole picture, if given. NaN where `keep` is empty.
    """
    reference = reference.clamp(-1, 1)
    pasted, area = torch.where(keep[:, None], edited.clamp(-1, 1), reference), keep.sum(dim=(1, 2))
    pixels = [(picture + 1) / 2 for picture in (pasted, reference)]
    difference = pixels[0] - pixels[1]
    mse = difference.square().mean(dim=1).sum(dim=(1, 2)) / area                            # 0 / 0 is NaN
    _, similar = structural_similarity_index_measure(*pixels, data_range=1.0, reduction="none", return_full_image=True)
    figures = {"mse": mse, "psnr": -10 * torch.log10(mse.clamp(min=LEAST_ERROR)),
               "ssim": (similar.mean(dim=1) * keep).sum(dim=(1, 2)) / area, "largest": difference.abs().amax(dim=(1, 2, 3))}
    if lpips is not None:
        figures["lpips"] = lpips(pasted, reference).flatten()
    return {name: values.masked_fill(area == 0, torch.nan) for name, values in figures.items()}


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def means(rows: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of every figure over the rows (prompts) that have it."""
    return {name: mean([row[name] for row in rows.values()]) for name in next(iter(rows.values()))}


def table(rows: Mapping[str, Mapping[str, float | None]], first: str) -> str:
    """Rows of figures by name as a Markdown table headed `first`: the columns of COLUMNS that any row has a figure for."""
    return markdown(rows, first, COLUMNS)


def plot_sweep(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Write a PNG of success against preservation; see `sweep_figure`."""
    write_atomically(path, lambda temporary: sweep_figure(curves).savefig(temporary, format="png"))


def sweep_figure(curves: Mapping[str, Sequence[tuple[float, float]]]) -> "Figure":
    """One curve a method, a point a strength: (success, PSNR outside in dB). Up and to the right is better."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (half a second and a cache of fonts that only drawing needs)

    figure = Figure((6.8, 5.2), 110, layout="constrained")
    panel = figure.add_subplot()
    for name, points in curves.items():
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.2, label=name)
    panel.set(xlabel="success", ylabel="PSNR outside the true part (dB)", xlim=(-0.02, 1.02))
    panel.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    return figure


def grow(mask: Tensor, pixels: int) -> Tensor:
    """(N, S, S) bool grown by a square of `pixels` on each side."""
    return F.max_pool2d(mask[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0.5
