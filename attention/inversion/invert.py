"""From a framed picture to a latent that draws it again: the encoder's guess, made better by descent if time allows."""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from attention.domains import Domain
from attention.errors import UserError

RATE = 0.05                 # of Adam, in standard deviations of w over faces
PULL = 1e-3                 # on the squared distance from the encoder's guess, in the same unit: edits work near it
SPREAD_FACES = 512


class Inversion(NamedTuple):
    """w (1, style_dim) or w+ (1, n_latent, style_dim), and the PSNR in dB of its picture before and after refinement."""

    w: Tensor
    psnr_before: float
    psnr_after: float


def invert(domain: Domain, image: Tensor, steps: int = 0) -> Inversion:
    """Find the latent of a picture.

    Args:
        image: (1, 3, R, R) in [-1, 1], framed as the domain's faces are.
        steps: of refinement of every row of w+ by the squared error of pixels; 0 leaves the encoder's guess.
    Raises:
        UserError: the encoder was made for another generator.
    """
    generator = domain.generator
    with torch.no_grad():
        guess = domain.encoder(image.to(domain.device))
        if guess.shape[1:] not in ((generator.style_dim,), (generator.n_latent, generator.style_dim)):
            raise UserError(f"the encoder makes latents of {tuple(guess.shape[1:])}, but this generator takes "
                            f"{generator.n_latent} x {generator.style_dim}; give the encoder of this generator")
        before = psnr(generator.synthesis(generator.styles(guess), feature_side=0).image, image)
    if steps <= 0:
        return Inversion(guess, before, before)
    start = guess if guess.ndim == 3 else guess[:, None].expand(-1, generator.n_latent, -1)
    spread = domain.sample_w(SPREAD_FACES, seed=0).std(dim=0)
    change = torch.zeros_like(start).requires_grad_()                            # in units of the spread
    optimiser = torch.optim.Adam([change], lr=RATE)
    for _ in (bar := tqdm(range(steps), desc="refining", leave=False)):
        optimiser.zero_grad()
        made = generator.synthesis(generator.styles(start + spread * change), feature_side=0).image
        error = (made - image.to(made.device)).square().mean()
        (error + PULL * change.square().mean()).backward()
        optimiser.step()
        bar.set_postfix(psnr=f"{10 * torch.log10(4 / error.detach()):.2f}")
    with torch.no_grad():
        w = start + spread * change
        after = psnr(generator.synthesis(generator.styles(w), feature_side=0).image, image)
    return Inversion(w.detach(), before, after)


def psnr(made: Tensor, wanted: Tensor) -> float:
    """PSNR in dB of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (made.clamp(-1, 1) - wanted.to(made.device)).square().mean()))
