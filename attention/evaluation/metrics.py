"""What an edit is worth, whatever method made it, of faces whose truth is known (`worlds/truth.py`).

    figures = measure(before, after, gated, Asked.of(world.truth, faces, "grey hair"), world.clip)

One-sided figures are won by doing nothing (locality, collateral) or by changing everything (success): read them together.
A new figure is a function here and one entry of METRICS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from attention.clip_models.base import TextImageModel
from attention.evaluation.tables import markdown
from attention.files.disk import write_atomically
from attention.images import decibels
from attention.worlds.truth import Faces, Seen, Truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 2              # px around the true part that do not count as outside
LEAST_ERROR = 1e-8      # mean square below which pictures count as equal: 80 dB, less than one 8-bit step anywhere
AT_ONCE = 16            # pictures; bounds the memory of SSIM and LPIPS


@dataclass(frozen=True)
class Asked:
    """A prompt, N faces that it is asked of, what is really so of them, and part (N, S, S) bool, the pixels it means.

    Attributes:
        before: what is seen in the faces unedited, if it is known already.
    """

    prompt: str
    faces: Faces
    truth: Truth
    part: Tensor
    before: Seen | None = None

    @classmethod
    def of(cls, truth: Truth, faces: Faces, prompt: str, before: Seen | None = None) -> "Asked":
        return cls(prompt, faces, truth, faces.part(prompt), before)

    @property
    def row(self) -> int:
        """Of the prompt among the attributes."""
        return [attribute.phrase for attribute in self.truth.attributes].index(self.prompt)


@dataclass(frozen=True)
class Measured:
    """The edits of one prompt over N faces, and what every figure of METRICS is computed from.

    "Outside" is all but the true part grown by MARGIN.

    Attributes:
        before, after: (N, 3, S, S) in [-1, 1], the faces asked about and their edits.
        gated: (N, 1, h, h), above 0 where the method means to edit; None for a method without a mask.
        named: the same for the name of the prompt's part in place of the prompt.
        lpips: see perceptual.load_lpips.
    """

    asked: Asked
    before: Tensor
    after: Tensor
    gated: Tensor | None
    named: Tensor | None
    clip: TextImageModel
    lpips: Callable[[Tensor, Tensor], Tensor] | None

    @cached_property
    def part(self) -> Tensor:
        """(N, S, S) bool: the true part."""
        return self.asked.part.to(self.before.device)

    @cached_property
    def outside(self) -> Tensor:
        """(N, S, S) bool: what should not change."""
        return ~grow(self.part, MARGIN)

    @cached_property
    def change(self) -> Tensor:
        """(N, S, S) mean absolute change of a pixel's channels."""
        return (self.after - self.before).abs().mean(dim=1)

    @cached_property
    def seen(self) -> tuple[Seen, Seen]:
        """What the reader sees in the faces, and in their edits."""
        truth, faces = self.asked.truth, self.asked.faces
        return self.asked.before or truth.read(self.before, faces), truth.read(self.after, faces)

    @cached_property
    def succeeded(self) -> dict[str, float | None]:
        """See `success`."""
        return success(self.asked, *self.seen, self.asked.faces.shows(self.asked.prompt, self.after))

    @cached_property
    def kept(self) -> dict[str, float]:
        """Means over faces of `locality` outside."""
        batches = zip(self.after.split(AT_ONCE), self.before.split(AT_ONCE), self.outside.split(AT_ONCE), strict=True)
        parts = [locality(after, before, outside, self.lpips) for after, before, outside in batches]
        return {name: float(torch.cat([figures[name] for figures in parts]).nanmean()) for name in parts[0]}


class Metric(NamedTuple):
    """A figure: its heading and format in tables, and what computes it; None says that no face can give it.

    `kind` says how the figures of several blocks of faces become one, see `together`.
    """

    heading: str
    format: str
    value: Callable[[Measured], float | None]
    kind: Literal["mean", "share", "count"] = "mean"


