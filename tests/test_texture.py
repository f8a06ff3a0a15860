"""What an edit keeps of the fine structure under it, against the same computed window by window."""

import numpy as np
import pytest
import torch
from tiny import tiny_edit

from attention.method.texture import CELL, DARK, FAINT, LIGHTER, LUMINANCE, OUTLYING, WINDOW, luminance, with_structure

CELLS = 8
SIDE = CELL * CELLS


def random_picture(seed, low=-1.0, high=1.0, side=SIDE):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def naive(image, picture, shown):
    """The luminance that an edit gets, in float64, window by window; a pixel is a cell's quarter."""
    made, under = (np.tensordot(np.array(LUMINANCE), (each[0].double().numpy() + 1) / 2, 1) for each in (image, picture))
    weight, reach, got = shown[0, 0].double().numpy() + FAINT, WINDOW // 2, np.empty((SIDE, SIDE))
    for row in range(SIDE):
        for column in range(SIDE):
            rows, columns = (np.clip(np.arange(at - reach, at + reach + 1), 0, SIDE - 1) for at in (row, column))
            counts = weight[np.ix_(rows, columns)]
            mean, spread = moments(made[np.ix_(rows, columns)], counts)
            mean_under, spread_under = moments(under[np.ix_(rows, columns)], counts)
            light = max(1, (mean + DARK) / (mean_under + DARK))
            gain, most = min(spread / spread_under, light, LIGHTER), OUTLYING * spread_under
            structure = np.tanh((under[row, column] - mean_under) / most) * most
            change = (mean + gain * structure - made[row, column]) / light
            shade = made[row, column] / (made[row, column] + DARK) if change < 0 else 1         # what is darker is shade
            got[row, column] = made[row, column] + change * shade
    return got


def moments(values, counts):
    mean = np.average(values, weights=counts)
    return mean, np.sqrt(np.average((values - mean)**2, weights=counts)) + FAINT


@pytest.mark.parametrize("picture", [random_picture(1), random_picture(1, -1, -0.9), random_picture(1, -0.1, 0)])
def test_structure_is_that_of_the_picture_under_an_edit_as_far_as_the_edit_has_some(picture):
    image = random_picture(2, -0.5, 0.8)
    shown = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    after = with_structure(image, picture, shown, CELLS, torch.ones(1, 1))
    np.testing.assert_allclose(luminance(after)[0, 0], naive(image, picture, shown), atol=1e-4)
    light = luminance(after) > luminance(image)
    torch.testing.assert_close((after - image)[:, :1][light], (after - image)[:, 1:2][light], atol=1e-5, rtol=0)
    shade = ((after + 1) / (image + 1)).transpose(0, 1)[:, ~light[:, 0]]
    torch.testing.assert_close(shade[0], shade[2], atol=1e-4, rtol=0)                       # of the same colour


def test_kept_is_how_much_of_it_and_every_row_has_its_own():
    image, picture = random_picture(2).expand(3, -1, -1, -1), random_picture(1)
    shown = torch.ones(1, 1, SIDE, SIDE)
    nothing, half, whole = with_structure(image, picture, shown, CELLS, torch.tensor([[0.0], [0.5], [1.0]]))
    assert torch.equal(nothing, image[0])
    torch.testing.assert_close(half, (nothing + whole) / 2)


def test_strands_stay_at_every_size_of_a_picture():
    """Stripes, two pixels of a cell wide, that an edit lays across, in another colour."""
    for side in (SIDE, 4 * SIDE):
        stripes = (torch.arange(side) * SIDE // side // 2 % 2).float().expand(1, 3, side, side)
        picture, image = 0.2 * stripes, 0.2 * stripes.transpose(2, 3) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
        after = luminance(with_structure(image, picture, torch.ones(1, 1, side, side), CELLS, torch.ones(1, 1)))[0, 0]
        assert after.std(dim=1).mean() > 3 * after.std(dim=0).mean()


@torch.no_grad()
def test_an_editor_keeps_the_structure_of_what_is_shown_where_a_text_says_so():
    editor, source, text, other, styles, mask = tiny_edit()
    plain, made = editor.apply(source, styles, mask).image, editor.apply(source, styles, mask, edges=False).image
    editor.structure.set(text, torch.tensor([[0.8]]))
    share, kept = source.edges.share(mask), editor.structure(text)
    first = editor.apply(source, styles, mask, what=text)
    wanted = source.image + share * (with_structure(made, source.image, share, 16, kept) - source.image)
    torch.testing.assert_close(first.image, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(first.image, plain, atol=1e-3)
    assert torch.equal(editor.apply(source, styles, mask, what=other).image, plain)
    assert torch.equal(editor.apply(source, styles, mask, what=text, edges=False).image, made)
    made = editor.apply(source, styles, mask, first, edges=False).image                     # upon an edit, that edit's
    wanted = first.image + share * (with_structure(made, first.image, share, 16, kept) - first.image)
    torch.testing.assert_close(editor.apply(source, styles, mask, first, what=text).image, wanted, atol=1e-5, rtol=0)
