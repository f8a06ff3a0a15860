"""What the web page can do, apart from its widgets: actions on a user's page, and the pictures that it shows."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attention.editing.session import Change, Edited, Editor
from attention.errors import UserError
from attention.images import to_pixels
from attention.inversion.frame import Frame
from attention.method.regions import region_overlay

LARGEST_TYPED = 2**53 - 1   # whole number that a browser writes exactly
CLICKABLE = 512             # pixels, at least, of the picture that is clicked
VIEW = 1024                 # pixels, at most, of a side of a photo on the screen; the download has them all
THUMBNAIL = 160             # pixels, at most, of the pictures of the history
REGIONS = "regions"         # begins the field *where* if regions are chosen
TINT = 0.35                 # of the colours that show the regions
CHOSEN = np.array([255, 230, 0])            # colour of chosen regions
DIMMED = 0.25               # brightness outside of the mask
GALLERY = ((21, "purple hair", None), (3, "beard", None), (7, "smiling", "mouth"), (11, "red lipstick", "lips"),
           (21, "glasses", None), (5, "blue eyes", "eyes"))         # seed, what, where


@dataclass(frozen=True)
class Page:
    """All that a user's page remembers."""

    edited: Edited
    view: tuple[Image.Image, Frame] | None = None       # the photo at the size of a screen
    chosen: tuple[int, ...] = ()            # regions that the next edit goes to; none: the text says where

    @property
    def where(self) -> str:
        """What the field *where* shows for chosen regions."""
        return f"{REGIONS} {', '.join(map(str, self.chosen))}" if self.chosen else ""


