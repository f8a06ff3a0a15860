"""The encoder of drawn faces, taught by drawings."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from attention.devices import autocast
from attention.fits import fit
from attention.generator import Generator, sample_z
from attention.images import Damage, area_resize, augment, to_image
from attention.inversion.invert import psnr_of_inversions
from attention.worlds.drawn.encoder import TowerEncoder
from attention.worlds.drawn.faces import FaceParams, draw_faces

DAMAGE = Damage(shift=0, blur=0, coarse=0.5, coarsest=0.625, gain=0, offset=0, noise=0.04)     # as crops of photos are
FACES = 16_000


@dataclass(frozen=True)
class EncoderFit:
    """How a shipped encoder is trained: first toward w, then toward the picture that comes of it."""

    batch_size: int = 64
    latent_steps: int = 3_000
    picture_steps: int = 300
    rate: float = 2e-3
    width: int = 16
    seed: int = 0


RECIPE = EncoderFit()


def fit_encoder(generator: Generator, recipe: EncoderFit = RECIPE, faces: int = FACES) -> TowerEncoder:
    """Train on drawings, half of the batches softened as crops of photos are."""
    z = sample_z(faces, generator.style_dim, recipe.seed)
    params = FaceParams.from_z(z.numpy())
    drawings = np.concatenate([draw_faces(params.take(slice(i, i + 512))).images
                               for i in tqdm(range(0, faces, 512), desc="drawings")])
    return fit_tower(generator, drawings, generator.mapping(z).detach(), DAMAGE, recipe)


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


def psnr_of_drawings(encoder: TowerEncoder, generator: Generator, count: int = 256, seed: int = 98) -> float:
    """Mean PSNR in dB of unseen drawings against what the generator makes of their encodings."""
    drawn = to_image(draw_faces(FaceParams.from_z(sample_z(count, generator.style_dim, seed).numpy())).images)
    return psnr_of_inversions(encoder, generator, drawn)
