"""Fit a StyleGAN2 generator to the drawn faces.

The architecture is StyleGAN2's, the training is not adversarial: a fixed rule (FaceParams.from_z) lets z decide a face,
the renderer draws it, and G(z) is fitted to that picture. First the mapping network alone, so that w carries the
attributes linearly; then everything, from small pictures (the picture so far at 32 px) to whole ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from attention.checkpoints import atomic_torch_save
from attention.drawn.faces import FaceParams, draw_faces
from attention.generator import Generator

CHANNELS = {4: 128, 8: 128, 16: 128, 32: 128, 64: 64, 128: 32}
STYLE_DIM, MAPPING_LAYERS = 64, 4


@dataclass(frozen=True)
class GeneratorFit:
    """How the shipped generator is made; `stages` are (side in px, steps, faces a step)."""

    faces: int = 40_000
    mapping_steps: int = 1500
    mapping_rate: float = 0.2
    stages: tuple[tuple[int, int, int], ...] = ((32, 1500, 32), (64, 4000, 32), (128, 13_000, 16))
    rate: float = 0.02
    average: float = 0.998
    seed: int = 0
    save_every: int = 250


def sample_z(count: int, seed: int) -> Tensor:
    """(count, STYLE_DIM) seeded latents."""
    return torch.randn(count, STYLE_DIM, generator=torch.Generator().manual_seed(seed))


def to_image(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def fit_mapping(generator: Generator, fit: GeneratorFit) -> float:
    """Train the mapping network until a linear read-out of w gives all numbers of a face; returns the error's share.

    Returns:
        Unexplained share of the variance of the targets, on latents not trained on.
    """
    def targets(z: Tensor) -> Tensor:
        params = FaceParams.from_z(z.numpy())
        return torch.from_numpy(np.concatenate([params.as_matrix(), *params.colours().values()], axis=1)).float()

    z = sample_z(65_536, fit.seed + 1)
    wanted = targets(z)
    centre, spread = wanted.mean(dim=0), wanted.std(dim=0)
    wanted = (wanted - centre) / spread
    readout = nn.Linear(STYLE_DIM, wanted.shape[1])
    optimiser = torch.optim.Adam([{"params": generator.style.parameters(), "lr": fit.mapping_rate},
                                  {"params": readout.parameters(), "lr": 0.01}], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, fit.mapping_steps)
    random = torch.Generator().manual_seed(fit.seed)
    for _ in tqdm(range(fit.mapping_steps), desc="mapping"):
        rows = torch.randint(len(z), (1024,), generator=random)
        w = generator.mapping(z[rows])
        # Keeps w near unit scale, where the affine layers of a fresh generator expect it.
        loss = F.mse_loss(readout(w), wanted[rows]) + 0.01 * (w.square().mean() - 1).square()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    fresh = sample_z(4096, fit.seed + 2)
    with torch.no_grad():
        error = readout(generator.mapping(fresh)) - (targets(fresh) - centre) / spread
    return float(error.square().mean())


def fit_generator(folder: Path, fit: GeneratorFit = GeneratorFit()) -> Generator:
    """Make (or go on making) the generator; the resume state lies in `folder`.

    Returns:
        The averaged generator.
    """
    torch.manual_seed(fit.seed)
    generator = Generator(128, STYLE_DIM, MAPPING_LAYERS, CHANNELS)
    state_path = folder / "generator_state.pt"
    state = torch.load(state_path, weights_only=True) if state_path.exists() else None
    if state is None:
        print(f"mapping: {100 * fit_mapping(generator, fit):.1f} % of the attributes' variance unexplained")
    average = torch.optim.swa_utils.AveragedModel(
        generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(fit.average))
    optimiser = torch.optim.Adam([{"params": generator.style.parameters(), "lr_factor": 0.5},
                                  {"params": [p for name, p in generator.named_parameters()
                                              if not name.startswith("style.")], "lr_factor": 1.0}],
                                 lr=fit.rate, betas=(0.9, 0.99))
    start = 0
    if state is not None:
        generator.load_state_dict(state["generator"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    z = sample_z(fit.faces, fit.seed + 3)
    pictures = draw_faces(FaceParams.from_z(z.numpy())).images
    steps = sum(count for _, count, _ in fit.stages)
    loss_of = torch.compile(_loss, dynamic=False)                   # fuses the pointwise passes: half the time of a step
    bar = tqdm(range(start, steps), desc="generator", initial=start, total=steps)
    for step in bar:
        side, batch = _stage(fit, step)
        for group in optimiser.param_groups:
            group["lr"] = group["lr_factor"] * fit.rate * _rate(step / steps)
        rows = np.random.default_rng([fit.seed, step]).integers(fit.faces, size=batch)
        target = _shrink(to_image(pictures[rows]), side)
        optimiser.zero_grad()
        loss, error = loss_of(generator, z[rows], target, side)
        loss.backward()
        optimiser.step()
        average.update_parameters(generator)
        if step % 10 == 0:
            bar.set_postfix(psnr=f"{10 * math.log10(4 / float(error)):.2f}", side=side)
        if (step + 1) % fit.save_every == 0 or step + 1 == steps:
            atomic_torch_save({"generator": generator.state_dict(), "average": average.state_dict(),
                               "optimiser": optimiser.state_dict(), "step": step + 1}, state_path)
    return average.module


def _loss(generator: Generator, z: Tensor, target: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Squared + absolute error of the picture so far at `side` px, and the squared error alone."""
    layer = next(layer.index for layer in generator.layers if layer.kind == "rgb" and layer.resolution == side)
    styles = generator.styles(generator.mapping(z))
    with torch.autocast("cpu", torch.bfloat16):
        made = generator.synthesis(styles, until=layer).features[layer]
    difference = made.float() - target
    squared = difference.square().mean()
    return squared + 0.5 * difference.abs().mean(), squared.detach()


def _stage(fit: GeneratorFit, step: int) -> tuple[int, int]:
    """Side and batch of a step."""
    for side, count, batch in fit.stages:
        if step < count:
            return side, batch
        step -= count
    raise ValueError(f"step {step} lies behind the last stage")


def _rate(t: float) -> float:
    """Learning rate over the run: up over the first 2 %, then half a cosine down."""
    return min(1.0, t / 0.02) * (0.5 + 0.5 * math.cos(math.pi * t))


def _shrink(images: Tensor, side: int) -> Tensor:
    return images if images.shape[-1] == side else F.interpolate(images, size=(side, side), mode="area")


@torch.no_grad()
def psnr_on_unseen(generator: Generator, count: int = 512, seed: int = 99) -> float:
    """Mean PSNR in dB of G(z) against the drawing that z asks for, on latents not trained on (peak 2)."""
    z = sample_z(count, seed)
    drawn = to_image(draw_faces(FaceParams.from_z(z.numpy())).images)
    values: Iterator[Tensor] = (
        10 * torch.log10(4 / (generator.synthesis(generator.styles(generator.mapping(part))).image - truth)
                         .square().mean(dim=(1, 2, 3)))
        for part, truth in zip(z.split(32), drawn.split(32), strict=True))
    return float(torch.cat(list(values)).mean())
