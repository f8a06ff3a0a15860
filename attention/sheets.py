"""Pictures that people look at: sheets of sources, edits and masks."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from attention.images import to_pixels

TITLE = 14              # pixels above every column
PROMPTS_ACROSS = 8      # in one block: wider sheets cannot be read on a screen


def evenly(entries: Sequence[str], count: int) -> list[str]:
    """At most `count` entries from the whole length of a list, in order."""
    return [entries[i] for i in np.unique(np.linspace(0, len(entries) - 1, count).round().astype(int))]


def edit_sheet(source: Tensor, prompts: Sequence[str], edits: Sequence[Tensor], masks: Sequence[Tensor]) -> Image.Image:
    """Blocks of at most PROMPTS_ACROSS prompts, one row a face: the source, then every edit with its mask beside it.

    Args:
        source: (N, 3, R, R) in [-1, 1].
        prompts: P titles.
        edits: P times (N, 3, R, R).
        masks: P times (N, 1, h, h) in [0, 1].
    """
    blocks = [_block(source, prompts[i:i + PROMPTS_ACROSS], edits[i:i + PROMPTS_ACROSS], masks[i:i + PROMPTS_ACROSS])
              for i in range(0, len(prompts), PROMPTS_ACROSS)]
    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), "white")
    y = 0
    for block in blocks:
        sheet.paste(block, (0, y))
        y += block.height
    return sheet


def _block(source: Tensor, prompts: Sequence[str], edits: Sequence[Tensor], masks: Sequence[Tensor]) -> Image.Image:
    side = source.shape[-1]
    columns, titles = [to_pixels(source)], ["source"]
    for prompt, edit, mask in zip(prompts, edits, masks, strict=True):
        grown = F.interpolate(mask.float(), size=(side, side), mode="nearest")
        columns += [to_pixels(edit), to_pixels(grown.expand(-1, 3, -1, -1) * 2 - 1)[:, ::2, ::2]]
        titles += [prompt, ""]
    widths = [column.shape[2] for column in columns]
    sheet = Image.new("RGB", (sum(widths), TITLE + side * len(source)), "white")
    draw, x = ImageDraw.Draw(sheet), 0
    for column, title, width in zip(columns, titles, widths, strict=True):
        draw.text((x + 2, 1), title, fill="black")
        for row, picture in enumerate(column):
            sheet.paste(Image.fromarray(picture), (x, TITLE + row * side))
        x += width
    return sheet
