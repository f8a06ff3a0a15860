"""Early pictures: heads taught by whole synthesis (generator/early.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from attention.fits import fit
from attention.generator import sample_z
from attention.generator.early import EarlyGenerator, EarlyHead
from attention.generator.mobile import MobileStyleGAN
from attention.images import area_resize, psnr

LAYERS = (15, 18)           # the ends of the blocks of 128 and 256 px
EDGE = 4                    # px of a crop that do not count: the head sees less there than it will


@dataclass(frozen=True)
class EarlyFit:
    """How the shipped heads are made."""

    faces: int = 400
    crops: int = 8          # of every face
    side: int = 40          # of a crop
    batch_size: int = 16
    steps: int = 3000
    rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """What one face teaches: w (1, D), crops of activations (N, C, s, s) in half precision, the same of the picture."""

    w: Tensor
    activations: Tensor
    pictures: Tensor


@torch.no_grad()
def lessons(generator: MobileStyleGAN, recipe: EarlyFit) -> dict[int, list[Lesson]]:
    """Layer -> a lesson of every face, each of another truncation between 0.5 and 1."""
    random = torch.Generator().manual_seed(recipe.seed)
    truncations = torch.rand(recipe.faces, generator=random) / 2 + 0.5
    made: dict[int, list[Lesson]] = {layer: [] for layer in LAYERS}
    faces = tqdm(sample_z(recipe.faces, generator.style_dim, recipe.seed), desc="whole faces")
    for z, truncation in zip(faces, truncations, strict=True):
        w = generator.mapping(z[None], float(truncation))
        image, features = generator.synthesis(generator.styles(w))
        assert image is not None                                                                # synthesis stops nowhere
        for layer, taught in made.items():
            picture = area_resize(image, features[layer].shape[-1])
            corners = torch.randint(picture.shape[-1] - recipe.side + 1, (recipe.crops, 2), generator=random).tolist()
            activations, pictures = (torch.cat([whole[:, :, y:y + recipe.side, x:x + recipe.side] for y, x in corners])
                                     for whole in (features[layer], picture))
            taught.append(Lesson(w, activations.half(), pictures))
    return made


def fit_early(generator: MobileStyleGAN, layer: int, taught: Sequence[Lesson], recipe: EarlyFit = EarlyFit()) -> EarlyHead:
    """Fit a head by the squared error of its pictures; returns it frozen."""
    torch.manual_seed(recipe.seed)
    head = EarlyHead(layer, generator.layers[layer].out_channels, generator.style_dim)
    begin_linear(head, taught)
    optimiser = torch.optim.AdamW(head.parameters(), lr=recipe.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps, pct_start=0.1)
    random = torch.Generator().manual_seed(recipe.seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        faces = torch.randint(len(taught), (recipe.batch_size,), generator=random).tolist()
        crops = torch.randint(len(taught[0].pictures), (recipe.batch_size,), generator=random).tolist()
        chosen = [(taught[face], crop) for face, crop in zip(faces, crops, strict=True)]
        activations = torch.stack([lesson.activations[crop] for lesson, crop in chosen]).float()
        activations = activations.contiguous(memory_format=torch.channels_last)
        style = head.modulation(torch.cat([lesson.w for lesson, _ in chosen]))
        inner = (..., slice(EDGE, -EDGE), slice(EDGE, -EDGE))
        made = head(activations, style)[inner]
        wanted = torch.stack([lesson.pictures[crop] for lesson, crop in chosen])[inner]
        return F.mse_loss(made, wanted), {"dB": float(psnr(made.detach(), wanted).mean())}

    fit(optimiser, loss, recipe.steps, f"layer {layer}", schedule)
    return head.requires_grad_(False).eval()


@torch.no_grad()
def begin_linear(head: EarlyHead, taught: Sequence[Lesson], ridge: float = 1e-3) -> None:
    """Let the head begin as the best linear map of normed activations to colours; the rest is then learnt."""
    x = torch.cat([lesson.activations[0].float().flatten(1).T for lesson in taught])                # (P, C)
    y = torch.cat([lesson.pictures[0].flatten(1).T for lesson in taught])                           # (P, 3)
    scale = 1 / x.std(dim=0).clamp(min=1e-6)
    x = torch.cat([x * scale, torch.ones(len(x), 1)], dim=1)
    penalty = ridge * len(x) * torch.eye(x.shape[1])
    solution = torch.linalg.solve((x.T @ x).double() + penalty, (x.T @ y).double()).float()
    head.modulation.bias.copy_(scale)
    head.straight.weight.copy_(solution[:-1].T[:, :, None, None])
    head.colours.weight.zero_()
    assert head.colours.bias is not None
    head.colours.bias.copy_(solution[-1])


@torch.no_grad()
def psnr_of_early(generator: MobileStyleGAN, head: EarlyHead, faces: int = 48, seed: int = 77,
                  truncation: float = 0.7) -> float:
    """Mean dB of the early pictures of unseen faces, against whole synthesis shrunk by areas."""
    early, found = EarlyGenerator(generator, head), []
    for z in sample_z(faces, generator.style_dim, seed).split(1):
        w = generator.mapping(z, truncation)
        whole = area_resize(generator.picture(generator.styles(w)), early.resolution)
        found.append(psnr(early.picture(early.styles(w)), whole))
    return float(torch.cat(found).mean())
