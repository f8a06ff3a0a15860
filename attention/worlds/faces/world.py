"""The world of real-looking faces: its parts and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attention.files.published import MOBILE_FILE, SHIPPED_FACES, WEIGHTS
from attention.worlds.base import Part, WorldEntry
from attention.worlds.faces.concepts import PROMPTS

if TYPE_CHECKING:
    from torch import nn

    from attention.worlds.truth import Truth
    from attention.worlds.world import World

FACES = WorldEntry(
    name="faces", generator=WEIGHTS / MOBILE_FILE, prompts=PROMPTS, clip=Part("tiny", SHIPPED_FACES / "clip.safetensors"),
    early=SHIPPED_FACES / "early.safetensors", preview=SHIPPED_FACES / "preview.safetensors",
    encoder=Part("faces", SHIPPED_FACES / "encoder.safetensors"), refine=120,
    layout=SHIPPED_FACES / "layout.safetensors",
    recognised=True, words="people", views="noisy", perceptual="pixels",
    dosed=True, follows_edges=True, truth="faces", editor=SHIPPED_FACES,
    # docs/faces.md says why each differs from the paper's.
    settings=dict(cluster_num=192, step=1200, lr=0.002, temperature=0.06, negatives=32, relative=True, mapper="natural",
                  max_change=50.0, lambda_ess=1.0, lambda_sec=0.007, lambda_area=0.5, lambda_id=0.8, lambda_delta=0.1,
                  precision="bf16"))


def encoder(path: Path) -> nn.Module:
    from attention.inversion.small import load_small
    return load_small(path)


def truth(world: World) -> Truth:
    from attention.worlds.faces.truth import FacesTruth
    return FacesTruth(world)
