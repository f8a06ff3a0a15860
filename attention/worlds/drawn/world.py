"""The world of drawn faces: its parts and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attention.errors import UserError
from attention.files.published import SHIPPED
from attention.worlds.base import Part, WorldEntry
from attention.worlds.concepts import EDIT_PROMPTS

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from attention.inversion.frame import Frame
    from attention.worlds.truth import Truth
    from attention.worlds.world import World

DRAWN = WorldEntry(
    name="drawn", generator=SHIPPED / "generator.safetensors", prompts=EDIT_PROMPTS,
    clip=Part("tiny", SHIPPED / "clip.safetensors"), encoder=Part("drawn", SHIPPED / "encoder.safetensors"),
    truncation=1.0,                 # the fitted generator covers all of z
    words="faces", frame="drawn", views="noisy",
    perceptual="pixels",            # VGG's photographs say nothing about drawings
    # The worst of 500 drawn photos (worlds/drawn/photos.py, seeds 0 to 499) comes back from the encoder with 13.2 dB, the
    # median with 21.6; of 57 pictures of other things the median comes to 8.4 and the best to 13.4, noise to at most 8.9:
    # at its first look. Further ones bring drawings nearer than they do other things.
    least_psnr=12.5,
    truth="drawn", editor=SHIPPED,
    examples=((21, "purple hair", ""), (3, "beard", ""), (7, "smiling", "mouth"), (11, "red lipstick", "lips"),
              (21, "glasses", ""), (5, "blue eyes", "eyes")),
    # A small CLIP gives weaker, noisier gradients than ViT-B/32, and faces of 128 px have parts of a few pixels;
    # docs/method.md says why each setting differs from the paper's.
    settings=dict(cluster_num=64, position_weight=0.5, step=1000, batch_size=16, temperature=0.03, relative=True,
                  lambda_ess=1.0, lambda_sec=0.02, lambda_area=0.4, lambda_id=0.8, lambda_delta=0.03, max_change=30.0,
                  precision="bf16"))


def encoder(path: Path) -> nn.Module:
    from attention.worlds.drawn.encoder import load_tower
    return load_tower(path)


def frame(landmarks: np.ndarray) -> Frame:
    """The square in which eyes and corners of the mouth lie as on the mean drawn face."""
    import numpy as np

    from attention.inversion.frame import frame_like, framing_points
    from attention.worlds.drawn.faces import FaceParams
    from attention.worlds.drawn.faces import landmarks as places
    found, typical = framing_points(landmarks), places(FaceParams.mean())
    names = {"left eye": "left_eye", "right eye": "right_eye", "left mouth": "left_mouth", "right mouth": "right_mouth"}
    return frame_like(np.array([found[name] for name in names]), np.array([typical[own][0] for own in names.values()]))


def truth(world: World) -> Truth:
    from attention.worlds.drawn.faces import FaceParams
    from attention.worlds.drawn.truth import DrawnTruth
    if world.generator.style_dim < (least := sum(FaceParams.widths().values())):
        raise UserError(f"the world {world.name} has the truth of drawn faces, which {least} numbers decide, and a z of "
                        f"{world.generator.style_dim}; leave truth out of it")
    return DrawnTruth(world.device)
