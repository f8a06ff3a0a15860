"""Fit a StyleGAN2 generator to the drawn faces.

The architecture is StyleGAN2's, the training is not adversarial: a fixed rule (FaceParams.from_z) lets z decide a face,
the renderer draws it, and G(z) is fitted to that picture. First the mapping network alone, so that w carries the
attributes linearly; then everything, from small pictures (the picture so far at 32 px) to whole ones; last, the blend
layer's features are also asked for the part that each pixel belongs to.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.devices import autocast
from attention.files.torch_files import atomic_torch_save
from attention.fits import fit
from attention.generator import Generator, StyleGAN2, sample_z
from attention.images import decibels, psnr, to_image
from attention.worlds.drawn.faces import PARTS, Drawing, FaceParams, draw_faces

CHANNELS = {4: 128, 8: 128, 16: 128, 32: 128, 64: 64, 128: 32}
STYLE_DIM, MAPPING_LAYERS = 64, 4
BLEND_LAYER, BLEND_SIDE = 12, 64    # where the drawn domain edits: the features there should tell parts apart
BLEND_SHARE = 0.3                   # weight of the picture so far at BLEND_SIDE
AREAS = (*PARTS, "cheeks", "jaw")   # what a pixel may belong to; the last two are skin that prompts speak of


@dataclass(frozen=True)
class Run:
    """One training run. `stages` are (side in px, steps, faces a step); `parts` weighs the blend layer's part error."""

    name: str
    stages: tuple[tuple[int, int, int], ...]
    rate: float
    parts: float = 0.0

    @property
    def steps(self) -> int:
        return sum(count for _, count, _ in self.stages)


@dataclass(frozen=True)
class GeneratorFit:
    """How the shipped generator is made: the mapping network, then the runs, each from the last one's average."""

    faces: int = 40_000
    mapping_steps: int = 1500
    mapping_rate: float = 0.2
    runs: tuple[Run, ...] = (Run("pictures", ((32, 1500, 32), (64, 4000, 32), (128, 13_000, 16)), rate=0.02),
                             Run("parts", ((128, 4000, 16),), rate=0.006, parts=0.02))
    average: float = 0.998
    seed: int = 0
    save_every: int = 250


def fit_mapping(generator: StyleGAN2, recipe: GeneratorFit) -> float:
    """Train the mapping network until a linear read-out of w gives all numbers of a face; returns the error's share.

    Returns:
        Unexplained share of the variance of the targets, on latents not trained on.
    """
    def targets(z: Tensor) -> Tensor:
        params = FaceParams.from_z(z.numpy())
        return torch.from_numpy(np.concatenate([params.as_matrix(), *params.colours().values()], axis=1)).float()

    z = sample_z(65_536, STYLE_DIM, recipe.seed + 1)
    wanted = targets(z)
    centre, spread = wanted.mean(dim=0), wanted.std(dim=0)
    wanted = (wanted - centre) / spread
    readout = nn.Linear(STYLE_DIM, wanted.shape[1])
    optimiser = torch.optim.Adam([{"params": generator.style.parameters(), "lr": recipe.mapping_rate},
                                  {"params": readout.parameters(), "lr": 0.01}], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.mapping_steps)
    random = torch.Generator().manual_seed(recipe.seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(z), (1024,), generator=random)
        w = generator.mapping(z[rows])
        # Keeps w near unit scale, where the affine layers of a fresh generator expect it.
        return F.mse_loss(readout(w), wanted[rows]) + 0.01 * (w.square().mean() - 1).square(), {}

    fit(optimiser, loss, recipe.mapping_steps, "mapping", schedule)
    fresh = sample_z(4096, STYLE_DIM, recipe.seed + 2)
    with torch.no_grad():
        error = readout(generator.mapping(fresh)) - (targets(fresh) - centre) / spread
    return float(error.square().mean())


def fit_generator(folder: Path, recipe: GeneratorFit = GeneratorFit()) -> StyleGAN2:
    """Make (or go on making) the generator; the resume states lie in `folder`.

    Returns:
        The averaged generator.
    """
    torch.manual_seed(recipe.seed)
    generator = StyleGAN2(128, STYLE_DIM, MAPPING_LAYERS, CHANNELS)
    if not (folder / f"{recipe.runs[0].name}.pt").exists():
        print(f"mapping: {100 * fit_mapping(generator, recipe):.1f} % of the attributes' variance unexplained")
    z = sample_z(recipe.faces, STYLE_DIM, recipe.seed + 3)
    drawing = draw_faces(FaceParams.from_z(z.numpy()))
    for number, run in enumerate(recipe.runs):
        generator = _train(generator, recipe, run, number, z, drawing, folder / f"{run.name}.pt")
    return generator


