"""The encoder of drawn faces: from a picture of one to the w with which the generator draws it again, as e4e for photos."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from attention.fits import fit
from attention.generator import Generator, sample_z
from attention.images import Damage, augment, psnr, to_image
from attention.worlds.drawn.encoder import DrawnEncoder
from attention.worlds.drawn.faces import FaceParams, draw_faces

DAMAGE = Damage(shift=0, blur=0, coarse=0.5, coarsest=0.625, gain=0, offset=0, noise=0.04)     # as crops of photos are


@dataclass(frozen=True)
class EncoderFit:
    """How the shipped encoder is trained: first toward w, then toward the picture that comes of it."""

    faces: int = 16_000
    batch_size: int = 64
    latent_steps: int = 3_000
    picture_steps: int = 300
    rate: float = 2e-3
    seed: int = 0


def fit_encoder(generator: Generator, recipe: EncoderFit = EncoderFit()) -> DrawnEncoder:
    """Train on drawings, half of the batches softened as crops of photos are."""
    torch.manual_seed(recipe.seed)
    z = sample_z(recipe.faces, generator.style_dim, recipe.seed)
    with torch.no_grad():
        w = generator.mapping(z)
    encoder = DrawnEncoder(w.mean(dim=0), w.std(dim=0)).train()
    params = FaceParams.from_z(z.numpy())
    drawings = np.concatenate([draw_faces(params.take(slice(i, i + 512))).images
                               for i in tqdm(range(0, recipe.faces, 512), desc="drawings")])
    steps = recipe.latent_steps + recipe.picture_steps
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps, pct_start=0.05)
    random = torch.Generator().manual_seed(recipe.seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(recipe.faces, (recipe.batch_size,), generator=random)
        pictures, wanted = to_image(drawings[rows.numpy()]), w[rows]
        found = encoder(augment(pictures, random, DAMAGE)[0])
        error = ((found - wanted) / encoder.spread).square().mean()
        if step < recipe.latent_steps:
            return error, {}
        few = slice(0, recipe.batch_size // 4)
        with torch.autocast("cpu", torch.bfloat16):
            made = generator.picture(generator.styles(found[few]))
        return 0.1 * error + 10 * F.mse_loss(made, pictures[few]), {}

    fit(optimiser, loss, steps, "encoder", schedule)
    return encoder.requires_grad_(False).eval()


@torch.no_grad()
def psnr_of_inversions(encoder: DrawnEncoder, generator: Generator, count: int = 256, seed: int = 98) -> float:
    """Mean PSNR in dB of unseen drawings against what the generator makes of their encodings."""
    drawn = to_image(draw_faces(FaceParams.from_z(sample_z(count, generator.style_dim, seed).numpy())).images)
    made = torch.cat([generator.picture(generator.styles(encoder(part)))
                      for part in drawn.split(32)])
    return float(psnr(made, drawn).mean())
