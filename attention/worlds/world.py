"""A world at work: its generator is loaded, every other part when it is first used.

Whoever needs a part asks the world for it; nobody outside this folder asks which world it is.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attention.clip_models import CLIP_MODELS
from attention.clip_models.base import TextImageModel
from attention.errors import UserError
from attention.files.generator import early_generator
from attention.generator.base import Generator, sample_z
from attention.generator.early import EarlyGenerator
from attention.images import area_resize
from attention.inversion.frame import Frame
from attention.inversion.invert import FACES, Inversion, invert
from attention.inversion.layout import Layout, load_layout
from attention.worlds.base import WorldEntry
from attention.worlds.parts import ENCODERS, FRAMES, PERCEPTUAL, TRUTHS, VIEWS, WORDS
from attention.worlds.truth import Truth

EXAMPLES = 6                # prompts that stand for all, where a world does not say which


class World:
    """A world at work on one device.

    Args:
        entry: what it is made of.
        generator: frozen, on the device.
        generator_hash: of its weights, see `files.generator.weights_hash`.
        trust: run a CLIP archive (a program) that is not OpenAI's by its hash.
        clip, perceptual: parts that are loaded already, in place of the entry's.
    """

    def __init__(self, entry: WorldEntry, generator: Generator, generator_hash: str, device: torch.device,
                 trust: bool = False, clip: TextImageModel | None = None,
                 perceptual: Callable[[Tensor], Tensor] | None = None):
        self.entry, self.generator, self.generator_hash = entry, generator, generator_hash
        self.device, self.trust = device, trust
        if clip is not None:
            self.clip = clip
        if perceptual is not None:
            self.perceptual = perceptual

    def early(self) -> "World":
        """The same world with the early pictures of its generator; itself, if it has none or shows early ones already.

        Raises:
            UserError: the head's file is missing or broken, or of another generator.
        """
        return self._read_by(self.entry.early)

    def preview(self) -> "World":
        """The same world with the pictures that evaluation sees, as `early`."""
        return self._read_by(self.entry.preview)

    def _read_by(self, head: Path | None) -> "World":
        if head is None or isinstance(self.generator, EarlyGenerator):
            return self
        world = copy.copy(self)
        world.generator = early_generator(self.generator, head)
        return world

    @cached_property
    def smallest(self) -> Generator:
        """Its generator with the smallest pictures that there are, whichever it shows.

        Raises:
            UserError: see `early`.
        """
        whole = self.generator.whole if isinstance(self.generator, EarlyGenerator) else self.generator
        return whole if self.entry.early is None else early_generator(whole, self.entry.early)

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.entry.prompts

    @property
    def places(self) -> tuple[str, ...]:
        """Texts that name places, for steps in which all prompts share one."""
        return self.entry.places or self.entry.prompts

    @cached_property
    def clip(self) -> TextImageModel:
        """The frozen model of texts and pictures.

        Raises:
            UserError: its file is missing or of another kind.
        """
        return CLIP_MODELS[self.entry.clip.kind](self.entry.clip.source, self.trust).to(self.device)

    @cached_property
    def encoder(self) -> nn.Module:
        """Pictures (B, 3, R, R) in [-1, 1] -> w (B, style_dim) or w+ (B, n_latent, style_dim).

        Raises:
            UserError: this world has none, or its file is missing.
        """
        if self.entry.encoder is None:
            raise UserError(f"the world {self.name} has no encoder, so it cannot take pictures; give a seed or a latent")
        return ENCODERS[self.entry.encoder.kind](Path(self.entry.encoder.source)).to(self.device)

    @cached_property
    def layout(self) -> Layout | None:
        """What of a photo is background (inversion/layout.py), if that is known.

        Raises:
            UserError: the file is missing or broken, or goes with another encoder.
        """
        if self.entry.layout is None:
            return None
        return load_layout(self.entry.layout, self.encoder).to(self.device)

    @cached_property
    def perceptual(self) -> Callable[[Tensor], Tensor]:
        """What the perceptual loss compares: (B, 3, R, R) in [-1, 1] -> features (B, C, h, w).

        Raises:
            UserError: its weights are missing.
        """
        return PERCEPTUAL[self.entry.perceptual](self.device)

    @cached_property
    def truth(self) -> Truth:
        """What is really so of its faces.

        Raises:
            UserError: nothing is known of this world's faces but how they look.
        """
        if self.entry.truth is None:
            raise UserError(f"nothing is known of the faces of {self.name} but how they look; this needs the truth about "
                            f"them; it is known of {', '.join(TRUTHS)}")
        return TRUTHS[self.entry.truth](self)

    @property
    def has_truth(self) -> bool:
        return self.entry.truth is not None

    @property
    def examples(self) -> tuple[tuple[int, str, str], ...]:
        """Seed, what and where of edits that show what can be done."""
        return self.entry.examples or tuple((seed, prompt, "") for seed, prompt in enumerate(self.prompts[:EXAMPLES]))

    def where_texts(self, prompt: str) -> tuple[str, ...]:
        """Texts that name the place of a prompt."""
        return WORDS[self.entry.words](prompt)

    def frame(self, landmarks: np.ndarray) -> Frame:
        """Landmarks (68, 2) or (5, 2) of a photo -> the square of it that this world's pictures show."""
        return FRAMES[self.entry.frame](landmarks)

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """What CLIP is shown of pictures (B, 3, R, R) in training; every picture has a seed of its own."""
        return VIEWS[self.entry.views](images, seeds)

    def sample_w(self, count: int, seed: int) -> Tensor:
        """(count, style_dim) seeded latents of this world's truncation; the same on every device."""
        return self.w_from_z(sample_z(count, self.generator.style_dim, seed))

    def w_from_z(self, z: Tensor) -> Tensor:
        """z (B, style_dim) on any device -> w (B, style_dim), without a graph."""
        return self.generator.mapping(z.to(self.device), self.entry.truncation).detach()

    def picture(self, w: Tensor) -> Tensor:
        """w (B, style_dim) or w+ (B, n_latent, style_dim) -> its pictures (B, 3, R, R) float32, differentiable."""
        return self.generator.picture(self.generator.styles(w))

    def invert(self, image: Tensor, steps: int = 0) -> Inversion:
        """The latent of a framed picture (1, 3, R, R) in [-1, 1], by early pictures where there are such; see
        `inversion.invert`.

        Raises:
            UserError: no encoder, or one of another generator.
        """
        photographs, persons = self.entry.perceptual != "pixels", self.entry.recognised
        generator, faces = self.preview().generator, self.sample_w(FACES, seed=0)
        seen = area_resize(image.to(self.device), generator.resolution)
        return invert(generator, self.encoder, seen, faces, steps, photographs, persons, self.early().generator)
