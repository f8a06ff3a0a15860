"""The world of real-looking faces: its parts and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention.files.published import MOBILE_FILE, SHIPPED_FACES, WEIGHTS
from attention.worlds.base import Part, WorldEntry
from attention.worlds.faces.concepts import PROMPTS

if TYPE_CHECKING:
    from attention.worlds.truth import Truth
    from attention.worlds.world import World

FACES = WorldEntry(
    name="faces", generator=WEIGHTS / MOBILE_FILE, prompts=PROMPTS, clip=Part("tiny", SHIPPED_FACES / "clip.safetensors"),
    early=SHIPPED_FACES / "early.safetensors", preview=SHIPPED_FACES / "preview.safetensors",
    words="people", views="noisy", perceptual="pixels",
    truth="faces", editor=SHIPPED_FACES,
    settings=dict(attention_layer=13, cluster_num=64, position_weight=1.0, batch_size=8, temperature=0.03, relative=True,
                  precision="bf16"))


def truth(world: World) -> Truth:
    from attention.worlds.faces.truth import FacesTruth
    return FacesTruth(world)
