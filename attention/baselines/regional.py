"""Ours, ours without one of its parts, ours with the true part, and doing nothing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.baselines.base import known, remake
from attention.config import TrainConfig
from attention.errors import UserError
from attention.files.disk import run_folder
from attention.files.safetensors import consistent, read_safetensors
from attention.generator import LayerSpec
from attention.method.editor import RegionEditor, Source
from attention.method.regions import RegionClusters, region_points
from attention.method.spatial_attention import blur_mask
from attention.training.loop import train
from attention.training.runs import build_editor, judge_of, load_run
from attention.worlds.registry import WORLDS, configured
from attention.worlds.truth import Faces
from attention.worlds.world import World

EDITOR_KIND = "where2edit baseline editor"
VARIATION_WEIGHT = 1.0      # of the total variation of an attention per pixel


@dataclass
class Nothing:
    """The floor: the unedited picture."""

    world: World
    key = "nothing"
    name = "do nothing"
    strengths = (0.0, 0.0, 0.0, 0.0, 0.0)
    strength = 0.0
    given_mask = False

    @classmethod
    def load(cls, world: World, folder: Path) -> "Nothing":
        return cls(world)

    @torch.no_grad()
    def edit(self, w: Tensor, prompt: str, strength: float, faces: Faces | None = None) -> tuple[Tensor, None]:
        return self.world.picture(w), None


class Inside(NamedTuple):
    """Where a prompt changes faces, and how much of a strength suits each."""

    mask: Tensor                # (B, 1, h, h) in [0, 1]
    gated: Tensor | None
    doses: Tensor               # (B, 1)


@dataclass
class RegionMethod:
    """Ours: *what* and *where* are the prompt, at the default coverage. By default the editor shipped for the world."""

    world: World
    editor: RegionEditor
    key = "ours"
    name = "ours"
    strengths = (0.025, 0.05, 0.1, 0.15, 0.2)
    strength = 0.1
    given_mask = False
    _last: tuple[Tensor, Source] | None = field(default=None, init=False, repr=False)
    _suits: tuple[str, Inside] | None = field(default=None, init=False, repr=False)

    @classmethod
    def load(cls, world: World, folder: Path) -> "RegionMethod":
        run = world.entry.editor
        if run is None:
            raise UserError(f"no editor is shipped for the world {world.name}, but {cls.key} edits by one; leave it out "
                            f"with --only, or take --domain {', '.join(known_editors())}")
        editor, own, _ = load_run(run, str(world.device))
        if own.generator_hash != world.generator_hash:
            raise UserError(f"{run / 'editor.safetensors'} edits the generator {own.generator_hash}, but {world.name} has "
                            f"{world.generator_hash}; leave {cls.key} out, or take the world's own generator")
        return cls(world, editor.with_generator(world.generator))

    @torch.no_grad()
    def edit(self, w: Tensor, prompt: str, strength: float, faces: Faces) -> tuple[Tensor, Tensor | None]:
        # A sweep asks for the same faces again and again; w is compared by identity, so a timing with its own w is honest.
        if self._last is None or self._last[0] is not w:
            self._last, self._suits = (w, self.editor.source(w)), None
        source, text = self._last[1], self.world.clip.encode_text([prompt]).expand(len(w), -1)
        if self._suits is None or self._suits[0] != prompt:
            mask, gated = self.place(source, text, prompt, faces)
            self._suits = prompt, Inside(mask, gated, self.editor.doses(source, text, mask))
        inside = self._suits[1]
        styles = self.editor.mapper(source.styles, text, strength * inside.doses)
        return self.editor.apply(source, styles, inside.mask, keep_features=False, what=text).image, inside.gated

    def place(self, source: Source, text: Tensor, prompt: str, faces: Faces) -> tuple[Tensor, Tensor | None]:
        """The mask (B, 1, h, h) that blends, and the gated one that counts as the place meant, or None."""
        found = self.editor.locate(source, text)
        return found.mask, found.gated


class TruePart(RegionMethod):
    """The ceiling: the shipped editor's change, inside the true part and its soft seam."""

    key = "true_part"
    name = "ours, true part given"
    given_mask = True

    def place(self, source: Source, text: Tensor, prompt: str, faces: Faces) -> tuple[Tensor, Tensor]:
        part = faces.part(prompt).to(text.device)[:, None].float()                           # (B, 1, S, S)
        side = self.editor.attention.map_size
        part = (F.interpolate(part, size=(side, side), mode="area") >= 0.5).float()         # (B, 1, h, h)
        return blur_mask(part), part


class PixelRegions(RegionClusters):
    """Every pixel of the blend layer is a region of its own: pixel i of the row by row count is region i.

    The centroids are nothing but the pixels' positions, so that each pixel is nearest to its own, whatever it looks like;
    `assign` knows that without measuring.
    """

    def __init__(self, world: World):
        layer = blend_layer(world)
        blank = torch.zeros(1, layer.out_channels, layer.resolution, layer.resolution)
        super().__init__(region_points(blank), layer.index, world.name, generator_hash=world.generator_hash)

    def assign(self, feature: Tensor, size: int | None = None) -> Tensor:
        """(B, C, h, h) -> (B, h, h) int64, the same for every picture.

        Raises:
            UserError: the feature map has another width.
        """
        self.check(channels=feature.shape[1])
        numbers = torch.arange(self.num_regions, device=feature.device)
        return numbers.view(feature.shape[2:]).expand(len(feature), -1, -1)


