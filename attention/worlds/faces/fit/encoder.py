"""The encoder of real-looking faces (inversion/small.py), taught by generated ones in two lessons.

One: w, whose errors count by how much of them is seen. Two: the picture and the person, by the generator, which takes a
dozen times as long; there what rows of w+ have of their own is learned, for there are photos that no w draws: grey ones. It
may be given again: its rate falls to nothing, and rises anew.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.devices import autocast
from attention.errors import UserError
from attention.fits import fit
from attention.generator import Generator, sample_z
from attention.images import Damage, area_resize, augment, decibels, to_image, to_pixels
from attention.inversion.descriptor import face_chips, load_descriptor
from attention.inversion.invert import slope_error
from attention.inversion.small import KIND, SmallEncoder, load_small
from attention.worlds.faces.fit.pictures import PHOTOS, SIGHTS, make_shards, read_arrays

SHARD = 1000            # faces
AT_ONCE = 8
TRUNCATION = (0.7, 1.0)         # of the faces; ...
BROAD = 24                      # ... of later shards it is 1: photos are as far from the mean as any
SEEN_FACES = 1200       # faces of which it is asked what is seen of a change, ...
SEEN_TRUNCATION = 0.85  # ... and theirs
COARSE = 32             # px: colours are what is left at this side, the rest is detail
SEEN_WEIGHTS = {"colours": 0.5, "detail": 0.15, "person": 0.35}              # of what is seen
# Photos are framed by landmarks that are off by a little, softer than what is generated, and of other light.
TURN, SIZE, SHIFT = 0.05, 0.04, 0.025       # radians, share, half sides; either way
GREY, DARK, DARKEST = 0.22, 0.3, 0.35       # shares of photos: without colour, darker; and the least light of these
DAMAGE = Damage(shift=0, blur=2, coarse=0.4, coarsest=0.4, gain=0, offset=0, noise=0.05)
GAIN, OFFSET = 0.06, 0.04


@dataclass(frozen=True)
class SmallFit:
    """How the shipped encoder is taught: the rate and the photos of a step of either lesson."""

    steps: tuple[int, ...] = (6000, 2200, 2800)         # of lesson one, and of lesson two, each time that it is given
    rates: tuple[float, float] = (2e-3, 5e-4)
    photos: tuple[int, int] = (64, 12)
    plain: float = 0.1              # weight of errors of w that are not seen
    slopes: float = 0.5             # weights of lesson two, beside the squared error of pixels: their slopes,
    person: float = 0.15            # the squared distance of persons,
    latent: float = 0.01            # lesson one's error,
    own: float = 0.01               # what rows have of their own, squared
    seed: int = 0


RECIPE = SmallFit()


@dataclass(frozen=True)
class Photos:
    """N generated faces: pictures (N, S, S, 3) uint8 and their w (N, style_dim) float32."""

    pixels: np.ndarray
    w: np.ndarray


@dataclass(frozen=True)
class Sights:
    """What is seen of colours, detail and person: rows g (N, style_dim), so that the mean of (g . d)^2 is how much of a
    change d of w is. They are gradients of random sums of what is seen (Hutchinson's estimate of its Jacobian's square)."""

    colours: np.ndarray
    detail: np.ndarray
    person: np.ndarray


@torch.no_grad()
def make_photos(generator: Generator, number: int) -> Photos:
    """SHARD seeded faces."""
    z, random = sample_z(SHARD, generator.style_dim, 20_000 + number), np.random.default_rng([9, number])
    least, most = TRUNCATION if number < BROAD else (1.0, 1.0)
    truncation = torch.from_numpy(random.uniform(least, most, (SHARD, 1))).float()
    mean = generator.mapping(z[:1], 0.0)
    w = mean + truncation * (generator.mapping(z) - mean)
    return Photos(np.concatenate([to_pixels(_picture(generator, part)) for part in w.split(AT_ONCE)]), w.numpy())


def _picture(generator: Generator, w: Tensor) -> Tensor:
    """(B, 3, R, R) of w or w+, in bf16 where the machine has it."""
    with autocast("bf16", w.device):
        return generator.picture(generator.styles(w)).float()


def photos(folder: Path, numbers: Iterable[int]) -> Photos:
    """The faces of shards."""
    return Photos(*_joined(folder, [f"{PHOTOS}{number:04d}" for number in numbers], ("pixels", "w")))


def sights(folder: Path, seed: int) -> Sights:
    """Those of a seed."""
    return Sights(*_joined(folder, [f"{SIGHTS}{seed:04d}"], ("colours", "detail", "person")))


def _joined(folder: Path, names: Iterable[str], arrays: tuple[str, ...]) -> list[np.ndarray]:
    read = [read_arrays(folder / f"{name}.npz", arrays) for name in names]
    return [np.concatenate(parts) for parts in zip(*read, strict=True)]


@torch.enable_grad()
def make_sights(generator: Generator, seed: int) -> Sights:
    """Of SEEN_FACES seeded faces."""
    descriptor, random = load_descriptor(generator.constant.device), torch.Generator().manual_seed(seed)
    z = torch.randn(SEEN_FACES, generator.style_dim, generator=random)
    rows: dict[str, list[Tensor]] = {name: [] for name in SEEN_WEIGHTS}
    for w in generator.mapping(z, SEEN_TRUNCATION).detach().split(AT_ONCE // 2):
        w.requires_grad_()
        picture = _picture(generator, w)
        colours = area_resize(picture, COARSE)
        detail = picture - F.interpolate(colours, size=picture.shape[-2:], mode="bilinear")
        seen = {"colours": colours / colours[0].numel() ** 0.5, "detail": detail / detail[0].numel() ** 0.5,
                "person": descriptor(face_chips(picture))}
        for name, value in seen.items():
            sums = (value * torch.randn(value.shape, generator=random)).sum()
            rows[name].append(torch.autograd.grad(sums, w, retain_graph=True)[0])
    return Sights(**{name: torch.cat(found).numpy() for name, found in rows.items()})


def sight(sights: Sights, spread: Tensor) -> Tensor:
    """(style_dim, style_dim) R, so that |R d|^2 / style_dim is how much is seen of a change d of w in spreads: colours,
    detail and person by SEEN_WEIGHTS, each by its own mean over directions."""
    whole = torch.zeros(len(spread), len(spread))
    for name, weight in SEEN_WEIGHTS.items():
        rows = torch.from_numpy(getattr(sights, name)) * spread
        seen = rows.T @ rows
        whole += weight * seen / seen.trace()
    values, directions = torch.linalg.eigh(whole)
    return (len(spread) * values.clamp(min=0)).sqrt()[:, None] * directions.T


def fit_encoder(generator: Generator, work: Path, numbers: Sequence[int], recipe: SmallFit = RECIPE) -> SmallEncoder:
    """Teach an encoder on the photos of shards that were made; a lesson that `work` holds is not given again."""
    folder = work / "pictures"
    make_shards(folder, {f"{SIGHTS}0000": 0}, lambda seed: make_sights(generator, seed))
    taught = photos(folder, numbers)
    w = torch.from_numpy(taught.w)
    torch.manual_seed(recipe.seed)
    encoder = SmallEncoder(generator.mapping(w[:1], 0.0).detach()[0], w.std(dim=0), generator.n_latent)
    seen = sight(sights(folder, 0), encoder.spread)
    encoder = _after(work, 1, encoder, lambda encoder: lesson_one(encoder, taught, seen, recipe))
    for given in range(1, len(recipe.steps)):
        encoder = _after(work, 1 + given, encoder,
                         partial(lesson_two, generator=generator, taught=taught, seen=seen, recipe=recipe, given=given))
    return encoder


def _after(work: Path, lesson: int, encoder: SmallEncoder, teach: Callable[[SmallEncoder], None]) -> SmallEncoder:
    """The encoder after the lesson of this number, which is held once.

    Raises:
        UserError: what the lesson left is broken.
    """
    path = work / f"encoder-{lesson}.safetensors"
    if path.exists():
        try:
            return load_small(path)
        except UserError as error:
            raise UserError(f"{path} holds no whole encoder after lesson {lesson}; delete it and run: "
                            f"{KIND.remake}") from error
    teach(encoder)
    encoder.save(path, torch.float32)
    return encoder


def lesson_one(encoder: SmallEncoder, taught: Photos, seen: Tensor, recipe: SmallFit = RECIPE) -> None:
    """Teach w."""
    random, w = _begin(recipe, 1), torch.from_numpy(taught.w)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(w), (recipe.photos[0],), generator=random)
        shown = augment(scene(to_image(taught.pixels[rows.numpy()]), random), random, DAMAGE)[0]
        wrong = _changes(encoder, shown)[:, 0] - (w[rows] - encoder.mean) / encoder.spread
        return _seen_error(wrong, seen, recipe), {}

    _teach(encoder, loss, recipe.steps[0], recipe.rates[0], "encoder, lesson 1")


def _begin(recipe: SmallFit, lesson: int) -> torch.Generator:
    """What draws the photos of a lesson, which may begin in another process than the one before."""
    return torch.Generator().manual_seed(1000 * recipe.seed + lesson)


def scene(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Faces (B, 3, H, H) in [-1, 1] as photos show them: turned, nearer or further, aside; lighter, tinted, dark, grey."""
    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(len(pictures), *shape).uniform_(low, high, generator=random)

    angle, size = draw(-TURN, TURN), 1 + draw(-SIZE, SIZE)
    across, down = size * angle.cos(), size * angle.sin()
    transform = torch.stack([torch.stack([across, -down], 1), torch.stack([down, across], 1)], 1)
    transform = torch.cat([transform, draw(-SHIFT, SHIFT, 2, 1)], dim=2)                            # (B, 2, 3)
    grid = F.affine_grid(transform, list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    pictures = pictures * draw(1 - GAIN, 1 + GAIN, 1, 1, 1) + draw(-OFFSET, OFFSET, 3, 1, 1)
    pictures = torch.where(draw(0, 1, 1, 1, 1) < GREY, pictures.mean(dim=1, keepdim=True), pictures)
    light = torch.where(draw(0, 1, 1, 1, 1) < DARK, draw(DARKEST, 1, 1, 1, 1), torch.ones(()))
    return ((pictures + 1) * light - 1).clamp(-1, 1)


def _changes(encoder: SmallEncoder, shown: Tensor) -> Tensor:
    with autocast("bf16", shown.device):
        return encoder.changes(shown)


def _seen_error(wrong: Tensor, seen: Tensor, recipe: SmallFit) -> Tensor:
    return (wrong @ seen.T).square().mean() + recipe.plain * wrong.square().mean()


def _teach(encoder: SmallEncoder, loss: Callable[[int], tuple[Tensor, dict[str, float]]], steps: int, rate: float,
           name: str) -> None:
    encoder.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    fit(optimiser, loss, steps, name, schedule)
    encoder.requires_grad_(False).eval()


def lesson_two(encoder: SmallEncoder, generator: Generator, taught: Photos, seen: Tensor,
               recipe: SmallFit = RECIPE, given: int = 1) -> None:
    """Teach the picture, beside lesson one; for the first, second, ... time that it is given, counted from 1."""
    random, w, descriptor = _begin(recipe, 1 + given), torch.from_numpy(taught.w), load_descriptor(encoder.mean.device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        for layer in encoder.modules():             # so few photos say nothing of channels' means
            layer.train(not isinstance(layer, nn.BatchNorm2d))
        rows = torch.randint(len(w), (recipe.photos[1],), generator=random)
        wanted = scene(to_image(taught.pixels[rows.numpy()]), random)
        changes = _changes(encoder, augment(wanted, random, DAMAGE)[0])
        made = _picture(generator, encoder.rows(changes))
        error = (made - wanted).square().mean()
        apart = (descriptor(face_chips(made)) - descriptor(face_chips(wanted))).square().sum(dim=1).mean()
        wrong = changes[:, 0] - (w[rows] - encoder.mean) / encoder.spread
        whole = (error + recipe.slopes * slope_error(made, wanted) + recipe.person * apart
                 + recipe.latent * _seen_error(wrong, seen, recipe) + recipe.own * changes[:, 1:].square().mean())
        return whole, {"psnr": float(decibels(error.detach() / 4)), "apart": float(apart.detach())}

    _teach(encoder, loss, recipe.steps[given], recipe.rates[1], f"encoder, lesson 2, given {given}")
