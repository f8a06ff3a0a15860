"""The layout of real-looking faces (inversion/layout.py), taught by generated ones whose parts are known."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attention.devices import autocast
from attention.fits import fit
from attention.images import augment, to_image
from attention.inversion.layout import CLASSES, Layout
from attention.inversion.small import SmallEncoder
from attention.worlds.faces.fit.encoder import DAMAGE
from attention.worlds.faces.parts import PARTS

# Photos have other backgrounds than the generator's, are framed by landmarks that are off by a little, and of other light.
BEHIND, PLAIN = 0.5, 0.3                    # shares of faces before another background, and of these before a plain one
PIECE = (0.2, 0.9)                          # of another face that is such a background: sides of what is seen of it
TURN, SIZE, SHIFT = 0.12, 0.1, 0.08         # radians, share, half sides; either way
GAMMA, TINT = 0.5, 0.2                      # logarithm of a power of the light; gains of channels
GREY, VIVID = 0.15, 1.4                     # share of faces; most colour, of what there is


@dataclass(frozen=True)
class LayoutFit:
    """How the shipped layout is taught."""

    steps: int = 3500
    rate: float = 4e-3
    faces: int = 16                 # of a step
    seed: int = 0


RECIPE = LayoutFit()


def classes_of(labels: np.ndarray) -> Tensor:
    """Numbers of PARTS (N, S, S) -> shares (N, len(CLASSES), S, S) of CLASSES, 0 or 1; what lies in a face is skin."""
    numbers = [CLASSES.index(part if part in CLASSES else "skin") for part in PARTS]
    return F.one_hot(torch.tensor(numbers)[torch.from_numpy(labels).long()], len(CLASSES)).permute(0, 3, 1, 2).float()


def fit_layout(encoder: SmallEncoder, pixels: np.ndarray, labels: np.ndarray, recipe: LayoutFit = RECIPE) -> Layout:
    """Teach a layout.

    Args:
        encoder: frozen.
        pixels, labels: (N, S, S, 3) uint8 of faces and (N, S, S) of PARTS.
    """
    torch.manual_seed(recipe.seed)
    random, layout = torch.Generator().manual_seed(recipe.seed), Layout(encoder)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rows, others = (torch.randint(len(pixels), (recipe.faces,), generator=random).numpy() for _ in range(2))
        shown, wanted = scene(to_image(pixels[rows]), classes_of(labels[rows]), to_image(pixels[others]), random)
        with autocast("bf16", shown.device):
            logits = layout(augment(shown, random, DAMAGE)[0])
        return F.cross_entropy(logits.float(), wanted), {}

    optimiser = torch.optim.AdamW(layout.parameters(), lr=recipe.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps)
    fit(optimiser, loss, recipe.steps, "layout", schedule)
    return layout.requires_grad_(False).eval()


def scene(faces: Tensor, classes: Tensor, others: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Faces (B, 3, S, S) in [-1, 1] as photos show them, and what is where (B, len(CLASSES), S, S): some before another
    background, turned, nearer or further, aside or mirrored; lighter, darker, tinted, grey."""
    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(len(faces), *shape).uniform_(low, high, generator=random)

    def moved(pictures: Tensor, angle: Tensor, size: Tensor, aside: Tensor) -> Tensor:
        """Angles, sizes (B,), and x, y (B, 2) in half sides of where the middle looks."""
        across, down = size * angle.cos(), size * angle.sin()
        mirrored = torch.where(draw(-1, 1) < 0, -1.0, 1.0)
        transform = torch.stack([torch.stack([across * mirrored, -down], 1), torch.stack([down * mirrored, across], 1)], 1)
        grid = F.affine_grid(torch.cat([transform, aside[..., None]], dim=2), list(pictures.shape), align_corners=False)
        return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)

    piece = draw(*PIECE)
    behind = moved(others, torch.zeros_like(piece), piece, draw(-1, 1, 2) * (1 - piece)[:, None])
    behind = torch.where(draw(0, 1, 1, 1, 1) < PLAIN, draw(-1, 1, 3, 1, 1) + 0.1 * behind, behind)
    person = 1 - F.max_pool2d(classes[:, :1], 3, 1, 1)
    person = F.avg_pool2d(person, 3, 1, 1, count_include_pad=False) * (1 - classes[:, :1])         # (B, 1, S, S)
    faces = torch.where(draw(0, 1, 1, 1, 1) < BEHIND, torch.lerp(behind, faces, person), faces)
    together = moved(torch.cat([faces, classes], dim=1), draw(-TURN, TURN), 1 + draw(-SIZE, SIZE), draw(-SHIFT, SHIFT, 2))
    faces, classes = together[:, :3], together[:, 3:]
    light = ((faces.clamp(-1, 1) + 1) / 2) ** draw(-GAMMA, GAMMA, 1, 1, 1).exp() * (1 + draw(-TINT, TINT, 3, 1, 1))
    grey = light.mean(dim=1, keepdim=True)
    colour = torch.where(draw(0, 1, 1, 1, 1) < GREY, torch.zeros(()), draw(0, VIVID, 1, 1, 1))
    return (2 * (grey + colour * (light - grey)) - 1).clamp(-1, 1), classes


@torch.no_grad()
def overlaps(layout: Layout, pixels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Intersection over union of every class over faces, as `fit_layout` is given them."""
    found = torch.cat([layout(to_image(part)).argmax(dim=1) for part in np.array_split(pixels, -(-len(pixels) // 32))])
    known = classes_of(labels).argmax(dim=1)
    both = [(found == number, known == number) for number in range(len(CLASSES))]
    return {name: float((one & other).sum() / (one | other).sum().clamp(min=1))
            for name, (one, other) in zip(CLASSES, both, strict=True)}
