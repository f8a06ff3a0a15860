"""The encoder of drawn faces: from a picture of one to the w with which the generator draws it again, as e4e for photos."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from attention.generator import Generator, sample_z
from attention.images import area_resize, to_image
from attention.worlds.drawn.encoder import DrawnEncoder
from attention.worlds.drawn.faces import FaceParams, draw_faces


@dataclass(frozen=True)
class EncoderFit:
    """How the shipped encoder is trained: first toward w, then toward the picture that comes of it."""

    faces: int = 16_000
    batch_size: int = 64
    latent_steps: int = 3_000
    picture_steps: int = 300
    rate: float = 2e-3
    seed: int = 0


def fit_encoder(generator: Generator, fit: EncoderFit = EncoderFit()) -> DrawnEncoder:
    """Train on drawings, half of the batches softened as crops of photos are."""
    torch.manual_seed(fit.seed)
    z = sample_z(fit.faces, generator.style_dim, fit.seed)
    with torch.no_grad():
        w = generator.mapping(z)
    encoder = DrawnEncoder(w.mean(dim=0), w.std(dim=0)).train()
    params = FaceParams.from_z(z.numpy())
    drawings = np.concatenate([draw_faces(params.take(slice(i, i + 512))).images
                               for i in tqdm(range(0, fit.faces, 512), desc="drawings")])
    steps = fit.latent_steps + fit.picture_steps
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=fit.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, fit.rate, total_steps=steps, pct_start=0.05)
    random, bar = torch.Generator().manual_seed(fit.seed), tqdm(range(steps), desc="encoder")
    for step in bar:
        rows = torch.randint(fit.faces, (fit.batch_size,), generator=random)
        pictures, wanted = to_image(drawings[rows.numpy()]), w[rows]
        found = encoder(soften(pictures, random))
        loss = ((found - wanted) / encoder.spread).square().mean()
        if step >= fit.latent_steps:
            few = slice(0, fit.batch_size // 4)
            with torch.autocast("cpu", torch.bfloat16):
                made = generator.synthesis(generator.styles(found[few]), feature_side=0).image
            loss = 0.1 * loss + 10 * F.mse_loss(made.float(), pictures[few])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
    return encoder.requires_grad_(False).eval()


def soften(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Half of all batches lose some resolution, and every picture gets a little noise."""
    side = pictures.shape[-1]
    if torch.rand((), generator=random) < 0.5:
        smaller = int(torch.randint(side * 5 // 8, side, (), generator=random))
        pictures = F.interpolate(area_resize(pictures, smaller), size=(side, side), mode="bilinear")
    return pictures + 0.02 * torch.randn(pictures.shape, generator=random)


@torch.no_grad()
def psnr_of_inversions(encoder: DrawnEncoder, generator: Generator, count: int = 256, seed: int = 98) -> float:
    """Mean PSNR in dB of unseen drawings against what the generator makes of their encodings (peak 2)."""
    drawn = to_image(draw_faces(FaceParams.from_z(sample_z(count, generator.style_dim, seed).numpy())).images)
    made = torch.cat([generator.synthesis(generator.styles(encoder(part)), feature_side=0).image
                      for part in drawn.split(32)])
    return float((10 * torch.log10(4 / (made - drawn).square().mean(dim=(1, 2, 3)))).mean())
