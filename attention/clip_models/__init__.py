"""CLIP models. A new one: a file here with a class that keeps base.TextImageModel, and an entry in CLIP_MODELS."""

from attention.clip_models.released import load_clip
from attention.clip_models.tiny import TinyCLIP

# name -> loader of a file (or of a named model); every loader returns a frozen TextImageModel.
CLIP_MODELS = {"released": load_clip, "tiny": TinyCLIP.load}
