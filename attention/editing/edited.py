"""A picture after a chain of changes, which remembers how it was made."""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from attention.devices import rough
from attention.editing.masks import MaskLike, of_square, pack_mask, unpack_mask
from attention.editing.placed import Placed
from attention.editing.recipes import MOST_CHANGES, RECIPE_KEY, pack, unpack
from attention.editing.words import check_text
from attention.errors import UserError
from attention.files.disk import refuse_overwriting, refuse_pictures_of_others, write_picture
from attention.files.reading import as_path
from attention.images import to_bytes, to_image, to_pixels
from attention.method.defaults import COVERAGE, STRENGTH, STRONGEST
from attention.method.dose import SHARES
from attention.method.editor import Edit, Place, Shown, Source
from attention.method.spatial_attention import blur_mask, threshold_for

if TYPE_CHECKING:
    from attention.editing.session import Editor

BAR_AFTER = 2               # seconds, from which on a long chain shows how far it is
WHOLE_EDITS = 2             # of a chain that stay in memory with their features: the last, and what undo gives back
MUCH = 0.2                  # of an edge of the square: a change that ends there shows
KEPT_PLACES = 16            # texts whose place in a face is kept
Picture: TypeAlias = str | Path | Image.Image | np.ndarray          # a path, a picture, or pixels in uint8


@dataclass(frozen=True)
class Change:
    """One edit of a chain, as its recipe holds it.

    Attributes:
        what: a text; {"embedding": ...} of a picture that the edit should resemble; or {"styles_of": ...} the latent of
            a face whose styles the region takes over as they are.
        where: a text, numbers of regions, or {"mask": ...} a grey PNG of the blend layer's side.
        strength, coverage: see RegionEditor and threshold_for.
        replace: let earlier changes give way to this one there, instead of adding to them.
        dose: how much of the strength is taken, see RegionEditor.doses; None until it is found.
        edges: whether it ends at the picture's edges, see RegionEditor.follows_edges; None until it is made.
    Raises:
        UserError: a text is empty or too long; strength, coverage or dose is no number or out of range.
        ValueError: what or where is of another kind, which only a garbled recipe can be.
    """

    what: str | dict
    where: str | list[int] | dict
    strength: float = STRENGTH
    coverage: float = COVERAGE
    replace: bool = False
    dose: float | None = None
    edges: bool | None = None

    def __post_init__(self) -> None:
        for name in ("strength", "coverage", *["dose"] * (self.dose is not None)):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise UserError(f"{name} is {value!r}, but must be a number")
            object.__setattr__(self, name, float(value))                        # numpy's numbers are none to JSON
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is {self.strength}, but must be between 0 (no change) and 1; training used "
                            f"{STRENGTH}")
        threshold_for(self.coverage)                                             # refuses what is out of range
        if self.dose is not None and not 0 <= self.dose <= max(SHARES):
            raise UserError(f"dose is {self.dose}, but must be between 0 and {max(SHARES)}")
        for value, kinds, keys in ((self.what, str, {"embedding", "styles_of"}), (self.where, str | list, {"mask"})):
            if not (isinstance(value, kinds) or (isinstance(value, dict) and len(value) == 1 and set(value) <= keys)):
                raise ValueError(f"{value!r} says neither what nor where")
            if isinstance(value, list) and (not value or not all(type(region) is int for region in value)):
                raise ValueError(f"{value!r} are no numbers of regions")
            if isinstance(value, str):
                check_text(value)

    @property
    def idle(self) -> bool:
        """Whether it moves no style."""
        return self.strength == 0 and not (isinstance(self.what, dict) and "styles_of" in self.what)


def pixels(share: Tensor) -> np.ndarray:
    """(1, 1, R, R) -> (R, R)."""
    found: np.ndarray = share[0, 0].cpu().numpy()
    return found