# In the order of tables. Success: share of the faces that lacked the attribute, by the truth and by the reader, in which
# the reader sees it now and, where pixels can tell, most of the true part shows it (`Faces.shows`); by reader: the same
# without asking the pixels; faces: their number. PSNR at most 80 dB a face; what is measured outside is of pixels in
# [0, 1], but `change_inside` and `change_outside`, mean absolute changes, are of pixels in [-1, 1].
# Distance, identity: how far the face is from its source (`Seen.distance`), share of faces that are the same face.
METRICS: dict[str, Metric] = {
    "success": Metric("success", ".2f", lambda edits: edits.succeeded["success"], "share"),
    "faces": Metric("faces", ".0f", lambda edits: edits.succeeded["faces"], "count"),
    "collateral": Metric("collateral", ".3f", lambda edits: collateral(
        edits.asked, *edits.seen, edits.asked.faces.lost(edits.asked.prompt, edits.asked.part, edits.before, edits.after))),
    "psnr_outside": Metric("PSNR out", ".1f", lambda edits: edits.kept["psnr"]),
    "ssim_outside": Metric("SSIM out", ".4f", lambda edits: edits.kept["ssim"]),
    "mse_outside": Metric("MSE out", ".1e", lambda edits: edits.kept["mse"]),
    "lpips_outside": Metric("LPIPS out", ".4f", lambda edits: edits.kept.get("lpips")),
    "largest_outside": Metric("largest out", ".3f", lambda edits: edits.kept["largest"]),
    "change_inside": Metric("in", ".3f", lambda edits: float(edits.change[edits.part].mean())),
    "change_outside": Metric("out", ".4f", lambda edits: float(edits.change[edits.outside].mean())),
    "iou": Metric("IoU", ".2f", lambda edits: None if edits.gated is None else float(iou(edits.gated, edits.part).mean())),
    "iou_part_name": Metric("IoU by name", ".2f",
                            lambda edits: None if edits.named is None else float(iou(edits.named, edits.part).mean())),
    "success_by_reader": Metric("by reader", ".2f", lambda edits: success(edits.asked, *edits.seen)["success"], "share"),
    "identity_distance": Metric("distance", ".2f", lambda edits: float(edits.seen[0].distance(edits.seen[1]).mean())),
    "identity": Metric("identity", ".2f", lambda edits: float(edits.seen[0].same_face(edits.seen[1]).mean())),
    "clip_gain": Metric("CLIP gain", ".3f",
                        lambda edits: clip_gain(edits.before, edits.after, edits.asked.prompt, edits.clip)),
}
# Heading and format of what METRICS has here, for tables of chosen columns; `table` shows all that METRICS has by then.
COLUMNS: Mapping[str, tuple[str, str]] = {key: (metric.heading, metric.format) for key, metric in METRICS.items()}


@torch.no_grad()
def measure(before: Tensor, after: Tensor, gated: Tensor | None, asked: Asked, clip: TextImageModel,
            lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
            named: Tensor | None = None) -> dict[str, float | None]:
    """The figures of one prompt over N faces, by the keys of METRICS; one that no face can give is None.

    Pictures count as a screen shows them, in [-1, 1]: a colour beyond that is no edit that anybody sees. What is said of
    the outside is computed with the inside of `after` replaced by `before`, so that no window of SSIM and no feature of
    LPIPS sees what the edit may change.

    Args:
        before, after, gated, named, lpips: see `Measured`.
    """
    edits = Measured(asked, before.clamp(-1, 1), after.clamp(-1, 1), gated, named, clip, lpips)
    return {name: metric.value(edits) for name, metric in METRICS.items()}


def lacking(faces: Faces, seen: Seen) -> np.ndarray:
    """(attributes, N) bool: what is plainly not so of faces, and is not seen in them: what an edit can succeed at."""
    found: np.ndarray = (faces.states() == 0) & ~seen.holds()
    return found


