"""Small encoders of ours: from a picture of a world to the w with which its generator draws it again, as e4e for photos."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.clip_models.tiny import ConvTower
from attention.devices import autocast
from attention.files.networks import FileKind
from attention.fits import fit
from attention.generator.base import Generator
from attention.images import Damage, area_resize, augment, psnr, to_image


def kind_of(world: str) -> FileKind:
    """The files of a shipped world's encoder."""
    return FileKind(f"where2edit {world} encoder 1", f"python -m attention.worlds.{world}.build --part encoder")


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

    def save(self, path: Path, kind: FileKind, dtype: torch.dtype = torch.float16) -> None:
        """Write weights and sizes as one small safetensors file; dtype as `FileKind.save` has it."""
        kind.save(path, self, {"config": self.config}, dtype)


def load_tower(path: Path, kind: FileKind) -> TowerEncoder:
    """Read what `save` wrote: float32, frozen, in evaluation mode.

    Raises:
        UserError: the file is missing, cut short, or of another kind.
    """
    def build(said: dict, tensors: dict) -> tuple[TowerEncoder, nn.Module]:
        encoder = TowerEncoder(tensors["mean"].float(), tensors["spread"].float(), **said["config"])
        return encoder, encoder

    return kind.load(path, build)


@dataclass(frozen=True)
class EncoderFit:
    """How a shipped encoder is trained: first toward w, then toward the picture that comes of it."""

    batch_size: int = 64
    latent_steps: int = 3_000
    picture_steps: int = 300
    rate: float = 2e-3
    width: int = 16
    seed: int = 0


def fit_tower(generator: Generator, pictures: np.ndarray, w: Tensor, damage: Damage, recipe: EncoderFit) -> TowerEncoder:
    """Train an encoder on pictures (N, S, S, 3) uint8 of w (N, style_dim), made less clean as crops of photos are; returns
    it frozen.

    Args:
        generator: whose pictures they are, at most of their side.
    """
    torch.manual_seed(recipe.seed)
    encoder = TowerEncoder(w.mean(dim=0), w.std(dim=0), width=recipe.width).train()
    steps, side = recipe.latent_steps + recipe.picture_steps, generator.resolution
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps, pct_start=0.05)
    random = torch.Generator().manual_seed(recipe.seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(w), (recipe.batch_size,), generator=random)
        shown, wanted = to_image(pictures[rows.numpy()]), w[rows]
        found = encoder(augment(shown, random, damage)[0])
        error = ((found - wanted) / encoder.spread).square().mean()
        if step < recipe.latent_steps:
            return error, {}
        few = slice(0, recipe.batch_size // 4)
        with autocast("bf16", found.device):
            made = generator.picture(generator.styles(found[few]))
        return 0.1 * error + 10 * F.mse_loss(made, area_resize(shown[few], side)), {}

    fit(optimiser, loss, steps, "encoder", schedule)
    return encoder.requires_grad_(False).eval()


@torch.no_grad()
def psnr_of_inversions(encoder: TowerEncoder, generator: Generator, pictures: Tensor) -> float:
    """Mean PSNR in dB of unseen pictures (N, 3, S, S) against what the generator makes of their encodings."""
    made = torch.cat([generator.picture(generator.styles(encoder(part))) for part in pictures.split(32)])
    return float(psnr(made, area_resize(pictures, generator.resolution)).mean())
