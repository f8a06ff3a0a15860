"""From a framed picture to a latent that draws it again: the encoder's guess, corrected by what the encoder sees in the
guess's own picture, and made better by descent if time allows."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from attention.devices import rough
from attention.errors import UserError
from attention.extras import have
from attention.fits import fit
from attention.generator.base import Generator, principal
from attention.images import area_resize, decibels, psnr
from attention.inversion.descriptor import face_chips, load_descriptor
from attention.inversion.perceptual import load_lpips, lpips_available

LOOKS = 2                   # more that an encoder has, at the picture of its guess, ...
CORRECTION = 0.6            # ... and how much of what it sees otherwise there is made good
RATE = 0.1                  # of Adam, in standard deviations over faces; it falls to 0 over the last COOL_DOWN of the steps
COOL_DOWN = 0.6
COARSE = 2 / 3              # of the steps are taken by earlier, smaller pictures, where there are such: they cost a third
SLOPES = 1.0                # weight of how pixels differ from their neighbours, beside the pixels themselves
PULL = 0.2                  # on what the rows of w+ have of their own, squared, in the same unit: edits were learned on w
AMONG_FACES = 0.003         # on how far from the mean face all rows are together, squared
AGREEMENT = 0.03            # weight of how the encoder sees the two pictures, where LPIPS is not asked
LIKENESS = 0.03             # weight of how dlib's recogniser sees them, where they are photographs of persons
FACES = 2048                # that say how w differs
LPIPS_SIDE = 256            # larger pictures are shrunk to this side before LPIPS, which else would take most of the time
Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Interrupted(UserWarning):
    """That Ctrl-C has ended a refinement, whose best is taken all the same."""


class Inversion(NamedTuple):
    """A latent, and how near its picture is before and after refinement.

    w (1, style_dim) or w+ (1, n_latent, style_dim); pictures (1, 3, R, R); PSNR in dB; LPIPS (at most at LPIPS_SIDE), None
    where its weights are not here.
    """

    w: Tensor
    before: Tensor
    after: Tensor
    psnr_before: float
    psnr_after: float
    lpips_before: float | None = None
    lpips_after: float | None = None


def invert(generator: Generator, encoder: nn.Module, image: Tensor, faces: Tensor, steps: int = 0,
           by_lpips: bool = True, of_persons: bool = False, early: Generator | None = None) -> Inversion:
    """Find the latent of a picture: see `guess`, and refinement after it.

    Args:
        encoder: picture -> w (1, style_dim) or w+ (1, n_latent, style_dim).
        image: (1, 3, R, R) in [-1, 1], framed as the generator's faces are.
        faces: (N, style_dim) w of many faces: how they differ is the unit of refinement.
        steps: of refinement by the squared error of pixels and of their slopes and by LPIPS or, where that is not asked for
            or its weights are not here (see load_lpips), by what the encoder sees; 0 leaves the encoder's guess.
        of_persons: refinement also asks dlib's recogniser who it is, where that is here (extra photos).
        early: the same generator with smaller pictures, by which the first COARSE of the steps are taken.
    Raises:
        UserError: the encoder was made for another generator.
    """
    distance = _small_lpips(image.device) if lpips_available() else None
    w, before = guess(generator, encoder, image)
    after = before
    if steps > 0:
        seen = [distance if distance is not None and by_lpips else _agreement(encoder, faces)]
        seen += [_likeness(image.device)] if of_persons and have("photos") else []
        w = _refine([early or generator, generator], image, w, faces, steps, seen)
        with torch.no_grad():
            after = generator.picture(generator.styles(w)).clamp(-1, 1)
    first, last = (_nearness(made, image, distance) for made in (before, after))
    return Inversion(w, before, after, first[0], last[0], first[1], last[1])


@torch.no_grad()
def guess(generator: Generator, encoder: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's latent of a picture (1, 3, R, R) in [-1, 1], and the picture (1, 3, R, R) in [-1, 1] that it draws.

    An encoder that was taught by squared errors keeps near the mean face. It does so with the picture of its guess as well,
    and what it sees otherwise there is made good by CORRECTION of it, as long as that comes nearer to the picture.
    Source: ReStyle (Alaluf et al. 2021), whose encoder is another network, taught to see the difference.

    Raises:
        UserError: the encoder was made for another generator.
    """
    w = seen = encoder(image)
    if w.shape[1:] not in ((generator.style_dim,), (generator.n_latent, generator.style_dim)):
        raise UserError(f"the encoder makes latents of {tuple(w.shape[1:])}, but this generator takes "
                        f"{generator.n_latent} x {generator.style_dim}; give the encoder of this generator")
    made = generator.picture(generator.styles(w)).clamp(-1, 1)
    for _ in range(LOOKS):
        other = w + CORRECTION * (seen - encoder(made))
        corrected = generator.picture(generator.styles(other)).clamp(-1, 1)
        if not (corrected - image).square().mean() < (made - image).square().mean():
            break
        w, made = other, corrected
    return w, made


