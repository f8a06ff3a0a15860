"""The picture generator."""

from attention.generator.stylegan2 import (
    Blend,
    Generator,
    LayerSpec,
    Synthesis,
    conv_layers,
    edited_layers,
    mix,
    nearest,
    published_channels,
    rgb_fed_by,
    synthesis_layers,
)

__all__ = ["Blend", "Generator", "LayerSpec", "Synthesis", "conv_layers", "edited_layers", "mix", "nearest",
           "published_channels", "rgb_fed_by", "synthesis_layers"]
