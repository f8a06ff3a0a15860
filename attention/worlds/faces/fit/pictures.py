"""Generated faces to learn from: pictures, what the features say of their parts, their meshes.

Three kinds: faces; the same ones changed in a part, by a part of another face's styles, mixed inside the part alone by
the very blend that an edit uses: natural texture, seams and all; edits of an earlier editor, so that what fooled its CLIP
is called by its name. Whatever made a picture, its truth is measured like any other's. Shards lie on disk: the work can
go on anywhere.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from attention.devices import autocast
from attention.errors import UserError
from attention.files.disk import write_atomically
from attention.generator import Blend, Generator, sample_z
from attention.images import to_pixels
from attention.method.editor import RegionEditor
from attention.method.spatial_attention import blur_mask, threshold_for
from attention.worlds.faces.measures import MEASURES, measure
from attention.worlds.faces.mesh import LEAST_SCORE, FaceMesh, Mesh
from attention.worlds.faces.parts import Face, Segments

SHARD = 250             # faces; each gives two pictures
AT_ONCE = 5
BLEND = 12              # 0-based layer of the edits
# Begin the names of shards of edits, and of what the encoder learns from: faces, and what is seen of a change.
EDITS, PHOTOS, SIGHTS = "edits-", "photos-", "sights-"
PREFIXES = {EDITS: "edits", PHOTOS: "encoder", SIGHTS: "encoder"}           # -> --part that makes them
OWN_PLACE = 0.7         # of the edits are done where their own prompt says, the others where another one does ...
EVERYWHERE = 0.2        # ... and so many of all everywhere, so that light is not taken for lipstick
STRENGTHS = (0.04, 0.3)         # of the edits: from hardly seen to overdone
MIXED_PARTS = ("hair", "skin", "jaw", "cheeks", "lips", "mouth", "eyes", "brows", "nose", "clothes", "background")

Seen = tuple[np.ndarray, Mesh, np.ndarray]      # pixels, mesh and segments of a picture


@dataclass(frozen=True)
class Pictures:
    """N pictures (N, S, S, 3) uint8, segments (N, s, s) uint8 of SEGMENTS, meshes (N, 510, 2), persons (N, s, s) uint8,
    scores (N,)."""

    pixels: np.ndarray
    segments: np.ndarray
    meshes: np.ndarray
    persons: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def face(self, i: int) -> Face:
        person = Image.fromarray(self.persons[i]).resize(self.pixels.shape[1:3], Image.Resampling.BILINEAR)
        mesh = Mesh.of(self.meshes[i].astype(np.float32), np.asarray(person) / np.float32(255), float(self.scores[i]))
        return Face.of(self.pixels[i], mesh, self.segments[i])


@dataclass(frozen=True)
class Measured:
    """N pictures (N, S, S, 3) uint8, labels (N, S, S) uint8 of PARTS, numbers (N, M) of MEASURES."""

    pixels: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray


def measured(folder: Path, names: Iterable[str]) -> list[Measured]:
    """Measure shards; what was measured once, by as many measures as now, lies beside them. Faces in which no mesh was
    found are left out."""
    found = []
    for name in tqdm(list(names), desc="measures"):
        path = folder / f"{name}-measured.npz"
        if not path.exists() or read_arrays(path, ("numbers",))[0].shape[1] != len(MEASURES):
            pictures = shard(folder, name)
            faces = [pictures.face(i) for i in range(len(pictures)) if pictures.scores[i] >= LEAST_SCORE]
            figures = np.array([list(measure(face).values()) for face in faces], np.float32)
            labels = np.stack([face.labels() for face in faces]).astype(np.uint8)
            pixels = np.stack([face.pixels for face in faces])
            write_arrays(path, {"pixels": pixels, "labels": labels, "numbers": figures})
        found.append(Measured(*read_arrays(path, ("pixels", "labels", "numbers"))))
    return found


def shard(folder: Path, name: str) -> Pictures:
    """Read a shard that was made."""
    path = folder / f"{name}.npz"
    if not path.exists():
        number = int(name.removeprefix(EDITS))
        raise UserError(f"{path} is missing; make it with: {remake(name)} --first {number} --last {number + 1}")
    return Pictures(*read_arrays(path, ("pixels", "segments", "meshes", "persons", "scores")))


def remake(name: str) -> str:
    """The command that makes a shard of this name."""
    part = next((part for prefix, part in PREFIXES.items() if name.startswith(prefix)), "pictures")
    return f"python -m attention.worlds.faces.build --part {part}"


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of a file that `write_arrays` wrote.

    Raises:
        UserError: it is cut short, or another file.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            return [data[name] for name in names]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{path} is no whole set of pictures ({str(error)[:200]}); delete it and run: "
                        f"{remake(path.stem)}") from error


@torch.no_grad()
def make_shards(folder: Path, names: Mapping[str, int], make: Callable[[int], Any]) -> None:
    """Make what is missing of shards by name, each from its seed: dataclasses of arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in tqdm(names.items(), desc="faces"):
        path = folder / f"{name}.npz"
        if not path.exists():
            write_arrays(path, vars(make(seed)))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz, all of it or nothing."""
    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)                                                # type: ignore[arg-type]

    write_atomically(path, save)


def make_shard(generator: Generator, segments: Segments, mesh: FaceMesh, number: int) -> Pictures:
    """SHARD seeded faces, and the same ones changed in a part."""
    random = np.random.default_rng([7, number])
    w = sample_faces(generator, random, 10_000 + number)
    found: list[Seen] = []
    for rows in torch.arange(SHARD).split(AT_ONCE):
        styles = generator.styles(w[rows])
        made = run(generator, styles, None)
        pictures = look(made, segments, mesh)
        others = generator.styles(w[torch.from_numpy(random.integers(SHARD, size=len(rows)))])
        mixed = mixture(random, styles, others)
        mask = torch.stack([part_mask(random, Face.of(*face)) for face in pictures])                 # (B, 1, 64, 64)
        changed = run(generator, mixed, Blend(BLEND, mask, made[1], even=True))
        found += [*pictures, *look(changed, segments, mesh)]
    return kept(found)


def make_edits(editor: RegionEditor, text: Callable[[str], Tensor], prompts: Sequence[str], segments: Segments,
               mesh: FaceMesh, number: int) -> Pictures:
    """SHARD seeded faces, each edited by some prompt with some strength in some place: its own, another's, everywhere.

    Hair and background are called what they were before the edit, as in the evaluation (truth.py).

    Args:
        text: a prompt -> its embedding (1, D).
    """
    random = np.random.default_rng([8, number])
    w = sample_faces(editor.generator, random, 500_000 + number)
    found: list[Seen] = []
    for rows in torch.arange(SHARD).split(AT_ONCE):
        source = editor.source(w[rows])
        whats = torch.cat([text(str(prompt)) for prompt in random.choice(prompts, len(rows))])
        wheres = torch.cat([text(str(prompt)) for prompt in random.choice(prompts, len(rows))])
        own = torch.from_numpy(random.random((len(rows), 1)) < OWN_PLACE)
        place = editor.locate(source, torch.where(own, whats, wheres), threshold_for(random.uniform(0.4, 1)))
        everywhere = torch.from_numpy(random.random((len(rows), 1, 1, 1)) < EVERYWHERE)
        mask = torch.where(everywhere, torch.ones(()), place.mask)
        styles = editor.mapper(source.styles, whats, torch.from_numpy(random.uniform(*STRENGTHS, (len(rows), 1))).float())
        with autocast("bf16", mask.device):
            edit = editor.apply(source, styles, mask, keep_features=False, what=whats)
        labels = segments(source.features[segments.layer]).cpu().numpy()
        found += [(pixels, mesh(pixels), before) for pixels, before in zip(to_pixels(edit.image), labels, strict=True)]
    return kept(found)


def sample_faces(generator: Generator, random: np.random.Generator, seed: int) -> Tensor:
    """w (SHARD, style_dim) of faces of many truncations."""
    z = sample_z(SHARD, generator.style_dim, seed)
    truncation = torch.from_numpy(random.uniform(0.5, 1.0, (SHARD, 1))).float()
    mean = generator.mapping(z[:1], 0.0)
    return mean + truncation * (generator.mapping(z) - mean)


def kept(found: Sequence[Seen]) -> Pictures:
    """What is written of pictures."""
    rows = []
    for pixels, seen, labels in found:
        person = Image.fromarray((seen.person * 255).round().astype(np.uint8)).resize(labels.shape)
        rows.append((pixels, labels.astype(np.uint8), seen.flat().astype(np.float16), np.asarray(person),
                     np.float32(seen.score)))
    return Pictures(*(np.stack(values) for values in zip(*rows, strict=True)))


def run(generator: Generator, styles: list[Tensor], blend: Blend | None) -> tuple[Tensor, list[Tensor]]:
    """Picture and features, in bf16 where the machine has it."""
    with autocast("bf16", styles[0].device):
        image, features = generator.synthesis(styles, blend=blend)
    assert image is not None                                                                # synthesis stops nowhere
    return image.float(), features


def look(made: tuple[Tensor, list[Tensor]], segments: Segments, mesh: FaceMesh) -> list[Seen]:
    """Pixels, mesh and segments of every picture."""
    labels = segments(made[1][segments.layer].float()).cpu().numpy()
    return [(pixels, mesh(pixels), own) for pixels, own in zip(to_pixels(made[0]), labels, strict=True)]


def mixture(random: np.random.Generator, styles: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Styles part of the way to another face's, from a random layer on, and a little beyond it at times."""
    share = torch.from_numpy(random.uniform(0.3, 1.5, (len(styles[0]), 1))).float()
    first = random.integers(0, 10)
    return [torch.lerp(own, other, share if first <= i <= BLEND else torch.zeros(()))
            for i, (own, other) in enumerate(zip(styles, others, strict=True))]


def part_mask(random: np.random.Generator, face: Face) -> Tensor:
    """(1, 64, 64) the soft mask of a random part, now and then the whole picture."""
    side = 64
    if random.random() < 0.1:
        return torch.ones(1, side, side)
    mask = torch.from_numpy(face.parts[str(random.choice(MIXED_PARTS))].astype(np.float32))[None, None]
    return blur_mask((torch.nn.functional.adaptive_avg_pool2d(mask, side) > 0.25).float())[0]