@contextmanager
def threads_of(origin: dict) -> Iterator[None]:
    """Compute with as many threads as the picture was opened with: other numbers of them round otherwise, by up to one
    level of a pixel here and there. A recipe from before that was kept is computed as the process computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(origin.get("threads", before), max(before, os.cpu_count() or 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Kept:
    """What a whole chain shares, so that moving a slider does nothing twice.

    Attributes:
        places: where text -> its place in the source.
        doses: what, where, coverage -> how much of a strength suits the face.
        early: what was last seen early of the chain; what comes after it begins there.
    """

    places: dict[str, Place] = field(default_factory=dict)
    doses: dict[tuple[str, str, float], float] = field(default_factory=dict)
    early: "Edited | None" = None


class Edited:
    """A picture after a chain of changes. Nothing changes it: every further edit is another one.

    Attributes:
        image: the picture for people; of a photo, the photo itself with the edits put back.
        tensor: (1, 3, R, R) in [-1, 1], what the generator makes.
        mask: (1, 1, h, h) in [0, 1], where the last change is; zeros if there is none.
        mask_image: `share` for people, grey, of the size of `image`.
        regions: (h, h) int64, the number of the region of every pixel of the blend layer.
        styles: by layer, (1, C_l), of the last change.
        changes: how it was made, in order.
        masks: (1, 1, h, h), of every change.
        edits: of the last WHOLE_EDITS changes; a long chain takes hardly more memory than a short one.
    """

    def __init__(self, editor: "Editor", origin: dict, source: Source, changes: tuple[Change, ...] = (),
                 edits: tuple[Edit, ...] = (), kept: Kept | None = None, photo: Placed | None = None,
                 masks: tuple[Tensor, ...] = (), whole: "Edited | None" = None):
        self.editor, self.origin, self.source, self.changes = editor, origin, source, changes
        self.edits, self.masks, self.photo = edits[-WHOLE_EDITS:], masks, photo
        self._kept = Kept() if kept is None else kept
        self._whole = whole                                     # what this was made early of
        self._early: Edited | None = None

    def __repr__(self) -> str:
        seed = f"seed {self.origin['seed']}" if "seed" in self.origin else "a latent"
        of = self.origin["photo"]["name"] or "a photo" if "photo" in self.origin else seed
        said = [change.what if isinstance(change.what, str) else next(iter(change.what)) for change in self.changes]
        return f"<Edited: {of}, {', '.join(said) or 'unedited'}>"

    @property
    def tensor(self) -> Tensor:
        return self.edits[-1].image if self.edits else self.source.image

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(to_pixels(self.tensor)[0]) if self.photo is None else self.put_back(self.photo)

    @property
    def share(self) -> Tensor:
        """(1, 1, R, R) in [0, 1]: how much of the last change each pixel shows; its mask, if it ends at no edges."""
        shown = self.edits[-1].shown if self.edits else None
        if shown is not None and (self.photo is not None or self.changes[-1].edges):
            return shown.own
        return F.interpolate(self.mask, size=self.tensor.shape[2:], mode="bilinear")

    @property
    def mask_image(self) -> Image.Image:
        if self.photo is not None:
            return self.photo.mask_of(pixels(self.share))
        # At edges rounded up: a hundredth of a level can turn over a pixel of a generated face.
        rounded = np.ceil if self.changes and self.changes[-1].edges else np.round
        return Image.fromarray(rounded(pixels(self.share) * 255).astype(np.uint8))

    @property
    def square(self) -> Tensor:
        """(1, 3, R, R) in [-1, 1]: the picture, or what the square of the photo shows with the changes put back."""
        if self.photo is None:
            return self.tensor
        side = self.tensor.shape[-1]
        small = self.photo.of_side(side)
        return to_image(Placed(self.put_back(small), small.frame).square(side)[None])

    def put_back(self, placed: Placed) -> Image.Image:
        """The changes put back into a photo, the one that was opened or the same at another size."""
        shown = self.edits[-1].shown if self.edits else None
        if shown is None or not shown.whole.any():
            return placed.picture
        before, after = (to_pixels(picture)[0] for picture in (self.source.image, self.tensor))
        return placed.put_back(before, after, pixels(shown.whole), pixels(shown.anew) if shown.anew.any() else None)

    def with_photo(self, placed: Placed) -> "Edited":
        """The same with the photo at another size."""
        return Edited(self.editor, self.origin, self.source, self.changes, self.edits, self._kept, placed, self.masks,
                      self._whole)

    def early(self) -> "Edited":
        """The same in the early pictures of its world, smaller and several times as fast; itself, if there are none. It
        saves as the whole picture."""
        editor, kept = self.editor.early, self._kept
        if editor is self.editor:
            return self
        if self._early is None:
            with threads_of(self.origin):
                made = kept.early or Edited(editor, self.origin, editor.region_editor.seen_of(self.source), kept=kept)
            if made.changes != self.changes[:len(made.changes)]:
                made = made.with_changes(())
            made = kept.early = made._after(self.changes[len(made.changes):])
            self._early = Edited(editor, self.origin, made.source, made.changes, made.edits, kept, self.photo, made.masks,
                                 whole=self)
        return self._early

    def whole(self) -> "Edited":
        """The same in whole pictures, of one in early pictures."""
        if self._whole is None:
            return self
        known = len(self._whole.changes)
        if self.changes[:known] == self._whole.changes:
            return self._whole._after(self.changes[known:])
        return self._whole.with_changes(self.changes)

    @property
    def mask(self) -> Tensor:
        side = self.editor.side
        return self.edits[-1].mask if self.edits else self.source.image.new_zeros(1, 1, side, side)

    @property
    def regions(self) -> Tensor:
        return self.source.labels[0]

    @property
    def styles(self) -> list[Tensor]:
        return self.edits[-1].styles if self.edits else self.source.styles

    @property
    def recipe(self) -> dict:
        """All that `Editor.replay` needs, as JSON holds it."""
        return {"editor": self.editor.identity, "domain": self.editor.world.name, "source": self.origin,
                "changes": [asdict(change) for change in self.changes]}

    def edit(self, what: str, where: str | None = None, *, regions: Sequence[int] | None = None,
             mask: MaskLike | None = None, strength: float = STRENGTH, coverage: float = COVERAGE,
             replace: bool = False) -> "Edited":
        """One change more: outside its mask the picture stays what it is now, inside the change is added to it.

        What is found by a text, and what a change does, count from the unedited face; so the order matters only where
        changes lie on each other, as those of a mouth and its lips do.

        Args:
            what: a text, such as "grey hair"; docs/words.md lists what can be said of drawn faces.
            where: a text; None takes `what`, unless regions or a mask say where.
            regions: numbers of regions instead.
            mask: a grey picture, a file of one, or values of the framed square instead, white where the edit goes; to a
                photo also a picture of the photo's own size, as `mask_image` is.
            strength: 0 changes nothing, 0.1 is what training used; of which, in some worlds, the face's dose is taken.
            coverage: 0 edits almost nowhere, 1 widely; a text decides where, so it does nothing to regions and masks.
            replace: let earlier changes give way to this one there, instead of adding to them.
        Raises:
            UserError: an argument is out of range, a text is nothing that is known, or more than one says where.
        """
        if not isinstance(what, str):
            raise UserError(f"what is a {type(what).__name__}, expected a text; resemble takes a picture, take_styles a "
                            "face")
        what = self.editor.read(what)
        return self._then(Change(what, self._where(where, regions, mask, otherwise=what), strength, coverage, replace))

    def resemble(self, picture: Picture, where: str | None = None, *, regions: Sequence[int] | None = None,
                 mask: MaskLike | None = None, strength: float = STRENGTH, coverage: float = COVERAGE,
                 replace: bool = False) -> "Edited":
        """One change more: toward how CLIP sees another picture, by default everywhere.

        Args:
            picture: a square one.
            where, regions, mask, strength, coverage, replace: see `edit`.
        Raises:
            UserError: the picture cannot be read or is not square; or see `edit`.
        """
        embedding = pack(self.editor.embedding_of(picture))
        return self._then(Change({"embedding": embedding}, self._where(where, regions, mask), strength, coverage, replace))

    def take_styles(self, face: "Edited", where: str | None = None, *, regions: Sequence[int] | None = None,
                    mask: MaskLike | None = None, coverage: float = COVERAGE,
                    replace: bool = False) -> "Edited":
        """One change more: the very styles of another face, as it is unedited; by default everywhere.

        Args:
            face: of the same world; strength plays no part.
            where, regions, mask, coverage, replace: see `edit`.
        Raises:
            UserError: it is no face, or one of another world.
        """
        if not isinstance(face, Edited):
            raise UserError(f"the face is a {type(face).__name__}, expected one that was opened, as by open_seed(7)")
        if face.editor.world.generator_hash != self.editor.world.generator_hash:
            raise UserError(f"the face is of the world {face.editor.world.name}, whose styles {self.editor.world.name} has "
                            "not; open one with this editor")
        place = self._where(where, regions, mask)
        styles_of = pack(self.editor.latent(face.origin))
        return self._then(Change({"styles_of": styles_of}, place, coverage=coverage, replace=replace))

    def undo(self) -> "Edited":
        """The picture before the last change."""
        if not self.changes:
            raise UserError("there is nothing to undo: the picture has not been edited")
        if len(self.edits) == 1 and len(self.changes) > 1:              # what it gives back is no longer kept
            return self.with_changes(self.changes[:-1])
        return self._with(self.changes[:-1], self.edits[:-1], self.masks[:-1])

    def retouch(self, strength: float, coverage: float, dose: float | None = None) -> "Edited":
        """The last change again with another strength and coverage, as a slider asks for; all else is kept.

        Args:
            dose: another than was found; None keeps that, though it was found for another coverage.
        Raises:
            UserError: there is no change, or a number is out of range.
        """
        if not self.changes:
            raise UserError("there is no change to retouch: the picture has not been edited")
        before, change = self.undo(), self.changes[-1]
        dose = change.dose if dose is None else dose
        return before._then(replace(change, strength=strength, coverage=coverage, dose=dose))

    def with_changes(self, changes: Sequence[Change]) -> "Edited":
        """The same source with other changes, such as these in another order, or those of a recipe. Nothing is told of
        them: that was done when they were made first."""
        return self._with((), (), ())._after(changes)

    def then(self, change: Change) -> "Edited":
        """A further change, as a recipe holds it."""
        return self._then(change)

    def _after(self, changes: Sequence[Change]) -> "Edited":
        edited = self
        for change in tqdm(changes, "changes", leave=False, delay=BAR_AFTER):
            edited = edited._changed(change)
        return edited

    def tensors(self) -> list[Tensor]:
        """All that it keeps in memory; much of it is shared with what it came of."""
        maps = [(place.raw, place.attention, place.gated, place.mask) for place in list(self._kept.places.values())]
        early = self._kept.early
        made = (*self.edits, *[edit for one in (early, self._early) if one is not None for edit in one.edits])
        edits = [(edit.image, *edit.styles, *edit.features, *(edit.shown or ()),
                  *([] if edit.drawn is None else [edit.drawn])) for edit in made]
        sources = [self.source, *([] if early is None else [early.source])]
        faces = [face for source in sources for face in (source, source.shared) if face is not None]
        faces += [judged for face in faces for judged in face.judged]
        edges = [vars(face)["edges"] for face in faces if "edges" in vars(face)]
        held = [(face.image, face.labels, *face.styles, *face.features,
                 *[value for value in (face.guide, face.background) if value is not None]) for face in faces]
        guides = [(one.guided.picture, one.guided.small, one.guided.mean, one.guided.inverse) for one in edges]
        held += [*guides, *(sum(one.known, ()) for one in edges)]
        return [*sum(held, ()), *self.masks, *sum(edits, ()), *sum(maps, ())]

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the picture as PNG with its recipe inside, all of it or nothing.

        Args:
            overwrite: replace whatever has that name, and not only a picture that was written by this program.
        Raises:
            UserError: the name does not end in .png, it is the photo that was opened, something else has it, or it cannot
                be written.
        """
        path = as_path(path, "a picture to write")
        if self.photo is not None and "path" in self.photo.picture.info:
            refuse_overwriting([path], [self.photo.picture.info["path"]])
        if path.suffix.lower() != ".png":
            raise UserError(f"{path} does not end in .png; only PNG keeps the pixels and the recipe as they are")
        refuse_pictures_of_others([path], overwrite, "overwrite=True")
        write_picture(path, self.whole().image, {RECIPE_KEY: json.dumps(self.recipe)})
        return path

    def _then(self, change: Change) -> "Edited":
        """A further change, made as a replay will make it; one that does nothing is told."""
        if change.strength > STRONGEST:
            warnings.warn(f"a strength of {change.strength:g} is beyond the usual ones, 0 to {STRONGEST}, and faces may "
                          "come apart", stacklevel=4)
        edited = self._changed(change)
        if reason := edited.unchanged(self):
            warnings.warn(f"nothing changed: {reason}", stacklevel=4)
        elif edited.fades() and not self.fades():
            warnings.warn("the change fades out at the edges of the square round the face, for nothing is known of what "
                          "lies beyond it; a closer crop of the photo has no such edge", stacklevel=4)
        return edited

    def fades(self) -> bool:
        """Whether a change of a photo covers much of an edge of the square beyond which the photo goes on."""
        if self.photo is None or not self.masks:
            return False
        masks, edges = torch.stack(self.masks).amax(dim=0)[0, 0], self.photo.frame.open_edges(self.photo.picture.size)
        # Below, there is nothing but neck and clothes.
        return any(goes_on and float((edge > 0.5).float().mean()) > MUCH
                   for edge, goes_on in zip((masks[:, 0], masks[0], masks[:, -1]), edges[:3], strict=True))

    def unchanged(self, before: "Edited") -> str | None:
        """Why the last change shows nowhere in the picture, and what would help; None if it shows."""
        change = self.changes[-1]
        if not torch.equal(to_bytes(self.tensor), to_bytes(before.tensor)):
            return None
        if change.idle:
            return "the strength is 0; give a larger one"
        if not self.mask.any():
            if not isinstance(change.where, str):
                return "what was chosen is nowhere in this face; choose other regions, or name a place"
            return (f"{change.where[:40]!r} is nowhere in this face at a coverage of {change.coverage:g}; raise the "
                    "coverage, name another place, or choose regions")
        return (f"the edit of {float((self.mask > 0).float().mean()):.1%} of the picture is too weak to be seen; give more "
                "strength, or other words")

    @torch.no_grad()
    def _changed(self, change: Change) -> "Edited":
        """A further change, untold, with the threads that the picture was opened with."""
        if len(self.changes) >= MOST_CHANGES:
            raise UserError(f"the picture has {MOST_CHANGES} changes, and no recipe holds more; undo one")
        with threads_of(self.origin):
            return self._changed_here(change)

    def _changed_here(self, change: Change) -> "Edited":
        editor, source, mask = self.editor.region_editor, self.source, self._mask(change)
        before = self.edits[-1] if self.edits else None
        change = change if change.dose is not None else replace(change, dose=self._dose(change, mask))
        change = change if change.edges is not None else replace(change, edges=editor.follows_edges)
        if change.replace and before is not None:               # what earlier changes made there gives way to this one
            source, before = replace(source, features=before.features, image=before.image), None
        if isinstance(change.what, dict) and "styles_of" in change.what:
            count = len(editor.edited)
            face = self.editor.world.generator.styles(unpack(change.what["styles_of"]).to(mask.device))
            styles, what = face[:count] + source.styles[count:], None
        else:
            assert change.dose is not None
            what = self._embedding(change.what)
            styles = editor.mapper(source.styles, what, change.strength * change.dose)
        edit = editor.apply(source, styles, mask, before, edges=change.edges, what=what)
        if change.idle and edit.shown is not None:              # whatever it says, it shows nothing
            edit = replace(edit, shown=Shown(*(torch.zeros_like(share) for share in edit.shown)))
        if (before is None or change.idle) and self.edits and edit.shown is not None:
            edit = replace(edit, shown=edit.shown.after(self.edits[-1].shown))
        return self._with((*self.changes, change), (*self.edits, edit), (*self.masks, mask))

    def _dose(self, change: Change, mask: Tensor) -> float:
        """How much of its strength suits this face, by small pictures; all of it, unless a text says the change."""
        if not isinstance(change.what, str):
            return 1.0
        doses, key = self._kept.doses, (change.what, json.dumps(change.where), change.coverage)
        if key not in doses:
            text = self._embedding(change.what)
            with rough(mask.device):
                doses[key] = float(self.editor.region_editor.doses(self.source, text, mask))
        return doses[key]

    def _with(self, changes: tuple[Change, ...], edits: tuple[Edit, ...], masks: tuple[Tensor, ...]) -> "Edited":
        return Edited(self.editor, self.origin, self.source, changes, edits, self._kept, self.photo, masks, self._whole)

    def _mask(self, change: Change) -> Tensor:
        """(1, 1, h, h) where a change goes; texts and regions are found in the source, so that the order is free."""
        if isinstance(change.where, str):
            places = self._kept.places
            place = places.get(change.where)
            if place is None:
                place = self.editor.region_editor.locate(self.source, self.editor.embed(change.where))
                if len(places) >= KEPT_PLACES:
                    del places[next(iter(places))]
                places[change.where] = place
            return place.at(threshold_for(change.coverage)).mask
        if isinstance(change.where, dict):
            return unpack_mask(change.where["mask"], self.editor.side).to(self.source.image.device)
        self._regions(change.where)                                               # refuses regions that there are not
        chosen = torch.isin(self.source.labels, torch.tensor(change.where, device=self.source.labels.device))
        return blur_mask(chosen[:, None].float())

    def _embedding(self, what: str | dict) -> Tensor:
        return self.editor.embed(what) if isinstance(what, str) else unpack(what["embedding"]).to(self.source.image.device)

    def _where(self, where: str | None, regions: Sequence[int] | None, mask: MaskLike | None,
               otherwise: str | None = None) -> str | list[int] | dict:
        """What says where, as a recipe holds it; if nothing does, `otherwise`, or everywhere."""
        said = [name for name, value in (("where", where), ("regions", regions), ("mask", mask)) if value is not None]
        if len(said) > 1:
            raise UserError(f"{' and '.join(said)} all say where the edit goes; leave all but one of them out")
        if regions is not None:
            return self._regions(regions)
        if mask is not None:
            return {"mask": pack_mask(of_square(mask, self.photo, self.tensor.shape[-1]), self.editor.side)}
        if where is None:
            return otherwise or {"mask": pack_mask(np.ones((self.editor.side,) * 2, bool), self.editor.side)}
        if not isinstance(where, str):
            raise UserError(f"where is a {type(where).__name__}, expected a text; say regions=[...] or mask=...")
        return self.editor.read(where, place=True)

    def _regions(self, regions: Sequence[int]) -> list[int]:
        count = self.editor.region_editor.regions.num_regions
        chosen = list(regions) if isinstance(regions, Iterable) else [regions]
        if not chosen or not all(isinstance(region, Integral) and not isinstance(region, bool) and 0 <= region < count
                                 for region in chosen):
            raise UserError(f"regions are {str(chosen)[:40]}, expected some numbers from 0 to {count - 1}")
        return [int(region) for region in chosen]
