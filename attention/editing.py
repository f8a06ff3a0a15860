"""Editing for people: sources of any kind, edits that chain, and pictures that remember how they were made.

    editor = attention.load_editor("drawn")                     # or a run folder
    grey = editor.edit(7, what="grey hair")                     # the face of seed 7, or editor.open_photo("me.jpg")
    both = grey.edit(what="red lipstick", where="lips", strength=0.15)
    both.save("edited.png")
    same = editor.replay("edited.png")                          # the same pixels
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from torch.nn import functional as F

from attention.checkpoints import write_atomically
from attention.domains import Domain
from attention.editor import Edit, RegionEditor, Source
from attention.errors import UserError
from attention.inversion.invert import invert
from attention.mapper import STRENGTH
from attention.photo import Frame, find_landmarks, load_detector, read_landmarks, read_photo
from attention.published import SHIPPED
from attention.recipes import RECIPE_KEY, pack, pack_mask, pixel_hash, read_recipe, unpack, unpack_mask
from attention.runs import load_run
from attention.sheets import edit_sheet, to_pixels
from attention.spatial_attention import blur_mask, gate, threshold_for

COVERAGE = 0.8              # share of the gate's range that is open by default
LARGEST_SEED = 2**63 - 1    # that torch takes
NAMED_WORDS = 5             # unknown ones that a warning names
Face: TypeAlias = Union["Edited", int, Tensor, np.ndarray, Image.Image, str, Path]   # see Editor.open
Where: TypeAlias = str | int | Sequence[int] | Image.Image | np.ndarray            # see Edited.edit


@dataclass(frozen=True)
class Change:
    """One edit of a chain, as its recipe holds it.

    Attributes:
        what: a text; {"embedding": ...} of a picture that the edit should resemble; or {"styles_of": ...} the latent of
            a face whose styles the region takes over as they are.
        where: a text, numbers of regions, or {"mask": ...} a grey PNG of the blend layer's side.
        strength, coverage: see RegionEditor and threshold_for.
        replace: let earlier changes give way to this one there, instead of adding to them.
    Raises:
        UserError: a text is empty; strength or coverage is no number or out of range.
        ValueError: what or where is of another kind, which only a garbled recipe can be.
    """

    what: str | dict
    where: str | list[int] | dict
    strength: float = STRENGTH
    coverage: float = COVERAGE
    replace: bool = False

    def __post_init__(self) -> None:
        for name in ("strength", "coverage"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise UserError(f"{name} is {value!r}, but must be a number from 0 to 1")
            object.__setattr__(self, name, float(value))                        # numpy's numbers are none to JSON
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is {self.strength}, but must be between 0 (no change) and 1; training used "
                            f"{STRENGTH}")
        threshold_for(self.coverage)                                             # refuses what is out of range
        for value, kinds, keys in ((self.what, str, {"embedding", "styles_of"}), (self.where, str | list, {"mask"})):
            if not (isinstance(value, kinds) or (isinstance(value, dict) and len(value) == 1 and set(value) <= keys)):
                raise ValueError(f"{value!r} says neither what nor where")
            if isinstance(value, list) and (not value or not all(type(region) is int for region in value)):
                raise ValueError(f"{value!r} are no numbers of regions")
            if isinstance(value, str) and not value.strip():
                raise UserError("the text is empty, expected words such as \"grey hair\"")


def load_editor(name: str | Path, device: str = "auto", trust: bool = False) -> "Editor":
    """The editor of a run folder, or the shipped one by its name, "drawn".

    Raises:
        UserError: the folder holds no whole editor; see `runs.load_run`.
    """
    folder = SHIPPED if str(name) == SHIPPED.name and not Path(name).exists() else Path(name)
    editor, domain, _ = load_run(folder, device, trust)
    return Editor(editor, domain, hashlib.sha256((folder / "editor.safetensors").read_bytes()).hexdigest()[:16])


class Editor:
    """A trained editor with its world.

    Args:
        region_editor: frozen.
        domain: the world it was trained in.
        identity: of its weights, for recipes.
    """

    def __init__(self, region_editor: RegionEditor, domain: Domain, identity: str):
        self.region_editor, self.domain, self.identity = region_editor, domain, identity
        self.side = region_editor.attention.map_size
        self.embed = lru_cache(maxsize=256)(self._embed)

    def open(self, source: Face) -> "Edited":
        """A picture to edit, as yet unedited.

        Args:
            source: a seed; a latent (style_dim,) or (n_latent, style_dim), with or without a batch of 1; an earlier edit;
                or a photo, its path or its pixels in uint8, see open_photo.
        Raises:
            UserError: it is none of these.
        """
        if isinstance(source, Edited):
            return source
        if is_picture(source):
            return self.open_photo(source)
        if isinstance(source, Integral) and not isinstance(source, bool):
            if not 0 <= source <= LARGEST_SEED:
                raise UserError(f"the seed is {source}, expected a whole number from 0 to {LARGEST_SEED}")
            return Edited(self, {"seed": int(source)}, self._source(self.domain.sample_w(1, int(source))))
        w = self._latent(source)
        return Edited(self, {"w": pack(w)}, self._source(w))

    def open_photo(self, source: str | Path | Image.Image | np.ndarray, landmarks: str | Path | np.ndarray | None = None,
                   face: int | None = None, aligned: bool = False, refine: int = 0,
                   detect: Callable[[np.ndarray], list | None] | None = None) -> "Edited":
        """A photo to edit: the face is framed as the generator frames faces, inverted, and edits are put back.

        Args:
            source: a path, a picture, or an array of uint8.
            landmarks: (68, 2) or (5, 2) points x, y in pixels, or a file of them; None searches the face.
            face: which of several, 0 the largest.
            aligned: the picture is square and framed already; nothing is searched.
            refine: steps of `invert`, about a second for ten on drawn faces.
            detect: another detector than face-alignment's, see find_landmarks.
        Raises:
            UserError: no picture, no face, no encoder, or the photo is not square although it is said to be framed.
        """
        if aligned and (landmarks is not None or face is not None):
            given = "face" if landmarks is None else "landmarks"
            raise UserError(f"aligned says that the picture is framed already, but {given} says where a face is; leave one "
                            "of them out")
        if not isinstance(refine, Integral) or refine < 0:
            raise UserError(f"refine is {refine!r}, expected a whole number of steps, at least 0")
        photo = read_photo(source)
        if aligned:
            if photo.width != photo.height:
                raise UserError(f"the picture is {photo.width} x {photo.height}, but one that is framed already is square; "
                                "give its landmarks or let its face be searched instead (aligned is for framed pictures)")
            frame = Frame(np.array([photo.width / 2] * 2), np.array([photo.width / 2, 0]))
        else:
            if landmarks is None:
                landmarks = find_landmarks(photo, detect or load_detector(str(self.domain.device)), face)
            points = read_landmarks(landmarks) if isinstance(landmarks, str | Path) else landmarks
            frame = self.domain.entry.frame(points)
        crop = frame.crop(photo, self.domain.generator.resolution)
        image = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
        inversion = invert(self.domain, image, refine)
        name = Path(source).name if isinstance(source, str | Path) else ""
        origin = {"w": pack(inversion.w), "photo": {"name": name, "sha256": pixel_hash(photo),
                                                    "center": frame.center.tolist(), "right": frame.right.tolist()},
                  "psnr": [inversion.psnr_before, inversion.psnr_after]}
        if inversion.lpips_before is not None:
            origin["lpips"] = [inversion.lpips_before, inversion.lpips_after]
        return Edited(self, origin, self._source(inversion.w), photo=(photo, frame))

    def edit(self, source: Face, what: str | Image.Image | Face, where: Where | None = None, **options: Any) -> "Edited":
        """`open(source).edit(what, where, ...)`: see Edited.edit for the options."""
        return self.open(source).edit(what, where, **options)

    def grid(self, source: Face, changes: "str | Change | Sequence[str | Change]",
             strengths: Sequence[float]) -> Image.Image:
        """A sheet of edits, each of the unedited source: every change, or text that says what and where, at every strength.

        Raises:
            UserError: no changes or no strengths.
        """
        changes, strengths = [changes] if isinstance(changes, str | Change) else list(changes), list(strengths)
        if not changes or not strengths:
            raise UserError("a grid needs at least one change and one strength")
        opened, titles, edits = self.open(source).with_changes(()), [], []
        for change in changes:
            if isinstance(change, str):
                self.warn_of(change)
                change = Change(change, change)
            for strength in strengths:
                edits.append(opened.with_changes([replace(change, strength=strength)]))
                titles.append(f"{change.what if isinstance(change.what, str) else 'reference'} {strength:g}")
        return edit_sheet(opened.tensor, titles, [edit.tensor for edit in edits], [edit.mask for edit in edits])

    def replay(self, path: str | Path, photo: str | Path | Image.Image | None = None) -> "Edited":
        """Make the picture again that `Edited.save` wrote, from the recipe in its file: the same pixels.

        Args:
            photo: the photo that was edited, if it was one; it is not in the recipe.
        Raises:
            UserError: no picture there, one without a recipe, one that another editor made, or of another photo or none.
        """
        recipe = read_recipe(path)
        if recipe.get("editor") != self.identity:
            raise UserError(f"{path} was made by the editor {recipe.get('editor')}, but this one is {self.identity}; load "
                            "the editor that made it")
        try:
            origin, changes = recipe["source"], [Change(**change) for change in recipe["changes"]]
            if photo is not None and "photo" not in origin:
                raise UserError(f"{path} is no edit of a photo, so the photo has no use here; leave it out")
            edited = self.open(origin["seed"] if "seed" in origin else unpack(origin["w"]))
            if "photo" in origin:
                edited = Edited(self, origin, edited.source, photo=self._photo(path, origin["photo"], photo))
            return edited.with_changes(changes)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} has a garbled recipe ({error}); it cannot be made again") from error

    def _photo(self, path: str | Path, said: dict, photo: str | Path | Image.Image | None) -> tuple[Image.Image, Frame]:
        """The photo of a recipe, and where in it the face is."""
        if photo is None:
            raise UserError(f"{path} is the edit of the photo {said['name']!r}, which is not in its recipe; give it too")
        picture = read_photo(photo)
        if pixel_hash(picture) != said["sha256"]:
            raise UserError(f"{path} is the edit of another photo than the one given; it was called {said['name']!r}")
        center, right = (np.array(said[name], float).reshape(2) for name in ("center", "right"))
        if not np.isfinite([*center, *right]).all():
            raise ValueError("the place of the face is not finite")
        return picture, Frame(center, right)

    @torch.no_grad()
    def _source(self, w: Tensor) -> Source:
        return self.region_editor.source(w)

    def _latent(self, source: Any) -> Tensor:
        """(1, style_dim) or (1, n_latent, style_dim) float32 of whatever came as a source."""
        generator = self.domain.generator
        numbers = isinstance(source, np.ndarray) and source.dtype.kind in "fiu"
        w = torch.from_numpy(np.ascontiguousarray(source, np.float32)) if numbers else source
        for shape in ((generator.style_dim,), (generator.n_latent, generator.style_dim)):
            if isinstance(w, Tensor) and tuple(w.shape) in (shape, (1, *shape)) and torch.isfinite(w).all():
                return w.reshape(1, *shape).float().to(self.domain.device)
        found = f"an array of shape {tuple(w.shape)}" if isinstance(w, Tensor | np.ndarray) else repr(source)
        raise UserError(f"the source is {found}, expected a seed, a latent of {generator.style_dim} or "
                        f"{generator.n_latent} x {generator.style_dim} finite numbers, or an earlier edit")

    def warn_of(self, text: str) -> None:
        """Warn of what CLIP will not read of a text, every time that it is said."""
        clip = self.domain.clip
        if not clip.fits(text):
            warnings.warn(f"the text is longer than CLIP reads ({text[:40]!r}...); the rest is passed over", stacklevel=4)
        if unknown := clip.unknown_words(text):
            named = ", ".join(repr(word[:40]) for word in unknown[:NAMED_WORDS])
            more = f" and {len(unknown) - NAMED_WORDS:,} words more" if len(unknown) > NAMED_WORDS else ""
            warnings.warn(f"CLIP does not know {named}{more}, and passes over what is meant", stacklevel=4)

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        """(1, D) CLIP embedding of a text."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                 # it warns once in its life; warn_of says it to everyone
            return self.domain.clip.encode_text([text])


