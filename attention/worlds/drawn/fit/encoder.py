"""The encoder of drawn faces, taught by drawings."""

import numpy as np
from tqdm import tqdm

from attention.generator import Generator, sample_z
from attention.images import Damage, to_image
from attention.worlds.drawn.faces import FaceParams, draw_faces
from attention.worlds.tower import EncoderFit, TowerEncoder, fit_tower, psnr_of_inversions

DAMAGE = Damage(shift=0, blur=0, coarse=0.5, coarsest=0.625, gain=0, offset=0, noise=0.04)     # as crops of photos are
RECIPE = EncoderFit()
FACES = 16_000


def fit_encoder(generator: Generator, recipe: EncoderFit = RECIPE, faces: int = FACES) -> TowerEncoder:
    """Train on drawings, half of the batches softened as crops of photos are."""
    z = sample_z(faces, generator.style_dim, recipe.seed)
    params = FaceParams.from_z(z.numpy())
    drawings = np.concatenate([draw_faces(params.take(slice(i, i + 512))).images
                               for i in tqdm(range(0, faces, 512), desc="drawings")])
    return fit_tower(generator, drawings, generator.mapping(z).detach(), DAMAGE, recipe)


def psnr_of_drawings(encoder: TowerEncoder, generator: Generator, count: int = 256, seed: int = 98) -> float:
    """Mean PSNR in dB of unseen drawings against what the generator makes of their encodings."""
    drawn = to_image(draw_faces(FaceParams.from_z(sample_z(count, generator.style_dim, seed).numpy())).images)
    return psnr_of_inversions(encoder, generator, drawn)
