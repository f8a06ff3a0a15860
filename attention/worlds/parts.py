"""The kinds of parts that a world may name, each loaded when it is first used.

A new kind is one more entry here, or in a program of yours: `ENCODERS["mine"] = load_mine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attention.worlds import concepts
from attention.worlds.drawn import world as drawn
from attention.worlds.faces import concepts as people
from attention.worlds.faces import world as faces

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from attention.inversion.frame import Frame
    from attention.worlds.truth import Truth
    from attention.worlds.world import World

Features = Callable[["Tensor"], "Tensor"]


def _e4e(path: Path) -> nn.Module:
    from attention.inversion.e4e import load_e4e
    return load_e4e(path)


def _ffhq_frame(landmarks: np.ndarray) -> Frame:
    from attention.inversion.frame import ffhq_frame
    return ffhq_frame(landmarks)


def _plain(images: Tensor, seeds: Sequence[int]) -> Tensor:
    return images


def _noisy(images: Tensor, seeds: Sequence[int]) -> Tensor:
    from attention.images import augmented
    return augmented(images, seeds)


def _vgg16(device: torch.device) -> Features:
    from attention.inversion.perceptual import vgg_features_of_pictures
    return vgg_features_of_pictures(device)


def _pixels(device: torch.device) -> Features:
    return lambda images: images


# Loads what makes w or w+ of a framed picture.
ENCODERS: dict[str, Callable[[Path], nn.Module]] = {"e4e": _e4e, "drawn": drawn.encoder, "faces": faces.encoder}
# Prompt -> texts that name its place.
WORDS: dict[str, Callable[[str], tuple[str, ...]]] = {"itself": lambda prompt: (prompt,), "faces": concepts.where_texts,
                                                   "people": people.where_texts}
# And what people may say of their pictures; where nothing is known, the prompts.
SAYINGS: dict[str, concepts.Sayings] = {"itself": concepts.Sayings(), "faces": concepts.FACES, "people": people.SAYINGS}
# Landmarks of a photo -> the square that the world's pictures show.
FRAMES: dict[str, Callable[[np.ndarray], Frame]] = {"ffhq": _ffhq_frame, "drawn": drawn.frame}
# Pictures (B, 3, R, R) and a seed each -> what CLIP is shown of them in training.
VIEWS: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {"plain": _plain, "noisy": _noisy}
# Loads what the perceptual loss compares: (B, 3, R, R) -> (B, C, h, w).
PERCEPTUAL: dict[str, Callable[[torch.device], Features]] = {"vgg16": _vgg16, "pixels": _pixels}
# What is really so of a world's faces.
TRUTHS: dict[str, Callable[[World], Truth]] = {"drawn": drawn.truth, "faces": faces.truth}