@torch.no_grad()
def psnr_of_inversions(encoder: nn.Module, generator: Generator, pictures: Tensor) -> float:
    """Mean PSNR in dB of unseen pictures (N, 3, S, S) against what the generator makes of their encodings."""
    made = torch.cat([generator.picture(generator.styles(encoder(part))) for part in pictures.split(32)])
    return float(psnr(made, area_resize(pictures, generator.resolution)).mean())


def _refine(generators: Sequence[Generator], image: Tensor, guess: Tensor, faces: Tensor, steps: int,
            distances: Sequence[Distance]) -> Tensor:
    """w+ (1, n_latent, style_dim) whose picture is near the image in pixels, slopes and `distances`: a change that all rows
    share, as far as that goes, and what each needs of its own, for edits were learned where all rows are one w.

    An interruption (Ctrl-C) ends it with the best that was found till then.

    Args:
        generators: of the first COARSE of the steps, and of the others.
    """
    generator, coarse = generators[-1], round(COARSE * steps)
    rows = guess if guess.ndim == 3 else guess[:, None].expand(-1, generator.n_latent, -1)
    start = rows.mean(dim=1, keepdim=True)                                                          # (1, 1, style_dim)
    mean, directions, deviations = principal(faces, generator.style_dim)
    # Along the principal directions, in standard deviations: where the guess is and what its rows have of their own; ...
    guessed, own_guessed = ((value @ directions.T / deviations).detach() for value in (start - mean, rows - start))
    # ... what is added to all of them, and what each shall have.
    shared, own = torch.zeros_like(guessed).requires_grad_(), own_guessed.clone().requires_grad_()
    least, best = float("inf"), rows

    def distance_of(shown: Generator, shared: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All that is minimised, the squared error in it, and the latent."""
        latent = start + (shared + own) * deviations @ directions
        styles = shown.styles(latent)
        with rough(latent.device):
            made = shown.picture(styles)
        wanted = area_resize(image, made.shape[-1])
        error = (made - wanted).square().mean()
        whole = (error + SLOPES * slope_error(made, wanted) + sum(distance(made, wanted).mean() for distance in distances)
                 + PULL * own.square().mean() + AMONG_FACES * (guessed + shared).square().mean())
        return whole, error.detach(), latent.detach()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        nonlocal least, best
        if step == coarse:                  # losses of two sizes do not compare, and few steps may have led away
            with torch.no_grad():
                whole, _, best = distance_of(generator, shared * 0, own_guessed)
                least = float(whole)
        whole, error, latent = distance_of(generators[0] if step < coarse else generator, shared, own)
        if whole < least:
            least, best = float(whole.detach()), latent
        return whole, {"psnr": float(decibels(error / 4))}

    optimiser = torch.optim.Adam([shared, own], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - step / steps) / COOL_DOWN)))
    try:
        fit(optimiser, loss, steps, "refining", schedule)
    except KeyboardInterrupt:
        warnings.warn("refinement was interrupted; the best that was found till then is taken", Interrupted, stacklevel=3)
    return best


def slope_error(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of how pixels of pictures (B, C, H, W) differ from their neighbours, down plus across."""
    difference = made - wanted
    return difference.diff(dim=-1).square().mean() + difference.diff(dim=-2).square().mean()


def _agreement(encoder: nn.Module, faces: Tensor) -> Distance:
    """AGREEMENT times the squared distance of the latents that an encoder sees in two pictures, in deviations of faces."""
    _, directions, deviations = principal(faces, faces.shape[1])

    def distance(made: Tensor, wanted: Tensor) -> Tensor:
        apart = (encoder(made) - encoder(wanted)) @ directions.T / deviations
        return AGREEMENT * apart.square().mean()

    return distance


def _likeness(device: torch.device) -> Distance:
    """LIKENESS times the squared distance of two persons."""
    descriptor = load_descriptor(device)

    def distance(made: Tensor, wanted: Tensor) -> Tensor:
        return LIKENESS * (descriptor(face_chips(made)) - descriptor(face_chips(wanted))).square().sum(dim=1)

    return distance


def _small_lpips(device: torch.device) -> Distance:
    """LPIPS of square pictures that are shrunk to LPIPS_SIDE first where they are larger."""
    lpips = load_lpips(device=device)
    return lambda *pictures: lpips(*(area_resize(picture, min(LPIPS_SIDE, picture.shape[-1])) for picture in pictures))


def _nearness(made: Tensor, wanted: Tensor, distance: Distance | None) -> tuple[float, float | None]:
    """PSNR and, if it can be had, LPIPS."""
    return float(psnr(made, wanted)), None if distance is None else float(distance(made, wanted))


