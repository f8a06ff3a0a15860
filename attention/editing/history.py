"""What a user's page remembers, and what is said of it."""

import json
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from attention.editing.edited import Change
from attention.editing.found import Found
from attention.inversion.frame import Frame
from attention.method.defaults import COVERAGE, STRENGTH

LONGEST_TEXT = 300          # characters of *what* and *where*; CLIP reads fewer
LONGEST_ADDRESS = 4000      # characters of the recipe in the page's address
MOST_STEPS = 500            # of a page's history
USUAL = 0.15                # end of the slider of strength, which may go on to STRONGEST; beyond, colours turn lurid
REGIONS = "regions"         # begins the field *where* if regions are chosen


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
    found: Found | None = None  # faces of the photo that was chosen last

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
    def shown(self) -> str:
        """Which step of which face it shows, however its sliders stand."""
        return f"{self.opened.number}.{self.at}"

    @property
    def files(self) -> list[str | None]:
        """Files that this page needs."""
        opened, found = self.opened, self.found.files if self.found else ()
        return [opened.before, opened.thumbnail, opened.photo, self.early or None, *found,
                *(file for step in self.steps for file in (step.picture, step.mask, step.thumbnail))]


def in_address(page: Page) -> int:
    """How many of a page's steps its address holds: those before the first that needs an upload, if it has room."""
    if "seed" not in page.opened.origin:
        return 0
    length = LONGEST_TEXT
    for number, change in enumerate(page.changes):
        if isinstance(change.what, dict) or isinstance(change.where, dict):
            return number
        length += len(urlencode([said_edit(change)])) + 1
        if length > LONGEST_ADDRESS:
            return number
    return page.at


def said_edit(change: Change) -> tuple[str, str]:
    said = [change.what, said_where(change), change.strength, change.coverage]
    said += [] if change.dose is None else [change.dose]
    return "edit", json.dumps(said, separators=(",", ":"))


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
    if "distance" in origin:
        face += f" (dlib's distance to the photo {origin['distance'][1]:.2f}; under 0.6 it is the same person)"
    if change is None:
        return f"{face}, unedited"
    step = f", step {page.at} of {len(page.steps)}" if len(page.steps) > 1 else ""
    kept = in_address(page)
    lost = f"; a reload keeps {kept} of the steps" if "seed" in origin and kept < page.at else ""
    strength, coverage = page.sliders if page.early else (change.strength, change.coverage)
    how = "" if isinstance(change.what, dict) and "styles_of" in change.what else f", strength {strength:g}"
    how += f", coverage {coverage:g}" if isinstance(change.where, str) else ""          # does nothing to regions
    return f"{face}{step}: {describe(change)}{how}{lost}"


def standing(page: Page) -> Page:
    """A page with regions and sliders as the change that is shown has them."""
    change = page.last
    if change is None:
        return replace(page, chosen=(), where="", early="")
    return replace(page, chosen=tuple(change.where) if isinstance(change.where, list) else (), where=said_where(change),
                   early="", sliders=(change.strength, change.coverage), stronger=page.stronger or change.strength > USUAL)