class Desk:
    """What the page can do, apart from its widgets: every action gives the next Page. It holds nothing of a user."""

    def __init__(self, editor: Editor):
        self.editor = editor

    def show_seed(self, seed: float | None) -> Page:
        if seed is None or seed != int(seed) or seed > LARGEST_TYPED:
            raise UserError(f"the seed is {'empty' if seed is None else seed}, expected a whole number from 0 to "
                            f"{LARGEST_TYPED}")
        return Page(self.editor.open_seed(int(seed)))

    def show_photo(self, photo: str | None, framed: bool, landmarks: str | None, face: float | None,
                   refine: float) -> Page:
        if photo is None:
            raise UserError("no photo was chosen; upload one first")
        edited = self.editor.open_photo(photo, landmarks, int(face) if face else None, framed, int(refine))
        assert edited.photo is not None
        whole, frame = edited.photo
        by = min(1.0, VIEW / max(whole.size))
        return Page(edited, (whole.resize([max(1, round(length * by)) for length in whole.size]), frame.scaled(by)))

    def change(self, page: Page, what: str, where: str, strength: float, coverage: float) -> Page:
        edited = page.edited.edit(what, **self._place(page, where), strength=strength, coverage=coverage)
        return replace(page, edited=edited)

    def resemble(self, page: Page, reference: str | None, exact: bool, where: str, strength: float,
                 coverage: float) -> Page:
        if reference is None:
            raise UserError("no picture to resemble was chosen; upload one first")
        if exact:
            face = self.editor.open_photo(reference, aligned=True)
            edited = page.edited.take_styles(face, **self._place(page, where), coverage=coverage)
        else:
            edited = page.edited.resemble(reference, **self._place(page, where), strength=strength, coverage=coverage)
        return replace(page, edited=edited)

    def slide(self, page: Page, strength: float, coverage: float) -> Page:
        """Move the sliders: the last change follows; without one they wait for the next."""
        return replace(page, edited=page.edited.retouch(strength, coverage)) if page.edited.changes else page

    def undo(self, page: Page) -> Page:
        return replace(page, edited=page.edited.undo())

    def start_over(self, page: Page) -> Page:
        return replace(page, edited=page.edited.with_changes(()), chosen=())

    def click(self, page: Page, x: int, y: int) -> Page:
        """Choose the region at a pixel of regions_picture, or give it back if it is chosen."""
        labels, side = page.edited.regions, clickable_side(page.edited)
        region = int(labels[y * len(labels) // side, x * len(labels) // side])
        chosen = set(page.chosen) ^ {region}
        return replace(page, chosen=tuple(sorted(chosen)))

    def example(self, number: int) -> Page:
        seed, what, where = GALLERY[number]
        return Page(self.editor.open_seed(seed).edit(what, where))

    def examples(self) -> list[tuple[Image.Image, str]]:
        """Pictures of the examples and what was said."""
        return [(self.example(number).edited.image, f"{what} @ {where}" if where else what)
                for number, (_, what, where) in enumerate(GALLERY)]

    def type_where(self, page: Page, where: str) -> Page:
        """Words in the field *where*, or none, take the place of chosen regions."""
        return page if where.startswith(REGIONS) or not page.chosen else replace(page, chosen=())

    def _place(self, page: Page, where: str) -> dict[str, Any]:
        """The chosen regions, as long as the field *where* still shows them; else its text."""
        if page.chosen and where.strip() == page.where:
            return {"regions": page.chosen}
        return {"where": where.strip() or None}


def clickable_side(edited: Edited) -> int:
    """Pixels of a side of regions_picture: gradio takes no clicks outside of a picture's own size, so it is large."""
    side = edited.tensor.shape[-1]
    return side * max(1, -(-CLICKABLE // side))


def regions_picture(page: Page) -> Image.Image:
    """The unedited face under the colours of its regions, the chosen ones bright."""
    edited = page.edited
    both = region_overlay(edited.source.image, edited.source.labels, TINT)
    picture = both[len(both) // 2:]                                              # the lower of the two pictures
    chosen = torch.isin(edited.regions, torch.tensor(page.chosen, device=edited.regions.device, dtype=torch.int64))
    inside = F.interpolate(chosen[None, None].float(), size=picture.shape[:2])[0, 0].cpu().numpy() > 0
    picture = np.where(inside[..., None], (picture * 0.4 + CHOSEN * 0.6).astype(np.uint8), picture)
    return Image.fromarray(picture).resize((clickable_side(edited),) * 2, Image.Resampling.NEAREST)


def mask_picture(edited: Edited) -> Image.Image:
    """The unedited face, dark where the last change is not."""
    picture = to_pixels(edited.source.image)[0]
    mask = F.interpolate(edited.mask, size=picture.shape[:2], mode="bilinear")[0, 0].cpu().numpy()
    return Image.fromarray((picture * (DIMMED + (1 - DIMMED) * mask[..., None])).round().astype(np.uint8))


def history(edited: Edited) -> list[tuple[Image.Image, str]]:
    """Every step's picture and what it was."""
    steps = [(edited.source.image, "unedited")]
    steps += [(edit.image, describe(change)) for change, edit in zip(edited.changes, edited.edits, strict=True)]
    pictures = [(picture_of(image), title) for image, title in steps]
    for picture, _ in pictures:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return pictures


def compared(page: Page) -> tuple[Image.Image, Image.Image]:
    """The unedited and the edited picture, a photo at the size of a screen."""
    before = page.edited.with_changes(())
    if page.view is None:
        return before.image, page.edited.image
    return before.put_back(*page.view), page.edited.put_back(*page.view)


def describe(change: Change) -> str:
    """A change in a few words."""
    what = change.what if isinstance(change.what, str) else "like the other picture"
    where = change.where if isinstance(change.where, str) else "regions" if isinstance(change.where, list) else "mask"
    return f"{what[:40]} @ {where[:40]}, {change.strength:g}"


def summary(edited: Edited) -> str:
    """What the picture is, in a line."""
    origin = edited.origin
    face = f"seed {origin['seed']}" if "seed" in origin else "the photo"
    if "psnr" in origin:
        face += f", inverted to {origin['psnr'][1]:.1f} dB"
    if len(edited.changes) > 1:
        face += f", {len(edited.changes)} changes"
    return "; ".join([face, *map(describe, edited.changes[-1:])])


def picture_of(tensor: Tensor) -> Image.Image:
    """(1, 3, R, R) in [-1, 1] as a picture."""
    return Image.fromarray(to_pixels(tensor)[0])
