"""A plain face of ellipses whose parts are known, and a generator with the layers of the real one: for tests."""

from dataclasses import replace

import numpy as np
import torch

from attention.generator import MobileStyleGAN
from attention.generator.early import EarlyGenerator, EarlyHead
from attention.worlds.faces.mesh import Mesh
from attention.worlds.faces.parts import BROWS, EYES, LIPS, MOUTH, NOSE, OVAL, SEGMENTS, Face

SIDE = 128


def ring(numbers, centre, width, height):
    """Points of an ellipse for the outline of these numbers of the mesh, from its top and clockwise."""
    angles = np.linspace(0, 2 * np.pi, len(numbers), endpoint=False)
    return np.array(centre) + np.stack([np.sin(angles) * width / 2, -np.cos(angles) * height / 2], axis=1)


def plain_mesh() -> Mesh:
    """A face of ellipses: an oval of 64 x 90 px, eyes 26 px apart, a closed mouth."""
    points = np.full((468, 2), 64.0)
    for numbers, centre, width, height in (
            (OVAL, (64, 70), 64, 90), (BROWS[0], (51, 50), 14, 4), (BROWS[1], (77, 50), 14, 4), (NOSE, (64, 72), 12, 20),
            (LIPS, (64, 96), 24, 10), (MOUTH, (64, 96), 16, 1)):
        points[list(numbers)] = ring(numbers, centre, width, height)
    for number, place in zip(EYES, ((44, 60), (58, 60), (84, 60), (70, 60)), strict=True):
        points[number] = place
    places = {2: (64, 82), 152: (64, 115), 50: (46, 78), 280: (82, 78), 13: (64, 95.6), 14: (64, 96.4), 61: (52, 96),
              291: (76, 96), 64: (56, 78), 294: (72, 78)}
    for number, place in places.items():
        points[number] = place
    irises = np.array([[(x, 60), (x + 3, 60), (x, 63), (x - 3, 60), (x, 57)] for x in (51, 77)], float)
    lids = np.array([[*ring(range(9), (x, 60), 12, 7), *ring(range(7), (x, 60), 12, 7)] for x in (51, 77)], float)
    for number, x in enumerate((51, 77)):           # lower lid from the outer corner, then the upper one
        across = np.linspace(-6, 6, 9)
        lids[number, :9] = np.stack([x + across, 60 + 3.5 * np.sqrt(1 - (across / 6.01) ** 2)], axis=1)
        across = np.linspace(-5, 5, 7)
        lids[number, 9:] = np.stack([x + across, 60 - 3.5 * np.sqrt(1 - (across / 6.01) ** 2)], axis=1)
    person = np.zeros((SIDE, SIDE), np.float32)
    person[10:, 16:112] = 1
    return Mesh(points, irises, lids, person, 1.0)


def plain_segments() -> np.ndarray:
    """Hair above the brows, skin below, clothes (other) in the lowest rows."""
    segments = np.zeros((SIDE, SIDE), np.uint8)
    segments[10:36, 16:112] = SEGMENTS.index("hair")
    segments[36:118, 30:98] = SEGMENTS.index("skin")
    return segments


def plain_face(colours=None, mesh=None, strands=9) -> Face:
    """A grey picture in which some parts have an sRGB colour, and hair has strands."""
    face = Face.of(np.full((SIDE, SIDE, 3), 128, np.uint8), mesh or plain_mesh(), plain_segments())
    pixels = face.pixels.astype(int)
    for part, colour in (colours or {}).items():
        pixels[face.parts[part]] = colour
    pixels += face.parts["hair"][..., None] * (np.arange(SIDE) % 3 - 1)[None, :, None] * strands
    return replace(face, pixels=pixels.clip(0, 255).astype(np.uint8))


class StillMesh:
    """Finds the plain mesh in every picture."""

    def __call__(self, pixels):
        return plain_mesh()


def small_generator():
    """A generator with the layers of the real one up to 128 px, but a few channels, with a head."""
    torch.manual_seed(0)
    whole = MobileStyleGAN((8, 8, 8, 8, 8, 8, 8), style_dim=8, mapping_layers=1)
    for name, value in whole.state_dict().items():
        if name.endswith(("noise", "bias")):                        # or such small maps would die out
            torch.nn.init.normal_(value)
    return whole, EarlyGenerator(whole, EarlyHead(15, 8, 8, width=4)).requires_grad_(False)