class Edited:
    """A picture after a chain of changes. Nothing changes it: every further edit is another one.

    Attributes:
        image: the picture for people; of a photo, the photo itself with the edits put back.
        tensor: (1, 3, R, R) in [-1, 1], what the generator makes.
        mask: (1, 1, h, h) in [0, 1], where the last change is; zeros if there is none.
        regions: (h, h) int64, the number of the region of every pixel of the blend layer.
        styles: by layer, (1, C_l), of the last change.
        changes: how it was made, in order.
    """

    def __init__(self, editor: Editor, origin: dict, source: Source, changes: tuple[Change, ...] = (),
                 edits: tuple[Edit, ...] = (), attended: dict[str, Tensor] | None = None,
                 photo: tuple[Image.Image, Frame] | None = None):
        self.editor, self.origin, self.source, self.changes, self.edits = editor, origin, source, changes, edits
        self.photo = photo
        # Where text -> its attention, shared by the whole chain: moving a slider does not attend again.
        self._attended = {} if attended is None else attended

    @property
    def tensor(self) -> Tensor:
        return self.edits[-1].image if self.edits else self.source.image

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(to_pixels(self.tensor)[0]) if self.photo is None else self.put_back(*self.photo)

    def put_back(self, photo: Image.Image, frame: Frame) -> Image.Image:
        """The changes put back into a photo, the one that was opened or the same at another size (`Frame.scaled`)."""
        if not self.edits:
            return photo
        after = to_pixels(self.tensor)[0]
        edited = torch.stack([edit.mask for edit in self.edits]).amax(dim=0)                 # (1, 1, h, h)
        mask = F.interpolate(edited, size=after.shape[:2], mode="bilinear")[0, 0].cpu().numpy()
        return frame.put_back(photo, to_pixels(self.source.image)[0], after, mask)

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
        return {"editor": self.editor.identity, "domain": self.editor.domain.name, "source": self.origin,
                "changes": [asdict(change) for change in self.changes]}

    def edit(self, what: str | Image.Image | Face, where: Where | None = None, strength: float = STRENGTH,
             coverage: float = COVERAGE, replace: bool = False, exact: bool = False) -> "Edited":
        """One change more: outside its mask the picture stays what it is now, inside the change is added to it.

        What is found by a text, and what a change does, count from the unedited source; so the order hardly matters.

        Args:
            what: a text; or a square picture (its pixels, or a Path) or a face (see Editor.open) that the region should
                resemble.
            where: a text, numbers of regions, or a grey picture or array of the framed square, white where the edit goes;
                None takes `what` if that is a text, else the whole picture.
            strength: 0 changes nothing, 0.1 is what training used.
            coverage: 0 edits almost nowhere, 1 widely; a text decides where, so it does nothing to regions and masks.
            replace: let earlier changes give way to this one there, instead of adding to them.
            exact: give the region the very styles of the face `what` (as it is unedited; strength plays no part), instead
                of moving it toward how CLIP sees that face. A picture is inverted for it, and must be framed.
        Raises:
            UserError: an argument that is none of these, or out of range.
        """
        said = self._what(what, exact)
        if where is None:
            place = said if isinstance(said, str) else self._where(Image.new("L", (self.editor.side,) * 2, 255))
        else:
            place = self._where(where)
        return self._then(Change(said, place, strength, coverage, replace))

    def undo(self) -> "Edited":
        """The picture before the last change."""
        if not self.changes:
            raise UserError("there is nothing to undo: the picture has not been edited")
        return self._with(self.changes[:-1], self.edits[:-1])

    def retouch(self, strength: float, coverage: float) -> "Edited":
        """The last change again with another strength and coverage, as a slider asks for; all else is kept.

        Raises:
            UserError: there is no change, or a number is out of range.
        """
        before = self.undo()
        return before._then(replace(self.changes[-1], strength=strength, coverage=coverage))

    def with_changes(self, changes: Sequence[Change]) -> "Edited":
        """The same source with other changes, such as these in another order."""
        edited = self._with((), ())
        for change in changes:
            edited = edited._then(change)
        return edited

    def save(self, path: str | Path) -> Path:
        """Write the picture as PNG with its recipe inside, all of it or nothing.

        Raises:
            UserError: the name does not end in .png, or it cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise UserError(f"{path} does not end in .png; only PNG keeps the pixels and the recipe as they are")
        info = PngImagePlugin.PngInfo()
        info.add_itxt(RECIPE_KEY, json.dumps(self.recipe))
        write_atomically(path, lambda temporary: self.image.save(temporary, format="PNG", pnginfo=info))
        return path

    @torch.no_grad()
    def _then(self, change: Change) -> "Edited":
        editor, source, mask = self.editor.region_editor, self.source, self._mask(change)
        before = self.edits[-1] if self.edits else None
        if change.replace and before is not None:               # what earlier changes made there gives way to this one
            source, before = replace(source, features=before.features), None
        if isinstance(change.what, dict) and "styles_of" in change.what:
            count = len(editor.edited)
            face = self.editor.domain.generator.styles(unpack(change.what["styles_of"]).to(mask.device))
            edit = editor.show_styles(source, face[:count] + source.styles[count:], mask, before)
        else:
            edit = editor.forward_with_mask(source, self._embedding(change.what), mask, change.strength, before)
        return self._with((*self.changes, change), (*self.edits, edit))

    def _with(self, changes: tuple[Change, ...], edits: tuple[Edit, ...]) -> "Edited":
        return Edited(self.editor, self.origin, self.source, changes, edits, self._attended, self.photo)

    def _mask(self, change: Change) -> Tensor:
        """(1, 1, h, h) where a change goes; texts and regions are found in the source, so that the order is free."""
        if isinstance(change.where, str):
            if change.where not in self._attended:
                self._attended[change.where] = self.editor.region_editor.attend(
                    self.source, self.editor.embed(change.where))[1]
            return gate(self._attended[change.where], threshold_for(change.coverage))
        if isinstance(change.where, dict):
            return unpack_mask(change.where["mask"], self.editor.side).to(self.source.image.device)
        self._where(change.where)                                                 # refuses regions that there are not
        chosen = torch.isin(self.source.labels, torch.tensor(change.where, device=self.source.labels.device))
        return blur_mask(chosen[:, None].float())

    def _embedding(self, what: str | dict) -> Tensor:
        return self.editor.embed(what) if isinstance(what, str) else unpack(what["embedding"]).to(self.source.image.device)

    def _what(self, what: str | Image.Image | Face, exact: bool) -> str | dict:
        if isinstance(what, str):
            if exact:
                raise UserError(f"exact takes the styles of a face, but what is the text {what!r}; give a face, or leave "
                                "exact out")
            self.editor.warn_of(what)
            return what
        if exact:
            origin = (self.editor.open_photo(what, aligned=True) if is_picture(what) else self.editor.open(what)).origin
            w = self.editor.domain.sample_w(1, origin["seed"]) if "seed" in origin else unpack(origin["w"])
            return {"styles_of": pack(w)}
        picture = self._picture(read_photo(what)) if is_picture(what) else self.editor.open(what).tensor
        with torch.no_grad():
            return {"embedding": pack(self.editor.domain.clip.encode_image(picture))}

    def _picture(self, picture: Image.Image) -> Tensor:
        """(1, 3, R, R) of a square picture of any size."""
        if picture.width != picture.height:
            raise UserError(f"the picture to resemble is {picture.width} x {picture.height}, expected a square one")
        small = picture.convert("RGB").resize((self.source.image.shape[-1],) * 2, Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(small, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return pixels.to(self.source.image.device)

    def _where(self, where: Where) -> str | list[int] | dict:
        if isinstance(where, str):
            self.editor.warn_of(where)
            return where
        if isinstance(where, Image.Image | np.ndarray):
            return {"mask": pack_mask(where, self.editor.side)}
        count = self.editor.region_editor.regions.num_regions
        chosen = [where] if isinstance(where, Integral) else where if isinstance(where, Sequence) else []
        if not chosen or not all(isinstance(region, Integral) and not isinstance(region, bool) and 0 <= region < count
                                 for region in chosen):
            raise UserError(f"where is a {type(where).__name__} ({str(where)[:40]}), expected a text, a mask, or numbers "
                            f"of regions from 0 to {count - 1}")
        return [int(region) for region in chosen]


def is_picture(source: object) -> bool:
    """Whether a source is a picture: a path, Pillow's, or an array of uint8."""
    return isinstance(source, str | Path | Image.Image) or (isinstance(source, np.ndarray) and source.dtype == np.uint8)
