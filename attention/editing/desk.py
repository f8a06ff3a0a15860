"""What the web page can do, apart from its widgets: actions on a user's page, and the pictures that it shows."""

import itertools
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from attention.editing.detector import load_detector
from attention.editing.edited import Edited, pixels
from attention.editing.folder import ServerFolder
from attention.editing.found import Found, frames_of, marked
from attention.editing.history import (
    LONGEST_ADDRESS,
    LONGEST_TEXT,
    MOST_STEPS,
    REGIONS,
    USUAL,
    Opened,
    Page,
    Step,
    describe,
    in_address,
    said_edit,
    said_regions,
    standing,
)
from attention.editing.inputs import LARGEST_SEED, number_of, text_of, whole
from attention.editing.photo import read_photo
from attention.editing.placed import Placed
from attention.editing.session import Editor
from attention.editing.shelf import Shelf
from attention.editing.words import sayable
from attention.errors import UserError
from attention.extras import have
from attention.files.pictures import open_picture
from attention.files.reading import parse_json
from attention.images import to_pixels
from attention.inversion.frame import Frame
from attention.method.defaults import COVERAGE, STRENGTH, STRONGEST
from attention.method.regions import region_overlay

MOST_REFINED = 300          # steps
MOST_FACES = 100            # of a photo, to choose from
CLICKABLE = 512             # pixels, at least, of the picture that is clicked
VIEW = 1024                 # pixels, at most, of a side of a photo on the screen; the download has them all
THUMBNAIL = 160             # pixels, at most, of the pictures of the history
TINT = 0.35                 # of the colours that show the regions
CHOSEN = np.array([255, 230, 0])            # colour of chosen regions
DIMMED = 0.25               # brightness outside of the mask


