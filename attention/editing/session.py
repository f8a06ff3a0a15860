"""Editing for people: sources of any kind, edits that chain, and pictures that remember how they were made.

    editor = attention.load_editor("drawn")                     # or a run folder
    face = editor.open_seed(7)                                  # or open_latent(w), open_photo("me.jpg")
    grey = face.edit("grey hair")
    both = grey.edit("red lipstick", where="lips", strength=0.15)
    both.save("edited.png")
    same = editor.replay("edited.png")                          # the same pixels
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attention.editing.colours import in_srgb
from attention.editing.detector import load_detector
from attention.editing.edited import Change, Edited, Picture, threads_of
from attention.editing.photo import find_landmarks, read_landmarks, read_photo
from attention.editing.placed import Placed
from attention.editing.recipes import LARGEST_SEED, Sizes, check_recipe, pack, pixel_hash, read_recipe, unpack
from attention.editing.words import Words, check_text, words_in
from attention.errors import UserError
from attention.extras import have
from attention.files.reading import as_path, shown
from attention.images import area_resize, to_image, to_pixels
from attention.inversion.frame import Frame
from attention.inversion.identity import Recogniser
from attention.method.defaults import STRENGTHS
from attention.method.editor import RegionEditor
from attention.sheets import edit_sheet
from attention.training.folder import EDITOR
from attention.training.runs import load_run, run_of
from attention.worlds.world import World

GRID_SIDE = 320             # pixels of a picture in a grid, at most: its titles shall be read
DETECTION_SIDE = 512        # pixels of a framed face that is searched
ELSEWHERE = 0.2             # of its side, by how much a square may miss the face that is said to lie in it, untold
LARGEST_VALUE = 1e3         # of a picture, about [-1, 1] of any face


def load_editor(name: str | Path, device: str = "auto", trust: bool = False, ckpt: Path | None = None) -> "Editor":
    """The editor of a run folder, or the shipped one of a world by its name, such as "drawn"; `ckpt` is where its generator
    lies now, if not where the run says.

    Edits of 1024 px on a CPU take half of the time after `attention.memory.keep_memory()`, which commands call themselves.

    Raises:
        UserError: the folder holds no whole editor; see `runs.load_run`.
    """
    folder = run_of(as_path(name, "a run folder"))
    editor, world, config = load_run(folder, device, trust, ckpt)
    identity = hashlib.sha256((folder / EDITOR).read_bytes()).hexdigest()[:16]
    return Editor(editor, world, identity, from_captions=config.captions is not None)


class Editor:
    """A trained editor with its world.

    Args:
        region_editor: frozen.
        world: in which it was trained.
        identity: of its weights, for recipes.
        from_captions: it was trained on captions and not on the world's prompts alone.
    """

    def __init__(self, region_editor: RegionEditor, world: World, identity: str, from_captions: bool = False):
        self.region_editor, self.world, self.identity = region_editor, world, identity
        self.from_captions = from_captions
        self.side = region_editor.attention.map_size
        self.embed = lru_cache(maxsize=256)(self._embed)

    def __repr__(self) -> str:
        return f"<Editor of {self.world.name}: {self.world.generator.resolution} px, {self.identity}>"

    def open_seed(self, seed: int) -> Edited:
        """The face of a seed, as yet unedited.

        Raises:
            UserError: the seed is no whole number from 0 to LARGEST_SEED.
        """
        if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"the seed is {shown(repr(seed), 40)}, expected a whole number from 0 to {LARGEST_SEED}")
        return self.opened({"seed": int(seed), "threads": torch.get_num_threads()})

    def open_latent(self, w: Tensor | np.ndarray) -> Edited:
        """The face of a latent, as yet unedited.

        Args:
            w: (style_dim,) or w+ (n_latent, style_dim), with or without a batch of 1.
        Raises:
            UserError: it has another shape, or is not finite.
        """
        return self.opened({"w": pack(self._latent(w)), "threads": torch.get_num_threads()})

    def opened(self, origin: dict, photo: Placed | None = None) -> Edited:
        """What a recipe says that it came of, made as it was then, as yet unedited.

        Args:
            photo: the photo, if it was one, and its square.
        """
        with threads_of(origin):
            source_of = self.region_editor.source if photo is None else self.region_editor.source_of_photo
            source = source_of(self.latent(origin))
            if not source.image.abs().max() <= LARGEST_VALUE:                                       # nan is none either
                raise UserError("the latent is none of a face: its picture has values beyond "
                                f"{LARGEST_VALUE:g}, where about -1 to 1 was expected; give one nearer to the mean")
            if photo is not None:
                guide = to_image(photo.square(source.image.shape[-1])[None]).to(source.image.device)
                behind = None if self.world.layout is None else self.world.layout.background(guide)
                source = replace(source, guide=guide, background=behind)
            return Edited(self, origin, source, photo=photo)

    def latent(self, origin: dict) -> Tensor:
        """w (1, style_dim) or w+ (1, n_latent, style_dim) of what a recipe says that a picture came of."""
        return unpack(origin["w"]).to(self.world.device) if "w" in origin else self.world.sample_w(1, origin["seed"])

    @cached_property
    def early(self) -> "Editor":
        """The same editor with the early pictures of its world, smaller and several times as fast; itself, if it has none.

        Raises:
            UserError: see `World.preview`.
        """
        world = self.world.preview()
        if world is self.world:
            return self
        return Editor(self.region_editor.with_generator(world.generator), world, self.identity, self.from_captions)

    def open_photo(self, source: Picture, landmarks: str | Path | np.ndarray | None = None,
                   face: int | None = None, aligned: bool = False, refine: int | None = None,
                   detect: Callable[[np.ndarray], list | None] | None = None) -> Edited:
        """A photo to edit: the face is framed as the generator frames faces, inverted, and edits are put back.

        Args:
            source: a path, a picture, or an array of uint8.
            landmarks: (68, 2) or (5, 2) points x, y in pixels, or a file of them; None searches the face.
            face: which of several, 0 the largest.
            aligned: the picture is square and framed already; nothing is searched.
            refine: steps of `invert`, about a second for ten on drawn faces; None takes what suits the world.
            detect: another detector than dlib's, see find_landmarks.
        Raises:
            UserError: no picture, no face, no encoder, or the photo is not square although it is said to be framed.
        """
        if aligned and (landmarks is not None or face is not None):
            given = "face" if landmarks is None else "landmarks"
            raise UserError(f"aligned says that the picture is framed already, but {given} says where a face is; leave one "
                            "of them out")
        refine = self.world.entry.refine if refine is None else refine
        if face is not None and (not isinstance(face, Integral) or isinstance(face, bool)):
            raise UserError(f"face is {face!r}, expected the number of a face, 0 for the largest")
        if not isinstance(refine, Integral) or refine < 0:
            raise UserError(f"refine is {refine!r}, expected a whole number of steps, at least 0")
        if not isinstance(aligned, bool):
            raise UserError(f"aligned is {aligned!r}, expected True or False")
        photo = read_photo(source)
        if aligned:
            if photo.width != photo.height:
                raise UserError(f"the picture is {photo.width} x {photo.height}, but one that is framed already is square; "
                                "give its landmarks or let its face be searched instead (aligned is for framed pictures)")
            points, frame = (), Frame(np.array([photo.width / 2] * 2), np.array([photo.width / 2, 0]))
        else:
            found = find_landmarks(photo, detect or load_detector(), face) if landmarks is None else landmarks
            points = read_landmarks(found) if isinstance(found, str | Path) else found
            frame = self.world.frame(points)
        placed = Placed(photo, frame)
        crop = placed.square(self.world.generator.resolution)
        persons = self.world.entry.recognised and have("photos")
        if persons and (aligned or landmarks is not None) and (told := self._not_framed(placed.square(DETECTION_SIDE))):
            warnings.warn(told, stacklevel=2)
        if (tone := placed.tone) is not None:
            name = "black and white" if tone.grey else "in shades of one colour"
            warnings.warn(f"the face is {name}, and so are its edits", stacklevel=2)
        inversion = self.world.invert(to_image(crop[None]), refine)
        name, least = shown(Path(source).name) if isinstance(source, str | Path) else "", self.world.entry.least_psnr
        if least is not None and not inversion.psnr_before >= least:
            raise UserError(f"{name or 'the picture'} does not look like the pictures of {self.world.name}: what comes "
                            f"nearest has a PSNR of {inversion.psnr_before:.1f} dB, but at least {least:g} were expected; "
                            "give another photo, its landmarks if it is not framed, or the editor of another world (--run)")
        origin = {"w": pack(inversion.w), "photo": {"name": name, "sha256": pixel_hash(photo),
                                                    "center": frame.center.tolist(), "right": frame.right.tolist()},
                  "psnr": [inversion.psnr_before, inversion.psnr_after], "threads": torch.get_num_threads()}
        if inversion.lpips_before is not None:
            origin["lpips"] = [inversion.lpips_before, inversion.lpips_after]
        if persons and len(points) == 68:
            pictures = [to_pixels(picture)[0] for picture in (inversion.before, inversion.after)]
            smaller = np.asarray(Image.fromarray(crop).resize(pictures[0].shape[:2], Image.Resampling.BOX))
            origin["distance"] = Recogniser().distances(smaller, pictures, frame.within(points, len(smaller)))
        return self.opened(origin, placed)

    def grid(self, face: Edited, changes: "str | Change | Sequence[str | Change]",
             strengths: float | Sequence[float] = STRENGTHS) -> Image.Image:
        """A sheet of edits, each of the unedited face: every change, or text that says what and where, at every strength.
        Of a photo, it shows the square of it with the edits put back.

        Raises:
            UserError: no changes or no strengths.
        """
        changes = [changes] if isinstance(changes, str | Change) else list(changes)
        strengths = list(strengths) if isinstance(strengths, Iterable) else [strengths]
        if not changes or not strengths:
            raise UserError("a grid needs at least one change and one strength")
        opened, titles, edits = face.with_changes(()), [], []
        for change in changes:
            if isinstance(change, str):
                read = self.read(change)
                change = Change(read, read)
            for strength in strengths:
                edits.append(opened.with_changes([replace(change, strength=strength)]))
                titles.append(f"{change.what if isinstance(change.what, str) else 'reference'} {strength:g}")
        before, *after = (area_resize(face.square, min(GRID_SIDE, face.square.shape[-1])) for face in (opened, *edits))
        return edit_sheet(before, titles, after, [edit.mask for edit in edits])

    def replay(self, path: str | Path, photo: str | Path | Image.Image | None = None) -> Edited:
        """Make the picture again that `Edited.save` wrote, from the recipe in its file: the same pixels.

        Args:
            photo: the photo that was edited, if it was one; it is not in the recipe.
        Raises:
            UserError: no picture there, one without a recipe, one that another editor made, or of another photo or none.
        """
        recipe, name = read_recipe(path), shown(path)
        if recipe.get("editor") != self.identity:
            raise UserError(f"{name} was made by the editor {shown(recipe.get('editor'))}, but this one is "
                            f"{self.identity}; load the editor that made it")
        check_recipe(recipe, self._sizes, name)
        origin = recipe["source"]
        if photo is not None and "photo" not in origin:
            raise UserError(f"{name} is no edit of a photo, so the photo has no use here; leave it out")
        found = self._photo(name, origin["photo"], photo) if "photo" in origin else None
        try:
            # A recipe that says no dose took every strength as it is, and one that says no edges followed none.
            changes = [Change(**{"dose": 1.0, "edges": False, **change}) for change in recipe["changes"]]
        except UserError as error:
            raise UserError(f"{name} has a garbled recipe: {error}") from None
        return self.opened(origin, found).with_changes(changes)

    @property
    def _sizes(self) -> Sizes:
        generator, editor = self.world.generator, self.region_editor
        return Sizes([(1, generator.style_dim), (1, generator.n_latent, generator.style_dim)],
                     [tuple(self.embed("hair").shape)], self.side, editor.regions.num_regions)

    def _photo(self, path: str, said: dict, photo: str | Path | Image.Image | None) -> Placed:
        """The photo of a recipe, and where in it the face is."""
        if photo is None:
            raise UserError(f"{path} is the edit of the photo {shown(said['name'])!r}, which is not in its recipe; give it "
                            "too")
        picture = read_photo(photo)
        if pixel_hash(picture) != said["sha256"]:
            raise UserError(f"{path} is the edit of another photo than the one given; it was called "
                            f"{shown(said['name'])!r}")
        frame = Frame(np.array(said["center"], float), np.array(said["right"], float))
        try:
            frame.check(picture.size)
        except UserError:
            raise UserError(f"{path} has a garbled recipe: the face lies outside of the photo") from None
        return Placed(picture, frame)

    def _not_framed(self, square: np.ndarray) -> str:
        """What is to be told of a picture (S, S, 3) that is said to be framed; nothing if a face lies as it should."""
        frames = []
        for points in load_detector()(square):
            with suppress(UserError):                       # one seen from the side
                frames.append(self.world.frame(points))
        if not frames:
            return ("no face was found where the photo is said to have one, and what is edited is the face that comes "
                    "nearest to it")
        middle = len(square) / 2
        whole = Frame(np.array([middle, middle]), np.array([middle, 0.0]))
        away = min(frame.apart(whole) for frame in frames)
        return "" if away <= ELSEWHERE else (
            f"the face does not lie where framed pictures have it: the square round it is {away:.0%} of the side away, so "
            "that edits may miss it; let the face be searched instead")

    def _latent(self, w: Tensor | np.ndarray) -> Tensor:
        """(1, style_dim) or (1, n_latent, style_dim) float32 of a latent of any kind."""
        generator = self.world.generator
        numbers = isinstance(w, np.ndarray) and w.dtype.kind in "fiu"
        found = torch.from_numpy(np.ascontiguousarray(w, np.float32)) if numbers else w
        for shape in ((generator.style_dim,), (generator.n_latent, generator.style_dim)):
            if (isinstance(found, Tensor) and not found.is_complex() and found.dtype != torch.bool
                    and tuple(found.shape) in (shape, (1, *shape)) and torch.isfinite(found).all()):
                return found.reshape(1, *shape).float().to(self.world.device)
        told = f"an array of {w.dtype} and shape {tuple(w.shape)}" if isinstance(w, Tensor | np.ndarray) else shown(repr(w))
        told += ", not all of it finite" if isinstance(found, Tensor) and not torch.isfinite(found).all() else ""
        raise UserError(f"the latent is {told}, expected {generator.style_dim} or {generator.n_latent} x "
                        f"{generator.style_dim} finite numbers")

    @cached_property
    def words(self) -> Words:
        """What can be said to this editor."""
        return words_in(self.world, self.world.clip.words, self.from_captions)

    def read(self, text: str, place: bool = False) -> str:
        """What was typed, as CLIP is given it; whatever is not read as it stands is told every time that it is said.

        Args:
            place: the text says where, not what.
        Raises:
            UserError: see `check_text`, `Words.read` and `Words.read_place`.
        """
        check_text(text)
        read = self.words.read_place(text) if place else self.words.read(text)
        for note in read.notes:
            warnings.warn(note, stacklevel=4)
        if not self.world.clip.fits(read.text):
            warnings.warn(f"the text is longer than CLIP reads ({text[:40]!r}...); the rest is passed over", stacklevel=4)
        return read.text

    @torch.no_grad()
    def embedding_of(self, picture: Picture) -> Tensor:
        """(1, D) CLIP embedding of a square picture of any size.

        Raises:
            UserError: it cannot be read, or is not square.
        """
        photo, side = read_photo(picture), self.world.generator.resolution
        if photo.width != photo.height:
            raise UserError(f"the picture to resemble is {photo.width} x {photo.height}, expected a square one")
        small = np.array(in_srgb(photo).resize((side, side), Image.Resampling.LANCZOS))
        return self.world.clip.encode_image(to_image(small[None]).to(self.world.device))

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        """(1, D) CLIP embedding of a text."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                 # it warns once in its life; read says it to everyone
            return self.world.clip.encode_text([text])
