"""TODO."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from attention.clip_models.tiny import ConvTower
from attention.files.safetensors import consistent, read_safetensors, write_safetensors
from attention.images import area_resize

FORMAT = "where2edit drawn encoder 1"
REBUILD = "python -m attention.worlds.drawn.build --part encoder"


class DrawnEncoder(nn.Module):
    """Pictures to w, through the small CLIP's kind of picture tower.

    Args:
        mean, spread: (style_dim,) of w over faces.
    """

    def __init__(self, mean: Tensor, spread: Tensor, image_size: int = 128, width: int = 16):
        super().__init__()
        self.config = dict(image_size=image_size, width=width)
        self.tower = ConvTower(image_size, width, len(mean)).to(memory_format=torch.channels_last)
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    def forward(self, images: Tensor) -> Tensor:
        """Faces (B, 3, R, R) in [-1, 1], framed as the renderer frames them -> w (B, style_dim)."""
        pixels = area_resize(images, self.config["image_size"]).contiguous(memory_format=torch.channels_last)
        return self.mean + self.spread * self.tower(pixels)

    def save(self, path: Path) -> None:
        """Write weights and sizes as one safetensors file, in half precision."""
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in self.state_dict().items()}
        write_safetensors(path, tensors, {"kind": FORMAT, "config": json.dumps(self.config)})

    @classmethod
    def load(cls, path: Path) -> "DrawnEncoder":
        """Read what `save` wrote: float32, frozen, in evaluation mode.

        Raises:
            UserError: the file is missing, cut short, or of another kind.
        """
        tensors, metadata = read_safetensors(path, FORMAT, REBUILD)
        with consistent(path, REBUILD):
            encoder = cls(tensors["mean"].float(), tensors["spread"].float(), **json.loads(metadata["config"]))
            encoder.load_state_dict(tensors)
        return encoder.requires_grad_(False).eval()
