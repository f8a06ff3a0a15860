"""Picture generators: what the method asks of one (base.py), and those that there are."""

from attention.generator.base import (
    Blend,
    Generator,
    LayerSpec,
    Synthesis,
    blended_layers,
    conv_layers,
    edited_layers,
    nearest,
    sample_z,
)
from attention.generator.stylegan2 import StyleGAN2, mix, published_channels, synthesis_layers

__all__ = ["Blend", "Generator", "LayerSpec", "StyleGAN2", "Synthesis", "blended_layers", "conv_layers", "edited_layers",
           "mix", "nearest", "published_channels", "sample_z", "synthesis_layers"]
