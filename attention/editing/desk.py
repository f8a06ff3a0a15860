"""What the web page can do, apart from its widgets: actions on a user's page, and the pictures that it shows."""

import itertools
import json
import math
import re
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlencode

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attention.editing.edited import Change, Edited
from attention.editing.folder import ServerFolder
from attention.editing.photo import read_photo
from attention.editing.recipes import unpack
from attention.editing.session import Editor
from attention.editing.words import sayable
from attention.errors import UserError
from attention.extras import EXTRAS
from attention.files.pictures import open_picture
from attention.files.reading import parse_json
from attention.images import to_pixels
from attention.inversion.frame import Frame
from attention.method.defaults import COVERAGE, STRENGTH
from attention.method.regions import region_overlay

MEMORY = 512 * 2**20        # bytes of all users' pictures and features together; what was used longest ago is made again
LARGEST_SEED = 2**53 - 1    # the largest whole number that a browser writes exactly
LONGEST_TEXT = 300          # characters of *what* and *where*; CLIP reads fewer
LONGEST_ADDRESS = 4000      # characters of the recipe in the page's address
MOST_STEPS = 500            # of a page's history
USUAL, STRONGEST = 0.15, 0.3                # ends of the slider of strength; beyond the first, colours turn lurid
MOST_REFINED = 50           # steps
MOST_FACES = 100            # of a photo, to choose from
CLICKABLE = 512             # pixels, at least, of the picture that is clicked
VIEW = 1024                 # pixels, at most, of a side of a photo on the screen; the download has them all
THUMBNAIL = 160             # pixels, at most, of the pictures of the history
REGIONS = "regions"         # begins the field *where* if regions are chosen
TINT = 0.35                 # of the colours that show the regions
CHOSEN = np.array([255, 230, 0])            # colour of chosen regions
DIMMED = 0.25               # brightness outside of the mask


@dataclass(frozen=True)
class Opened:
    """A face as it was opened: little enough to keep for every page; the desk makes it again if it was let go."""

    number: int                 # of this picture among all that the desk ever made
    origin: dict[str, Any]      # as a recipe holds it
    before: str                 # file of the unedited picture, a photo at the size of a screen
    thumbnail: str              # file
    photo: str | None = None    # file of the upload
    frame: Frame | None = None  # where in `before` the face is


@dataclass(frozen=True)
class Step:
    """One edit of a page's history."""

    number: int                 # of the picture after it, see Opened
    change: Change
    picture: str                # file of the picture after it, a photo at the size of a screen
    mask: str                   # file of mask_picture
    thumbnail: str              # file


@dataclass(frozen=True)
class Page:
    """All that a user's page remembers."""

    opened: Opened
    steps: tuple[Step, ...] = ()
    at: int = 0                 # how many of the steps are shown; those after it can be done again
    chosen: tuple[int, ...] = ()            # regions that are marked
    where: str = ""             # what the field *where* was last filled with
    sliders: tuple[float, float] = (STRENGTH, COVERAGE)     # where they stand
    stronger: bool = False      # the slider of strength goes up to STRONGEST
    early: str = ""             # file of an early picture of what the sliders ask for, until they rest
    saved: str = ""             # file of the last download

    @property
    def last(self) -> Change | None:
        """The change that is shown."""
        return self.steps[self.at - 1].change if self.at else None

    @property
    def changes(self) -> list[Change]:
        return [step.change for step in self.steps[:self.at]]

    @property
    def number(self) -> int:
        return self.steps[self.at - 1].number if self.at else self.opened.number

    @property
    def files(self) -> list[str | None]:
        """Files that this page needs."""
        opened = self.opened
        return [opened.before, opened.thumbnail, opened.photo, self.early or None,
                *(file for step in self.steps for file in (step.picture, step.mask, step.thumbnail))]


