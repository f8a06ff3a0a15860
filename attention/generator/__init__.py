"""Picture generators: what the method asks of one (base.py), and those that there are."""

from attention.generator.base import (
    Blend,
    Generator,
    LayerSpec,
    Synthesis,
    blended_layers,
    conv_layers,
    edited_layers,
    even_bands,
    nearest,
    sample_z,
    window_means,
)
from attention.generator.mobile import MobileStyleGAN, mobile_layers
from attention.generator.stylegan2 import StyleGAN2, mix, published_channels, synthesis_layers

__all__ = ["Blend", "Generator", "LayerSpec", "MobileStyleGAN", "StyleGAN2", "Synthesis", "blended_layers", "conv_layers",
           "edited_layers", "even_bands", "mix", "mobile_layers", "nearest", "published_channels", "sample_z",
           "synthesis_layers", "window_means"]