class Desk:
    """What the page can do, apart from its widgets: every action gives the next Page.

    Of users it holds only what can be made again from their Page and its files.
    """

    def __init__(self, editor: Editor, folder: ServerFolder):
        self.editor, self.folder, self.shelf = editor, folder, Shelf()
        self._numbers = itertools.count()

    @property
    def first_seed(self) -> int:
        """The face that a page begins with."""
        return self.editor.world.examples[0][0]

    # Opening

    def begin(self, address: str) -> Page:
        """What the page's address says (see `address`), as after a reload; it warns where it cannot be followed."""
        try:
            said = parse_qs(text_of(address, "the page's address", LONGEST_ADDRESS).removeprefix("?"))
            seeds, edits = said.get("seed", [str(self.first_seed)]), said.get("edit", [])
            page = self.show_seed(int(seeds[0]) if re.fullmatch("[0-9]{1,20}", seeds[0]) else math.nan)
        except (UserError, ValueError) as error:
            warnings.warn(f"the page's address cannot be followed ({error}), so the page begins anew", stacklevel=2)
            return self.show_seed(self.first_seed)
        for number, edit in enumerate(edits[:MOST_STEPS], start=1):
            try:
                said_edit = parse_json(edit, "it is garbled", "what, where, strength and coverage")
                if not isinstance(said_edit, list) or len(said_edit) not in (4, 5):             # with a dose since 0.3
                    raise UserError("it is garbled")
                page = self.change(page, *said_edit)
            except UserError as error:
                warnings.warn(f"the page's address cannot be followed from edit {number} on: {error}", stacklevel=2)
                break
        return page

    def show_seed(self, seed: float | None) -> Page:
        seed = whole(seed, "the seed", LARGEST_SEED)
        return Page(self._opened(self.editor.open_seed(seed)))

    def find_faces(self, page: Page, photo: str | None) -> Page:
        """What faces a chosen photo has, before one of them is opened; it warns where none can be found."""
        page = replace(page, found=None)
        if photo is None or self.photo_needs():
            return page
        whole_photo = read_photo(photo)
        view = screen_size(whole_photo)
        try:
            frames = frames_of(whole_photo, load_detector(), self.editor.world.frame)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
            return page
        frames = [frame and frame.scaled(shrink(view, whole_photo)) for frame in frames]
        chosen = next(number for number, frame in enumerate(frames) if frame is not None)
        picture, plain = self.folder.keep(marked(view, frames, chosen)), self.folder.keep(view)
        return replace(page, found=Found(photo, picture, plain, tuple(frames), chosen))

    def choose_face(self, page: Page, x: int, y: int) -> Page:
        """Choose the face that was clicked in the picture of those that were found."""
        if page.found is None:
            raise UserError("no photo was chosen; upload one first")
        number = page.found.at(*(whole(value, "the place of the click", VIEW) for value in (x, y)))
        with open_picture(Path(page.found.plain)) as view:
            picture = self.folder.keep(marked(view.convert("RGB"), page.found.frames, number))
        return replace(page, found=page.found.choosing(number, picture))

    def show_photo(self, page: Page | None, photo: str | None, framed: bool, landmarks: str | None, face: float | None,
                   refine: float) -> Page:
        """A photo, kept at the size of a screen; its file is kept for the download."""
        if photo is None:
            raise UserError("no photo was chosen; upload one first")
        if not framed and landmarks is None and (needs := self.photo_needs()):
            raise UserError(f"the face in the photo was not searched. {needs}")
        number = whole(face or 0, "the number of the face", MOST_FACES)
        steps = whole(refine, "refinement", MOST_REFINED)
        edited = self.editor.open_photo(photo, landmarks, number or None, framed, steps)
        assert edited.photo is not None
        whole_photo, frame = edited.photo
        view = screen_size(whole_photo)
        opened = self._opened(edited.with_photo(Placed(view, frame.scaled(shrink(view, whole_photo)))), photo)
        return Page(opened, found=page.found if page else None)

    def photo_needs(self) -> str:
        """What this server cannot do with photos, and what would mend it; empty if it can do all."""
        encoder = self.editor.world.entry.encoder
        if encoder is None or (isinstance(encoder.source, Path) and not encoder.source.is_file()):
            lacks = "has no encoder" if encoder is None else f"lacks its encoder ({Path(encoder.source).name})"
            return f"This server takes no photos: the world {self.editor.world.name} {lacks}."
        if not have("photos"):
            return ("This server finds no faces in photos by itself: add the face's landmarks, or give a picture that is "
                    'framed like the faces here and say so. To find faces it needs: pip install "where2edit[photos]"')
        return ""

    def example(self, number: int) -> Page:
        known = self.editor.world.examples
        seed, what, where = known[whole(number, "the example", len(known) - 1)]
        return self.change(self.show_seed(seed), what, where, STRENGTH, COVERAGE)

    def examples(self) -> list[tuple[Image.Image, str]]:
        """Pictures of the examples and what was said."""
        return [(self.editor.open_seed(seed).edit(what, where or None).image, f"{what} @ {where}" if where else what)
                for seed, what, where in self.editor.world.examples]

    # Editing

    def change(self, page: Page, what: str, where: str, strength: float, coverage: float,
               dose: float | None = None) -> Page:
        """One edit more.

        Args:
            dose: that of its strength, if it was found before, and perhaps for another coverage.
        """
        what, how = text_of(what or "", "what", LONGEST_TEXT), _sliders(strength, coverage)
        page = self._settled(page)
        edited = self.edited(page).edit(what, **self._place(where), **how)
        return self._then(page, edited if dose in (None, edited.changes[-1].dose) else edited.retouch(**how, dose=dose))

    def resemble(self, page: Page, reference: str | None, exact: bool, where: str, strength: float,
                 coverage: float) -> Page:
        if reference is None:
            raise UserError("no picture to resemble was chosen; upload one first")
        page = self._settled(page)
        edited, place, how = self.edited(page), self._place(where), _sliders(strength, coverage)
        if exact:
            face = self.editor.open_photo(reference, aligned=True)
            return self._then(page, edited.take_styles(face, **place, coverage=how["coverage"]))
        return self._then(page, edited.resemble(reference, **place, **how))

    def glance(self, page: Page, strength: float, coverage: float) -> Page:
        """While the sliders move: an early picture of the last change, where the world has such; `rest` makes it whole."""
        how = _sliders(strength, coverage)
        if page.sliders == tuple(how.values()):
            return page
        if page.last is None or self.editor.early is self.editor:
            return self.slide(page, strength, coverage)
        before = self.edited(replace(page, at=page.at - 1)).early()
        picture = before.then(replace(page.last, **how)).image
        return replace(page, sliders=(how["strength"], how["coverage"]), early=self.folder.keep(picture))

    def rest(self, page: Page, strength: float, coverage: float) -> Page:
        """The sliders rest: the whole picture in place of an early one."""
        return self.slide(page, strength, coverage) if page.early else page

    def _settled(self, page: Page) -> Page:
        """A page whose sliders rest where they stand: what comes next must not lose how far they were moved."""
        return self.rest(page, *page.sliders)

    def slide(self, page: Page, strength: float, coverage: float) -> Page:
        """Move the sliders: the last change follows; without one they wait for the next."""
        how = _sliders(strength, coverage)
        if page.last is None:
            return replace(page, sliders=(how["strength"], how["coverage"]))
        before = replace(page, at=page.at - 1)
        edited = self.edited(before).then(replace(page.last, **how))
        self.shelf.drop(page.number)                    # or a slider's way would push out other people's pictures
        return self._add(before, edited)

    def allow(self, page: Page, stronger: bool, strength: float, coverage: float) -> Page:
        """Let the slider of strength go up to STRONGEST, or only to USUAL, and the last change with it."""
        page = replace(page, stronger=bool(stronger))
        return page if stronger else self.slide(page, min(strength, USUAL), coverage)

    def undo(self, page: Page) -> Page:
        if not page.at:
            raise UserError("there is nothing to undo: the picture has not been edited")
        return self.go_to(page, page.at - 1)

    def redo(self, page: Page) -> Page:
        if page.at == len(page.steps):
            raise UserError("there is nothing to do again: this is the last step")
        return self.go_to(page, page.at + 1)

    def go_to(self, page: Page, number: int) -> Page:
        """Show a step of the history, 0 the unedited face; later steps stay until the next edit. A slider that still moves
        at an earlier step than the last takes nothing of the later ones away."""
        page = self._settled(page) if page.at == len(page.steps) else replace(page, early="")
        return standing(replace(page, at=whole(number, "the step", len(page.steps))))

    def start_over(self, page: Page) -> Page:
        return Page(page.opened)

    def click(self, page: Page, x: int, y: int) -> Page:
        """Choose the region at a pixel of regions_picture, or give it back if it is chosen."""
        edited = self.edited(replace(page, at=0))
        labels, side = edited.regions, clickable_side(edited)
        x, y = (whole(value, "the place of the click", side - 1) for value in (x, y))
        region = int(labels[y * len(labels) // side, x * len(labels) // side])
        chosen = tuple(sorted({*page.chosen} ^ {region}))
        return replace(page, chosen=chosen, where=said_regions(chosen))

    def type_where(self, page: Page, where: str) -> Page:
        """Words in the field *where*, or none, take the place of chosen regions."""
        return page if where.startswith(REGIONS) or not page.chosen else replace(page, chosen=())

    def save(self, page: Page) -> Page:
        """Write the picture with its recipe for the download, a photo with all of its pixels."""
        page = self._settled(page)
        edited = self.edited(page)
        if page.opened.photo is not None:
            edited = edited.with_photo(placed(edited.origin, page.opened.photo))
        path = self.folder.new("")
        path.mkdir()
        return replace(page, saved=str(edited.save(path / "edited.png")))

    def joined(self, page: Page, begun: Page, following: Page) -> Page:
        """What a slow action made of the page that it began with, joined to what that has become meanwhile: another face
        takes its place, and a change is made again on what it shows now."""
        if page is begun or following.opened is not begun.opened:
            return following
        page = replace(page, found=following.found, saved=following.saved)
        if following.steps == begun.steps or following.last is None:
            return page
        page = self._settled(page)
        return self._then(page, self.edited(page).then(following.last))

    def edited(self, page: Page) -> Edited:
        """The picture that a page shows, made again as far as it was let go."""
        numbers = [page.opened.number, *(step.number for step in page.steps[:page.at])]
        for known in range(len(numbers) - 1, -1, -1):
            if (edited := self.shelf.get(numbers[known])) is not None:
                break
        else:
            known, edited = 0, self._reopened(page.opened)
        for number, step in zip(numbers[known + 1:], page.steps[known:page.at], strict=True):
            edited = edited.then(step.change)
            self.shelf.put(number, edited)
        return edited

    # What is shown of a page: files

    def picture(self, page: Page) -> str:
        return page.early or (page.steps[page.at - 1].picture if page.at else page.opened.before)

    def compared(self, page: Page) -> tuple[str, str]:
        """The unedited and the edited picture."""
        return page.opened.before, self.picture(page)

    def mask(self, page: Page) -> str:
        return page.steps[page.at - 1].mask if page.at else self.folder.keep(mask_picture(self.edited(page)))

    def regions(self, page: Page) -> str:
        return self.folder.keep(regions_picture(self.edited(replace(page, at=0)), page.chosen))

    def history(self, page: Page) -> list[tuple[str, str]]:
        """Every step's picture and what it was."""
        steps = [(page.opened.thumbnail, "unedited"), *((step.thumbnail, describe(step.change)) for step in page.steps)]
        return [(file, f"\N{BLACK RIGHT-POINTING TRIANGLE} {title}" if number == page.at else title)
                for number, (file, title) in enumerate(steps)]

    def address(self, page: Page) -> str:
        """The recipe of a seed's picture for the page's address: as many of its steps as `in_address` says."""
        if "seed" not in page.opened.origin:
            return ""
        return "?" + urlencode([("seed", page.opened.origin["seed"]), *map(said_edit, page.changes[:in_address(page)])])

    def phrases(self) -> dict[str, tuple[str, ...]]:
        """What can be said, by place in the face."""
        return sayable(self.editor.world)

    # Inside

    def _opened(self, edited: Edited, photo: str | None = None) -> Opened:
        number = next(self._numbers)
        picture = edited.image
        self.shelf.put(number, edited)
        return Opened(number, edited.origin, self.folder.keep(picture), self._thumbnail(edited, picture), photo,
                      edited.photo.frame if edited.photo else None)

    def _reopened(self, opened: Opened) -> Edited:
        """An unedited picture again, from what its page remembers."""
        if "seed" in opened.origin:
            edited = self.editor.open_seed(opened.origin["seed"])
        else:
            assert opened.frame is not None and opened.photo is not None
            edited = self.editor.opened(opened.origin, placed(opened.origin, opened.photo))
            with open_picture(Path(opened.before)) as view:
                edited = edited.with_photo(Placed(view.convert("RGB"), opened.frame))
        self.shelf.put(opened.number, edited)
        return edited

    def _then(self, page: Page, edited: Edited) -> Page:
        """A page after an edit, unless the edit does nothing."""
        if page.at >= MOST_STEPS:
            raise UserError(f"the history holds {MOST_STEPS} edits; undo some, or start over")
        if reason := edited.unchanged(self.edited(page)):
            raise UserError(f"nothing changed: {reason}")
        return self._add(page, edited)

    def _add(self, page: Page, edited: Edited) -> Page:
        """A page with the last change of `edited` after its shown steps; those that could be done again are gone."""
        picture = edited.image
        files = [self.folder.keep(picture), self.folder.keep(mask_picture(edited)), self._thumbnail(edited, picture)]
        step = Step(next(self._numbers), edited.changes[-1], *files)
        self.shelf.put(step.number, edited)
        return standing(replace(page, steps=(*page.steps[:page.at], step), at=page.at + 1))

    def _thumbnail(self, edited: Edited, picture: Image.Image) -> str:
        """Of its picture, small; of a photo's, the square round the face."""
        small = picture.copy()
        if edited.photo is not None:
            small = Image.fromarray(Placed(picture, edited.photo.frame).square(THUMBNAIL))
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        return self.folder.keep(small)

    def _place(self, where: str) -> dict[str, Any]:
        """What the field *where* says: words, numbers of regions, or nothing."""
        where = text_of(where or "", "where", LONGEST_TEXT)
        if re.fullmatch(f"{REGIONS}[0-9, ]+", where):
            return {"regions": sorted({int(number) for number in re.findall("[0-9]{1,9}", where)})}
        return {"where": where or None}


def placed(origin: dict[str, Any], photo: str) -> Placed:
    """An upload with all of its pixels, and where a recipe says that the face is."""
    return Placed(read_photo(photo), Frame(*(np.array(origin["photo"][name], float) for name in ("center", "right"))))


def screen_size(photo: Image.Image) -> Image.Image:
    """A photo at VIEW at most."""
    by = min(1.0, VIEW / max(photo.size))
    return photo.resize([max(1, round(length * by)) for length in photo.size])


def shrink(view: Image.Image, photo: Image.Image) -> float:
    """By how much a view is smaller than its photo."""
    return max(view.size) / max(photo.size)


def clickable_side(edited: Edited) -> int:
    """Pixels of a side of regions_picture: gradio takes no clicks outside of a picture's own size, so it is large."""
    side = edited.tensor.shape[-1]
    return side * max(1, -(-CLICKABLE // side))


def regions_picture(edited: Edited, chosen: tuple[int, ...]) -> Image.Image:
    """The unedited face under the colours of its regions, the chosen ones bright."""
    both = region_overlay(edited.source.image, edited.source.labels, TINT)
    picture = both[len(both) // 2:]                                              # the lower of the two pictures
    marked = torch.isin(edited.regions, torch.tensor(chosen, device=edited.regions.device, dtype=torch.int64))
    inside = F.interpolate(marked[None, None].float(), size=picture.shape[:2])[0, 0].cpu().numpy() > 0
    picture = np.where(inside[..., None], (picture * 0.4 + CHOSEN * 0.6).astype(np.uint8), picture)
    return Image.fromarray(picture).resize((clickable_side(edited),) * 2, Image.Resampling.NEAREST)


def mask_picture(edited: Edited) -> Image.Image:
    """The unedited face, dark where the last change is not."""
    picture = to_pixels(edited.source.image)[0]
    share = pixels(edited.share)[..., None]
    return Image.fromarray((picture * (DIMMED + (1 - DIMMED) * share)).round().astype(np.uint8))


def _sliders(strength: Any, coverage: Any) -> dict[str, Any]:
    return {"strength": number_of(strength, "strength", STRONGEST), "coverage": number_of(coverage, "coverage", 1)}