def _train(generator: StyleGAN2, recipe: GeneratorFit, run: Run, number: int, z: Tensor, drawing: Drawing,
           state_path: Path) -> StyleGAN2:
    """One run, resumed from `state_path` where it exists; returns the averaged generator."""
    prototypes = nn.Parameter(part_means(generator, z[:64], part_shares(drawing, np.arange(64))))
    average = torch.optim.swa_utils.AveragedModel(
        generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.average))
    groups = {run.rate / 2: [*generator.style.parameters(), prototypes],
              run.rate: [p for name, p in generator.named_parameters() if not name.startswith("style.")]}
    optimiser = torch.optim.Adam([{"params": values, "lr": rate, "initial_lr": rate} for rate, values in groups.items()],
                                 betas=(0.9, 0.99))
    start = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        generator.load_state_dict(state["generator"])
        average.load_state_dict(state["average"])
        prototypes.data = state["prototypes"]
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    loss_of = torch.compile(_loss, dynamic=False)                   # fuses the pointwise passes: half the time of a step
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / run.steps), last_epoch=start - 1)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        side, batch = _stage(run, step)
        rows = np.random.default_rng([recipe.seed, step, number]).integers(recipe.faces, size=batch)
        shares = part_shares(drawing, rows) if run.parts else None
        # Styles stay out of what is compiled: torch 2.14.1 compiles `fused_leaky_relu` after a linear layer wrongly.
        styles = generator.styles(generator.mapping(z[rows]))
        value, error = loss_of(generator, styles, to_image(drawing.images[rows]), side, run.parts, shares, prototypes)
        return value, {"psnr": float(decibels(error / 4)), "side": side}

    def after(step: int, reached: float) -> None:
        average.update_parameters(generator)
        if (step + 1) % recipe.save_every == 0 or step + 1 == run.steps:
            atomic_torch_save({"generator": generator.state_dict(), "average": average.state_dict(),
                               "prototypes": prototypes.data, "optimiser": optimiser.state_dict(), "step": step + 1},
                              state_path)

    fit(optimiser, loss, run.steps, run.name, schedule, start, after)
    assert isinstance(average.module, StyleGAN2)
    return average.module


def _loss(generator: StyleGAN2, styles: list[Tensor], target: Tensor, side: int, parts: float, shares: Tensor | None,
          prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Error of the picture so far at `side` px, and its squared error alone.

    With `parts`, also the part error of the blend layer, and the error of the picture so far at the blend layer's side:
    an edit ends there, so what it can change must be painted by then.
    """
    layer = _rgb_layer(generator, side)
    with autocast("bf16", target.device):
        features = generator.synthesis(styles, until=layer).features
    loss, squared = _picture_error(features[layer], target)
    if shares is not None:
        at_blend, _ = _picture_error(features[_rgb_layer(generator, shares.shape[-1])], target)
        loss = loss + BLEND_SHARE * at_blend + parts * part_error(features[BLEND_LAYER].float(), shares, prototypes)
    return loss, squared.detach()


def _picture_error(made: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared + half the absolute error of a picture against the target at its size, and the squared error alone."""
    difference = made.float() - _shrink(target, made.shape[-1])
    squared = difference.square().mean()
    return squared + 0.5 * difference.abs().mean(), squared


def _rgb_layer(generator: StyleGAN2, side: int) -> int:
    return next(layer.index for layer in generator.layers if layer.kind == "rgb" and layer.resolution == side)


def part_shares(drawing: Drawing, rows: np.ndarray) -> Tensor:
    """(B, len(AREAS), h, h): the share of every part in each pixel of the blend layer's map."""
    labels = drawing.labels[rows]                                                           # (B, S, S), a copy
    skin = labels == PARTS.index("skin")
    for area in ("jaw", "cheeks"):
        labels[skin & drawing.areas[area][rows]] = AREAS.index(area)
    one_hot = F.one_hot(torch.from_numpy(labels).long(), len(AREAS)).movedim(-1, 1).float()
    return F.avg_pool2d(one_hot, drawing.labels.shape[-1] // BLEND_SIDE)


def part_error(features: Tensor, shares: Tensor, prototypes: Tensor) -> Tensor:
    """How badly the nearest prototype names the part of a pixel, every part weighing by the root of its area.

    Args:
        features: (B, C, h, h) of the blend layer.
        shares: (B, P, h, h) see `part_shares`.
        prototypes: (P, C).
    Returns:
        Cross-entropy of softmax(-distance^2) plus a tenth of the distance^2 to the own prototype: k-means then finds the
        parts, as it does in the features of a generator that was trained on photographs.
    """
    distance = features.square().sum(1, keepdim=True) + prototypes.square().sum(1)[:, None, None] \
        - 2 * torch.einsum("bchw,pc->bphw", features, prototypes)                           # (B, P, h, h)
    area = shares.mean(dim=(0, 2, 3)).clamp(min=1e-4)                                       # (P,)
    weight = (shares * area.rsqrt()[:, None, None]).sum(1)                                  # (B, h, h)
    error = -(shares * (-distance).log_softmax(1)).sum(1) + 0.1 * (shares * distance).sum(1)
    return (weight * error).sum() / weight.sum()


@torch.no_grad()
def part_means(generator: StyleGAN2, z: Tensor, shares: Tensor) -> Tensor:
    """(P, C) mean feature of every part at the blend layer: where the prototypes start."""
    features = generator.synthesis(generator.styles(generator.mapping(z)), until=BLEND_LAYER).features[BLEND_LAYER]
    return torch.einsum("bphw,bchw->pc", shares, features) / shares.sum(dim=(0, 2, 3)).clamp(min=1e-3)[:, None]


def _stage(run: Run, step: int) -> tuple[int, int]:
    """Side and batch of a step."""
    for side, count, batch in run.stages:
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
    """Mean PSNR in dB of G(z) against the drawing that z asks for, on latents not trained on."""
    z = sample_z(count, STYLE_DIM, seed)
    drawn = to_image(draw_faces(FaceParams.from_z(z.numpy())).images)
    values = [psnr(generator.picture(generator.styles(generator.mapping(part))), truth)
              for part, truth in zip(z.split(32), drawn.split(32), strict=True)]
    return float(torch.cat(values).mean())
