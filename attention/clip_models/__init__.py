"""CLIP models. A new one: a file here with a class that keeps base.TextImageModel, and an entry in CLIP_MODELS."""

from attention.clip_models.released import load_clip
from attention.clip_models.tiny import TinyCLIP

# name -> loader(source, trust=False) of a file (or of a named model); every loader returns a frozen TextImageModel.
# Only the released models come as archives that need trust.
CLIP_MODELS = {"released": load_clip, "tiny": lambda source, trust=False: TinyCLIP.load(source)}
