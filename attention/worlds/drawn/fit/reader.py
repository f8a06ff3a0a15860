"""The training of the attribute reader of drawn faces."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from attention.fits import fit
from attention.generator import Generator, sample_z
from attention.images import Damage, augment, to_image
from attention.worlds.drawn.concepts import CONCEPTS, OPTIONS, truth_table
from attention.worlds.drawn.faces import SIZE, FaceParams, draw_faces
from attention.worlds.drawn.reader import READ_WIDTHS, AttributeReader
from attention.worlds.truth import balanced_accuracy

# A full step of position_x and position_y in pixels: the renderer's 0.10 and 0.08 of a half picture.
POSITION_STEP = {"position_x": 0.10 * SIZE / 2, "position_y": 0.08 * SIZE / 2}
# Generated and edited faces are softer than drawings; a quarter of the pictures stay sharp. Shifts go to 3 px.
DAMAGE = Damage(shift=3 * 2 / SIZE, whole_pixels=True, blur=3, sharp=0.25, coarse=0.25, gain=0.08, offset=0.06, noise=0.06)


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


def fit_reader(recipe: ReaderFit = ReaderFit()) -> AttributeReader:
    """Train a reader on augmented drawings; it sees no generated face."""
    torch.manual_seed(recipe.seed)
    reader = AttributeReader().train()
    params = FaceParams.sample(recipe.faces, recipe.seed)
    parts = [params.take(slice(i, i + 512)) for i in range(0, recipe.faces, 512)]
    pixels = np.concatenate([draw_faces(part).images for part in tqdm(parts, desc="drawings")])
    targets = {name: torch.from_numpy(getattr(params, name)).reshape(recipe.faces, -1) for name in READ_WIDTHS}
    optimiser = torch.optim.AdamW(reader.parameters(), lr=recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps, pct_start=0.05)
    random = torch.Generator().manual_seed(recipe.seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(recipe.faces, (recipe.batch,), generator=random)
        images, shift = augment(to_image(pixels[rows.numpy()]), random, DAMAGE)
        wanted = {name: target[rows] for name, target in targets.items()}
        for axis, name in enumerate(("position_x", "position_y")):
            wanted[name] = (wanted[name] + shift[:, axis:axis + 1] / POSITION_STEP[name]).clamp(0, 1)
        return _loss(reader(images.clamp(-1, 1)), wanted), {}

    fit(optimiser, loss, recipe.steps, "reader", schedule)
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
