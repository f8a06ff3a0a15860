"""The methods that people would use instead, on the same generator and the same CLIP, behind one protocol.

Every one is written from its paper's description. Drawn faces have no face recognition network, so StyleCLIP's identity
loss is left out; what holds a face together is the distance to its latent. Wherever a method shows pictures to CLIP in
training, it shows the augmented views that ours shows (`base.clip_distance`, `training.step.embed`).
"""

from collections.abc import Callable
from pathlib import Path

from attention.baselines.base import Method
from attention.baselines.directions import GlobalDirections
from attention.baselines.latents import LatentMappers, LatentOptimisation
from attention.baselines.regional import Nothing, PixelAttention, RegionMethod, TruePart, WithoutAttention
from attention.files.published import PRETRAINED
from attention.worlds.world import World

FOLDER = PRETRAINED / "baselines"       # a folder for each world, of the trained methods' files (fit.py)

# Name -> what loads the method from a world and a folder of checkpoints.
METHODS: dict[str, Callable[[World, Path], Method]] = {
    kind.key: kind.load for kind in (Nothing, LatentOptimisation, LatentMappers, GlobalDirections, PixelAttention,
                                     WithoutAttention, TruePart, RegionMethod)
}

__all__ = ["FOLDER", "METHODS", "GlobalDirections", "LatentMappers", "LatentOptimisation", "Method", "Nothing",
           "PixelAttention", "RegionMethod", "TruePart", "WithoutAttention"]
