"""TODO."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from attention.generator import Generator, sample_z
from attention.images import area_resize, to_image
from attention.worlds.drawn.concepts import CONCEPTS, OPTIONS, truth_table
from attention.worlds.drawn.faces import SIZE, FaceParams, draw_faces
from attention.worlds.drawn.reader import READ_WIDTHS, AttributeReader
from attention.worlds.truth import balanced_accuracy

# A full step of position_x and position_y in pixels: the renderer's 0.10 and 0.08 of a half picture.
POSITION_STEP = {"position_x": 0.10 * SIZE / 2, "position_y": 0.08 * SIZE / 2}
NOISES = 128        # ready-made noise pictures that training picks from


@dataclass(frozen=True)
class ReaderFit:
    """How the shipped reader is made."""

    faces: int = 15_000
    steps: int = 2300
    batch: int = 48
    rate: float = 3e-3
    seed: int = 700


@torch.no_grad()
def measure(reader: AttributeReader, generator: Generator, count: int = 512, seed: int = 123) -> None:
    """`balanced_accuracy` on held-out drawings ("drawings") and on unedited generated faces ("generated"); kept in it."""
    params, z = FaceParams.sample(count, seed), sample_z(count, generator.style_dim, seed)
    made = torch.cat([generator.picture(generator.styles(generator.mapping(part))) for part in z.split(32)])
    pictures = {"drawings": (to_image(draw_faces(params).images), params),
                "generated": (made, FaceParams.from_z(z.numpy()))}
    reader.accuracies = {
        kind: balanced_accuracy(CONCEPTS, truth_table(faces).T,
                                np.stack([concept.seen_in(reader.read(images)) for concept in CONCEPTS]))
        for kind, (images, faces) in pictures.items()}


def fit_reader(fit: ReaderFit = ReaderFit()) -> AttributeReader:
    """Train a reader on augmented drawings; it sees no generated face."""
    torch.manual_seed(fit.seed)
    reader = AttributeReader().train()
    params = FaceParams.sample(fit.faces, fit.seed)
    parts = [params.take(slice(i, i + 512)) for i in range(0, fit.faces, 512)]
    pixels = np.concatenate([draw_faces(part).images for part in tqdm(parts, desc="drawings")])
    targets = {name: torch.from_numpy(getattr(params, name)).reshape(fit.faces, -1) for name in READ_WIDTHS}
    optimiser = torch.optim.AdamW(reader.parameters(), lr=fit.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, fit.rate, total_steps=fit.steps, pct_start=0.05)
    random = torch.Generator().manual_seed(fit.seed)
    bar = tqdm(range(fit.steps), desc="reader")
    for step in bar:
        rows = torch.randint(fit.faces, (fit.batch,), generator=random)
        images, shift = augment(to_image(pixels[rows.numpy()]), random)
        wanted = {name: target[rows] for name, target in targets.items()}
        for axis, name in enumerate(("position_x", "position_y")):
            wanted[name] = (wanted[name] + shift[:, axis:axis + 1] / POSITION_STEP[name]).clamp(0, 1)
        loss = _loss(reader(images), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
    return reader.requires_grad_(False).eval()


def _loss(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the fields, less the part that no answer can avoid: 0 is perfect."""
    total = torch.zeros(())
    for name, target in wanted.items():
        if name in OPTIONS:
            excess = F.cross_entropy(logits[name], target) + torch.special.xlogy(target, target).sum(dim=1).mean()
        else:
            unavoidable = torch.special.xlogy(target, target) + torch.special.xlogy(1 - target, 1 - target)
            excess = F.binary_cross_entropy_with_logits(logits[name], target) + unavoidable.mean()
        total = total + excess
    return total / len(wanted)


def augment(images: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make drawings less clean: blur (sigma to 1.5 px), loss of resolution, shift (to 3 px), colour jitter, noise.

    Generated and edited faces are softer than drawings; a quarter of the pictures stay sharp.
    Returns:
        The pictures, and (B, 2) the shift of each in pixels, x and y.
    """
    count, size = len(images), images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    shift = uniform(-3, 3, 2).round()
    sigma = (uniform(-0.5, 1.5)).clamp(min=0.05).view(-1, 1, 1)
    rows, columns = (_blur_matrix(size, sigma, shift[:, axis].view(-1, 1, 1)) for axis in (1, 0))
    images = rows @ images.permute(0, 2, 3, 1).reshape(count, size, -1)                 # (B, H, 3W)
    images = images.view(count, size, size, 3).permute(0, 3, 1, 2).reshape(count, -1, size) @ columns.mT
    images = images.view(count, 3, size, size)
    coarse = torch.rand(count, generator=random) < 0.25
    if coarse.any():
        side = int(torch.randint(size * 2 // 5, size, (), generator=random))
        images[coarse] = F.interpolate(area_resize(images[coarse], side), size=(size, size), mode="bilinear")
    images = images * uniform(0.92, 1.08, 3, 1, 1) + uniform(-0.06, 0.06, 3, 1, 1)
    noise = _noise_bank(size)[torch.randint(NOISES, (count,), generator=random)]
    return images.addcmul(noise, uniform(-0.06, 0.06, 1, 1, 1)).clamp_(-1, 1), shift


@lru_cache(maxsize=2)
def _noise_bank(size: int) -> Tensor:
    """(NOISES, 3, size, size) normal noise: drawing it anew would take as long as half the training step."""
    return torch.randn(NOISES, 3, size, size, generator=torch.Generator().manual_seed(0))


def _blur_matrix(size: int, sigma: Tensor, shift: Tensor) -> Tensor:
    """(B, size, size) matrices that blur one axis and move it by `shift` px; past the edge the last pixel goes on."""
    place = torch.arange(size, dtype=torch.float32)
    distance = place.view(1, 1, -1) - (place.view(1, -1, 1) - shift).clamp(0, size - 1)
    # Bounded and cut off: denormal numbers would make this and the products three times as slow.
    weights = F.threshold(torch.exp((-0.5 * (distance / sigma) ** 2).clamp(min=-20)), 1e-6, 0)
    return weights / weights.sum(dim=2, keepdim=True)