def success(asked: Asked, before: Seen, after: Seen, shown: np.ndarray | None = None) -> dict[str, float | None]:
    """The success, and the number of faces that it counts, from what the reader saw before and after; see METRICS.

    Args:
        shown: (N,) bool, `Faces.shows` of the edits; None leaves the verdict to the reader.
    """
    lacked = lacking(asked.faces, before)[asked.row]
    gained = after.holds()[asked.row] & (True if shown is None else shown)
    return {"success": mean(gained[lacked].tolist()), "faces": int(lacked.sum())}


def collateral(asked: Asked, before: Seen, after: Seen, lost: np.ndarray | None = None) -> float:
    """Share of a face's other attributes that the reader sees changed, or that pixels show lost, mean over faces.

    Phrases about the prompt's own attribute do not count: a face with red hair cannot keep black hair. Only what was
    plainly true or false of the face counts; where the truth is a matter of taste, the reader is near its bound and turns
    over by itself. Drawings with the prompt made true, the perfect edit, have 0.002; with matters of taste 0.014.
    """
    own = asked.truth.attributes[asked.row].attribute
    others = [row for row, attribute in enumerate(asked.truth.attributes) if attribute.attribute != own]
    plain = ~np.isnan(asked.faces.states()[others])                                         # (others, N)
    changed = (before.holds() != after.holds())[others]
    if lost is not None:
        changed = changed | lost[others]
    return float(((changed & plain).sum(axis=0) / np.maximum(plain.sum(axis=0), 1)).mean())


def clip_gain(before: Tensor, after: Tensor, prompt: str, clip: TextImageModel) -> float:
    """By how much the edit raises a picture's cosine similarity to the prompt, mean over faces."""
    text = clip.encode_text([prompt])
    similar = [F.cosine_similarity(clip.encode_image(images), text) for images in (before, after)]
    return float((similar[1] - similar[0]).mean())


def iou(gated: Tensor, part: Tensor) -> Tensor:
    """(N,) the IoU of gated maps (N, 1, h, h) above 0 with true parts (N, S, S) bool."""
    mask = F.interpolate(gated, size=part.shape[-2:], mode="nearest")[:, 0] > 0
    found: Tensor = (mask & part).sum(dim=(1, 2)) / (mask | part).sum(dim=(1, 2)).clamp(min=1)
    return found


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
    made, wanted = (pasted + 1) / 2, (reference + 1) / 2
    difference = made - wanted
    mse = difference.square().mean(dim=1).sum(dim=(1, 2)) / area                            # 0 / 0 is NaN
    _, similar = structural_similarity_index_measure(made, wanted, data_range=1.0, reduction="none", return_full_image=True)
    figures = {"mse": mse, "psnr": decibels(mse.clamp(min=LEAST_ERROR)),
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


def together(blocks: Sequence[Mapping[str, float | None]], sizes: Sequence[int]) -> dict[str, float | None]:
    """The figures of one prompt over all faces from those of blocks of them: "faces" is counted, a share is of these, and
    all else counts as a mean over the faces of a block, also mean changes, which are of pixels."""
    result: dict[str, float | None] = {}
    for name in blocks[0]:
        kind = METRICS[name].kind if name in METRICS else "mean"
        weights = sizes if kind == "mean" else [block["faces"] or 0 for block in blocks]
        known = [(value, weight) for block, weight in zip(blocks, weights, strict=True)
                 if (value := block[name]) is not None and weight]
        total = sum(weight for _, weight in known)
        mixed = sum(value * weight for value, weight in known) / total if known else None
        result[name] = total if kind == "count" else mixed
    return result


def table(rows: Mapping[str, Mapping[str, float | None]], first: str) -> str:
    """Rows of figures by name as a Markdown table headed `first`: the columns of METRICS that any row has a figure for."""
    return markdown(rows, first, {key: (metric.heading, metric.format) for key, metric in METRICS.items()})


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