@dataclass
class Shelf:
    """Pictures by their numbers within a budget of memory; those that were used longest ago go first."""

    budget: int = MEMORY
    kept: "OrderedDict[int, Edited]" = field(default_factory=OrderedDict)
    sizes: dict[int, dict[int, int]] = field(default_factory=dict)          # by picture: bytes by address
    lock: Lock = field(default_factory=Lock)

    def get(self, number: int) -> Edited | None:
        with self.lock:
            if number in self.kept:
                self.kept.move_to_end(number)
            return self.kept.get(number)

    def put(self, number: int, edited: Edited) -> None:
        sizes = {tensor.data_ptr(): tensor.nbytes for tensor in edited.tensors()}
        if edited.photo is not None:
            sizes[id(edited.photo[0])] = edited.photo[0].width * edited.photo[0].height * 3
        with self.lock:
            self.kept[number], self.sizes[number] = edited, sizes
            self.kept.move_to_end(number)
            while len(self.kept) > 1 and self.size() > self.budget:
                del self.sizes[self.kept.popitem(last=False)[0]]

    def drop(self, number: int) -> None:
        with self.lock:
            self.kept.pop(number, None)
            self.sizes.pop(number, None)

    def size(self) -> int:
        """Bytes of all that is kept; what pictures share counts once."""
        together: dict[int, int] = {}
        for sizes in self.sizes.values():
            together |= sizes
        return sum(together.values())


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
                if not isinstance(said_edit, list) or len(said_edit) != 4:
                    raise UserError("it is garbled")
                page = self.change(page, *said_edit)
            except UserError as error:
                warnings.warn(f"the page's address cannot be followed from edit {number} on: {error}", stacklevel=2)
                break
        return page

    def show_seed(self, seed: float | None) -> Page:
        seed = whole(seed, "the seed", LARGEST_SEED)
        return Page(self._opened(self.editor.open_seed(seed)))

    def show_photo(self, photo: str | None, framed: bool, landmarks: str | None, face: float | None,
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
        by = min(1.0, VIEW / max(whole_photo.size))
        view = whole_photo.resize([max(1, round(length * by)) for length in whole_photo.size])
        return Page(self._opened(edited.with_photo(view, frame.scaled(by)), photo))

    def photo_needs(self) -> str:
        """What this server cannot do with photos, and what would mend it; empty if it can do all."""
        encoder = self.editor.world.entry.encoder
        if encoder is None or (isinstance(encoder.source, Path) and not encoder.source.is_file()):
            lacks = "has no encoder" if encoder is None else f"lacks its encoder ({Path(encoder.source).name})"
            return f"This server takes no photos: the world {self.editor.world.name} {lacks}."
        if any(find_spec(module) is None for module in EXTRAS["photos"]):
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

    def change(self, page: Page, what: str, where: str, strength: float, coverage: float) -> Page:
        what, how = text_of(what or "", "what", LONGEST_TEXT), _sliders(strength, coverage)
        return self._then(page, self.edited(page).edit(what, **self._place(where), **how))

    def resemble(self, page: Page, reference: str | None, exact: bool, where: str, strength: float,
                 coverage: float) -> Page:
        if reference is None:
            raise UserError("no picture to resemble was chosen; upload one first")
        edited, place, how = self.edited(page), self._place(where), _sliders(strength, coverage)
        if exact:
            face = self.editor.open_photo(reference, aligned=True)
            return self._then(page, edited.take_styles(face, **place, coverage=how["coverage"]))
        return self._then(page, edited.resemble(reference, **place, **how))

    def glance(self, page: Page, strength: float, coverage: float) -> Page:
        """While the sliders move: an early picture of the last change, where the world has such; `rest` makes it whole."""
        how = _sliders(strength, coverage)
        if page.last is None or self.editor.early is self.editor:
            return self.slide(page, strength, coverage)
        before = self.edited(replace(page, at=page.at - 1)).early()
        picture = before.then(replace(page.last, **how)).image
        return replace(page, sliders=(how["strength"], how["coverage"]), early=self.folder.keep(picture))

    def rest(self, page: Page, strength: float, coverage: float) -> Page:
        """The sliders rest: the whole picture in place of an early one."""
        return self.slide(page, strength, coverage) if page.early else page

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
        """Show a step of the history, 0 the unedited face; later steps stay until the next edit."""
        return _standing(replace(page, at=whole(number, "the step", len(page.steps))))

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
        edited = self.edited(page)
        if page.opened.photo is not None:
            said = edited.origin["photo"]
            edited = edited.with_photo(read_photo(page.opened.photo), Frame(*(np.array(said[name], float)
                                                                              for name in ("center", "right"))))
        path = self.folder.new("")
        path.mkdir()
        return replace(page, saved=str(edited.save(path / "edited.png")))

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
        return "?" + urlencode([("seed", page.opened.origin["seed"]), *map(_said_edit, page.changes[:in_address(page)])])

    def phrases(self) -> dict[str, tuple[str, ...]]:
        """What can be said, by place in the face."""
        return sayable(self.editor.world)

    # Inside

    def _opened(self, edited: Edited, photo: str | None = None) -> Opened:
        number = next(self._numbers)
        before = self.folder.keep(edited.image)
        self.shelf.put(number, edited)
        return Opened(number, edited.origin, before, self._thumbnail(edited), photo,
                      edited.photo[1] if edited.photo else None)

    def _reopened(self, opened: Opened) -> Edited:
        """An unedited picture again, from what its page remembers."""
        if "seed" in opened.origin:
            edited = self.editor.open_seed(opened.origin["seed"])
        else:
            assert opened.frame is not None
            with open_picture(Path(opened.before)) as view:
                photo = view.convert("RGB"), opened.frame
            source = self.editor.open_latent(unpack(opened.origin["w"])).source
            edited = Edited(self.editor, opened.origin, source, photo=photo)
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
        picture, mask = self.folder.keep(edited.image), self.folder.keep(mask_picture(edited))
        step = Step(next(self._numbers), edited.changes[-1], picture, mask, self._thumbnail(edited))
        self.shelf.put(step.number, edited)
        return _standing(replace(page, steps=(*page.steps[:page.at], step), at=page.at + 1))

    def _thumbnail(self, edited: Edited) -> str:
        picture = picture_of(edited.tensor)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return self.folder.keep(picture)

    def _place(self, where: str) -> dict[str, Any]:
        """What the field *where* says: words, numbers of regions, or nothing."""
        where = text_of(where or "", "where", LONGEST_TEXT)
        if re.fullmatch(f"{REGIONS}[0-9, ]+", where):
            return {"regions": sorted({int(number) for number in re.findall("[0-9]{1,9}", where)})}
        return {"where": where or None}


def text_of(value: Any, name: str, most: int) -> str:
    """A text from a browser, white space at its ends and between words made one space.

    Raises:
        UserError: it is none, too long, or has characters that cannot be shown.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} is no text")
    if len(value) > most:
        raise UserError(f"{name} has {len(value):,} characters, but at most {most} are taken")
    value = " ".join(value.split())
    if not value.isprintable():
        raise UserError(f"{name} has characters that cannot be shown; type it again")
    return value


def number_of(value: Any, name: str, most: float) -> float:
    """A number from 0 to `most` from a browser.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise UserError(f"{name} is {_told(value)}, expected a number from 0 to {most:,}")
    return value


def whole(value: Any, name: str, most: int) -> int:
    """A whole number from 0 to `most` from a browser.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= most:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise UserError(f"{name} is {_told(value)}, expected a whole number from 0 to {most:,}")
    return value


def _told(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "no number"
    return f"{value:g}" if isinstance(value, float) else f"{value}" if abs(value) < 10**20 else "a number of many digits"


def in_address(page: Page) -> int:
    """How many of a page's steps its address holds: those before the first that needs an upload, if it has room."""
    if "seed" not in page.opened.origin:
        return 0
    length = LONGEST_TEXT
    for number, change in enumerate(page.changes):
        if isinstance(change.what, dict) or isinstance(change.where, dict):
            return number
        length += len(urlencode([_said_edit(change)])) + 1
        if length > LONGEST_ADDRESS:
            return number
    return page.at


def _said_edit(change: Change) -> tuple[str, str]:
    said = [change.what, said_where(change), change.strength, change.coverage]
    return "edit", json.dumps(said, separators=(",", ":"))


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
    mask = F.interpolate(edited.mask, size=picture.shape[:2], mode="bilinear")[0, 0].cpu().numpy()
    return Image.fromarray((picture * (DIMMED + (1 - DIMMED) * mask[..., None])).round().astype(np.uint8))


def said_regions(chosen: tuple[int, ...] | list[int]) -> str:
    """What the field *where* says of regions."""
    return f"{REGIONS} {', '.join(map(str, chosen))}" if chosen else ""


def said_what(change: Change) -> str:
    """What the field *what* says of a change; nothing of an uploaded picture."""
    return change.what if isinstance(change.what, str) else ""


def said_where(change: Change) -> str:
    """What the field *where* says of a change; nothing if *what* says it too, or if it is everywhere."""
    if isinstance(change.where, list):
        return said_regions(change.where)
    return change.where if isinstance(change.where, str) and change.where != change.what else ""


def describe(change: Change) -> str:
    """A change in a few words, the same as in the fields."""
    where = said_where(change)
    return (said_what(change) or "like the other picture")[:40] + (f" @ {where[:40]}" if where else "")


def summary(page: Page) -> str:
    """What the picture is, in a line."""
    origin, change = page.opened.origin, page.last
    face = f"seed {origin['seed']}" if "seed" in origin else "the photo"
    if "psnr" in origin:
        face += f", inverted to {origin['psnr'][1]:.1f} dB"
    if change is None:
        return f"{face}, unedited"
    step = f", step {page.at} of {len(page.steps)}" if len(page.steps) > 1 else ""
    kept = in_address(page)
    lost = f"; a reload keeps {kept} of the steps" if "seed" in origin and kept < page.at else ""
    return f"{face}{step}: {describe(change)}, strength {change.strength:g}, coverage {change.coverage:g}{lost}"


def picture_of(tensor: Tensor) -> Image.Image:
    """(1, 3, R, R) in [-1, 1] as a picture."""
    return Image.fromarray(to_pixels(tensor)[0])


def _standing(page: Page) -> Page:
    """A page with regions and sliders as the change that is shown has them."""
    change = page.last
    if change is None:
        return replace(page, chosen=(), where="", early="")
    return replace(page, chosen=tuple(change.where) if isinstance(change.where, list) else (), where=said_where(change),
                   early="", sliders=(change.strength, change.coverage), stronger=page.stronger or change.strength > USUAL)


def _sliders(strength: Any, coverage: Any) -> dict[str, Any]:
    return {"strength": number_of(strength, "strength", STRONGEST), "coverage": number_of(coverage, "coverage", 1)}
