"""Guided filters, against the same written window by window in float64 (He et al. 2013)."""

import numpy as np
import pytest
import torch

from attention.method.guided import CELL, LEAST, GuidedFilter

CELLS = 8
SIDE, WIDE, FLAT = CELL * CELLS, 7, 1e-3


def random_maps(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def window(values, row, column, wide):
    """The pixels round one, (wide^2, ...); beyond the edge those at the edge."""
    rows, columns = (np.clip(place + np.arange(-(wide // 2), wide // 2 + 1), 0, len(values) - 1) for place in (row, column))
    return values[rows][:, columns].reshape(wide**2, -1)


def filtered(guide, maps, counts, wide, flat):
    """Maps (S, S, C) by guide (S, S, 3), in float64: a line fitted in every window, the mean of all lines of a pixel; in
    windows, pixels count by (S, S, 1)."""
    places = [(row, column) for row in range(len(guide)) for column in range(len(guide))]
    lines = np.empty((*guide.shape[:2], 4, maps.shape[-1]))
    for place in places:
        colours, values, count = (window(each, *place, wide) for each in (guide, maps, counts))
        share = count / count.sum()
        mean, apart = (share * colours).sum(0), colours - (share * colours).sum(0)
        slope = np.linalg.solve((share * apart).T @ apart + flat * np.eye(3), (share * apart).T @ values)
        lines[place] = np.concatenate([slope, ((share * values).sum(0) - mean @ slope)[None]])
    flat_lines, result = lines.reshape(*guide.shape[:2], -1), np.empty_like(maps)
    for place in places:
        line = np.average(window(flat_lines, *place, wide), 0, window(counts, *place, wide)[:, 0]).reshape(4, -1)
        result[place] = guide[place] @ line[:3] + line[3]
    return result


def numbers(maps):
    """(1, C, S, S) -> (S, S, C) float64."""
    return maps[0].double().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("weight", [None, random_maps(1, 1, SIDE, SIDE, seed=2)])
def test_a_filter_fits_a_line_in_every_window_by_what_counts(weight):
    picture, maps = random_maps(1, 3, SIDE, SIDE) * 2 - 1, random_maps(1, 2, SIDE, SIDE, seed=1)
    found = GuidedFilter.of(picture, CELLS, WIDE, FLAT, weight)(maps)
    counts = np.ones((SIDE, SIDE, 1)) if weight is None else numbers(weight) + LEAST
    expected = filtered(numbers((picture + 1) / 2), numbers(maps), counts, WIDE, FLAT)
    np.testing.assert_allclose(numbers(found), expected, atol=1e-4)


@pytest.mark.parametrize("side", [SIDE, 3 * SIDE, SIDE // 2])
def test_what_is_a_line_in_the_picture_s_colours_stays_that_at_its_whole_size(side):
    """Of the small picture's; two pictures, each by its own."""
    rows = torch.linspace(-1, 1, side)
    picture = torch.stack([rows[:, None].expand(side, side), rows.expand(side, side), (rows[:, None] * rows)])[None]
    picture = torch.cat([picture, -picture])
    guided = GuidedFilter.of(picture, CELLS, WIDE, 1e-9)
    weights = torch.tensor([[0.5, -1.0, 0.3], [0.2, 0.1, -0.7]])

    def line(colours):
        return torch.einsum("kc,bchw->bkhw", weights, colours) + 0.25

    torch.testing.assert_close(guided(line(guided.small)), line((picture + 1) / 2), atol=2e-2, rtol=0)


def test_a_filter_is_float32_under_autocast():
    picture, maps = random_maps(1, 3, SIDE, SIDE) * 2 - 1, random_maps(1, 1, SIDE, SIDE, seed=1)
    plain = GuidedFilter.of(picture, CELLS, WIDE, FLAT)(maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(GuidedFilter.of(picture, CELLS, WIDE, FLAT)(maps), plain)
