"""The encoder of drawn faces: from a picture to the w with which the generator draws it again, as e4e for photographs."""

from pathlib import Path

import torch
from torch import Tensor, nn

from attention.clip_models.tiny import ConvTower
from attention.files.networks import FileKind
from attention.images import area_resize

KIND = FileKind("where2edit drawn encoder 1", "python -m attention.worlds.drawn.build --part encoder")


class TowerEncoder(nn.Module):
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
        """Faces (B, 3, R, R) in [-1, 1], framed as the world's pictures are -> w (B, style_dim)."""
        pixels = area_resize(images, self.config["image_size"]).contiguous(memory_format=torch.channels_last)
        return self.mean + self.spread * self.tower(pixels)

    def save(self, path: Path) -> None:
        """Write weights and sizes as one small safetensors file, in half precision."""
        KIND.save(path, self, {"config": self.config}, torch.float16)


def load_tower(path: Path) -> TowerEncoder:
    """Read what `save` wrote: float32, frozen, in evaluation mode.

    Raises:
        UserError: the file is missing, cut short, or of another kind.
    """
    def build(said: dict, tensors: dict) -> tuple[TowerEncoder, nn.Module]:
        encoder = TowerEncoder(tensors["mean"].float(), tensors["spread"].float(), **said["config"])
        return encoder, encoder

    return KIND.load(path, build)