class PixelAttention(RegionMethod):
    """FEAT's kind of attention (Hou et al. 2022): ours with every pixel a region of its own, trained by our own loop.

    What regions did for smoothness, total variation does, as there. The budget, which counts regions, weighs a picture
    that is attended everywhere as it does with ours.
    """

    key = "pixels"
    name = "pixel attention (FEAT)"
    saved = ("mapper.", "attention.")

    @classmethod
    def load(cls, world: World, folder: Path) -> "PixelAttention":
        return cls(world, load_variant(cls, world, folder))

    @staticmethod
    def settings(world: World) -> dict[str, float]:
        usual, pixels = configured(TrainConfig, domain=world.name), blend_layer(world).resolution ** 2
        weight = usual.weight("attention_budget") * usual.cluster_num / pixels
        return dict(cluster_num=pixels, lambda_sec=weight, lambda_ess=0.0,
                    lambda_tv=VARIATION_WEIGHT)

    @staticmethod
    def regions(world: World) -> RegionClusters:
        return PixelRegions(world)


class WithoutAttention(RegionMethod):
    """Ours without attention: the mask is 1 everywhere, so the whole picture changes up to the blend.

    In training the attention stays as it is at first, sigmoid(5) = 0.993, and is made even by a single region.
    """

    key = "no_attention"
    name = "ours without attention"
    saved = ("mapper.",)

    @classmethod
    def load(cls, world: World, folder: Path) -> "WithoutAttention":
        return cls(world, load_variant(cls, world, folder))

    @staticmethod
    def settings(world: World) -> dict[str, float]:
        return dict(cluster_num=1, attention_start=2.0, lambda_ess=0.0, lambda_sec=0.0, lambda_area=0.0)

    @staticmethod
    def regions(world: World) -> RegionClusters:
        layer = blend_layer(world)
        anywhere = region_points(torch.zeros(1, layer.out_channels, 1, 1))
        return RegionClusters(anywhere, layer.index, world.name, generator_hash=world.generator_hash)

    def place(self, source: Source, text: Tensor, prompt: str, faces: Faces) -> tuple[Tensor, None]:
        side = self.editor.attention.map_size
        return torch.ones(len(source), 1, side, side, device=text.device), None


def known_editors() -> list[str]:
    """The worlds that an editor is shipped for."""
    return [name for name, entry in WORLDS.items() if entry.editor is not None]


def blend_layer(world: World) -> LayerSpec:
    """The layer that our own training blends at."""
    return world.generator.layers[configured(TrainConfig, domain=world.name).attention_layer - 1]


Variant = type[PixelAttention] | type[WithoutAttention]


def variant_config(variant: Variant, world: World, **options: Any) -> TrainConfig:
    """Our own training's options, but for those that make the variant."""
    return configured(TrainConfig, domain=world.name, **variant.settings(world), **options)


def train_variant(variant: Variant, world: World, run: Path, seed: int, step: int | None = None,
                  resume: str | None = None) -> dict[str, Tensor]:
    """Train by our own loop in a run folder; returns what a variant's file holds.

    Raises:
        UserError: the training was asked to stop before its end.
    """
    config = variant_config(variant, world, run=run_folder(run), seed=seed, step=step, device=str(world.device),
                            resume=resume, overwrite=resume is None)
    train(config, world, variant.regions(world))
    if not (run / "checkpoints" / f"{config.step:06d}.pt").is_file():
        raise UserError(f"{run} was asked to stop before its {config.step} steps, and half an editor is no fair "
                        f"comparison; train it again with: {remake(variant.key, world)}")
    tensors, _ = read_safetensors(run / "editor.safetensors", "where2edit editor", remake(variant.key, world))
    return {name: value for name, value in tensors.items() if name.startswith(variant.saved)}


def load_variant(variant: Variant, world: World, folder: Path) -> RegionEditor:
    """The editor of a variant's file.

    Raises:
        UserError: the file is missing, cut short, of another kind or of another generator, or its tensors do not fit.
    """
    path = Path(folder) / f"{variant.key}.safetensors"
    tensors, metadata = read_safetensors(path, EDITOR_KIND, remake(variant.key, world))
    known(world, metadata, path, variant.key)
    editor = build_editor(variant_config(variant, world), world, variant.regions(world).to(world.device))
    unsaved = {name: value for name, value in editor.state_dict().items() if not name.startswith(variant.saved)}
    with consistent(path, remake(variant.key, world)):
        editor.load_state_dict({**tensors, **unsaved})
    editor.judge = judge_of(world)
    return editor.requires_grad_(False).eval()
