"""The measures, against closed forms and naive loops."""

import numpy as np
import torch

from attention.drawn.concepts import BY_PHRASE
from attention.drawn.faces import FaceParams, draw_faces
from attention.drawn.truth import _best_union, grow, true_part
from attention.evaluate import iou


def test_iou_of_half_overlapping_squares_is_one_third():
    gated, part = torch.zeros(1, 1, 4, 4), torch.zeros(1, 8, 8, dtype=torch.bool)
    gated[0, 0, 0:2, 0:2] = 0.9                     # covers pixels 0..3 of the 8 px picture on both axes
    part[0, 0:4, 2:6] = True
    assert abs(iou(gated, part) - 1 / 3) < 1e-7


def test_iou_of_an_empty_mask_is_zero():
    assert iou(torch.zeros(2, 1, 4, 4), torch.ones(2, 8, 8, dtype=torch.bool)) == 0


def test_grow_equals_a_naive_loop():
    mask = torch.from_numpy(np.random.default_rng(0).random((2, 9, 9)) < 0.05)
    expected = torch.zeros_like(mask)
    for n, y, x in mask.nonzero().tolist():
        expected[n, max(0, y - 2):y + 3, max(0, x - 2):x + 3] = True
    assert torch.equal(grow(mask, 2), expected)


def test_the_best_union_of_regions_equals_trying_every_union():
    counts = np.random.default_rng(1).integers(0, 50, (6, 3))
    best = 0.0
    for chosen in range(1, 2**6):
        rows = [row for row in range(6) if chosen >> row & 1]
        inside, size = counts[rows, 1].sum(), counts[rows].sum()
        best = max(best, inside / (counts[:, 1].sum() + size - inside))
    assert abs(_best_union(counts, 1) - best) < 1e-12


def test_the_true_part_of_a_hair_colour_is_the_drawn_hair():
    params = FaceParams.sample(8, seed=5)
    concept = BY_PHRASE["blonde hair"]
    part, hair = true_part(params, concept), draw_faces(params).mask("hair")
    assert (part & hair).sum() == hair.sum() and part.sum() < 1.1 * hair.sum()


def test_the_true_part_of_glasses_covers_every_pixel_that_putting_them_on_changes():
    params = FaceParams.sample(8, seed=6)
    concept = BY_PHRASE["glasses"]
    before, after = draw_faces(params).images, draw_faces(concept.apply(params)).images
    changed = np.abs(before.astype(int) - after).max(axis=3) > 16
    assert not (changed & ~true_part(params, concept)).any()
