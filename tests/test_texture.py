"""What an edit keeps of the fine structure under it."""

import pytest
import torch
from tiny import tiny_edit

from attention.method.guided import CELL, GuidedFilter
from attention.method.texture import FLAT, WINDOW, with_structure

CELLS = 16
SIDE = CELL * CELLS
SHOWN = torch.ones(1, 1, SIDE, SIDE)


def random_picture(seed, low=-1.0, high=1.0, side=SIDE):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def test_an_edit_s_change_is_a_line_in_the_colours_under_it():
    image, under = random_picture(2), random_picture(1)
    change = GuidedFilter.of(under, CELLS, WINDOW, FLAT, SHOWN)(image - under)
    torch.testing.assert_close(with_structure(image, under, SHOWN, CELLS, torch.ones(1, 1)), under + change)


def test_what_is_not_shown_has_no_part_in_it():
    image, under, shown = random_picture(2), random_picture(1), SHOWN.clone()
    shown[..., 40:] = 0
    other = torch.where(shown == 0, -image, image)
    here, there = (with_structure(made, under, shown, CELLS, torch.ones(1, 1))[..., :40] for made in (image, other))
    assert (here - there).abs().max() < 0.03 < (image - other).abs().max()


def test_kept_is_how_much_of_it_and_every_row_has_its_own():
    """Of half of it, a window's mean is that of halves, its variance three quarters of the edit's and one of the other."""
    image, under = random_picture(2, 0.2, 0.6).expand(3, -1, -1, -1), random_picture(1, -0.1, 0.0)
    nothing, half, whole = with_structure(image, under, SHOWN, CELLS, torch.tensor([[0.0], [0.5], [1.0]]))
    torch.testing.assert_close(nothing, image[0], atol=1e-5, rtol=0)
    mixed, inner = (nothing + whole) / 2, (..., *[slice(WINDOW, -WINDOW)] * 2)
    torch.testing.assert_close(half.mean(), mixed.mean(), atol=2e-3, rtol=0)
    varying = [float(one[inner].var()) for one in (image[0], whole, half, mixed)]
    assert varying[2] == pytest.approx(0.75 * varying[0] + 0.25 * varying[1], rel=0.05) and varying[3] < 0.5 * varying[2]
    enlarged = torch.corrcoef(torch.stack([half[inner].flatten(), mixed[inner].flatten()]))[0, 1]
    assert enlarged > 0.99                                                              # and is nothing else


def test_strands_stay_at_every_size_of_a_picture_and_get_the_new_colour():
    """Stripes, two pixels of a cell wide, that an edit lays across, in another colour."""
    for side in (SIDE, 4 * SIDE):
        stripes = (torch.arange(side) * SIDE // side // 2 % 2).float().expand(1, 3, side, side)
        colour = torch.tensor([0.5, 0.2, -0.2])[:, None, None]
        under, image = 0.1 * stripes - 0.5, 0.1 * stripes.transpose(2, 3) + colour
        after = with_structure(image, under, torch.ones(1, 1, side, side), CELLS, torch.ones(1, 1))[0]
        assert after.std(dim=2).mean() > 3 * after.std(dim=1).mean()
        torch.testing.assert_close(after.mean(dim=(1, 2)), image[0].mean(dim=(1, 2)), atol=0.02, rtol=0)


def test_a_tooth_that_an_edit_draws_on_a_lip_is_not_kept():
    """A lip of one colour, on which an edit paints another one and, here and there, a bright tooth."""
    lip, painted = torch.tensor([0.4, -0.4, -0.3]), torch.tensor([0.5, 0.1, 0.2])
    under = lip[:, None, None] + random_picture(1, -0.05, 0.05)
    image = painted[:, None, None] + random_picture(2, -0.05, 0.05)
    image[..., 30:33, 30:33] = 0.9
    after = with_structure(image, under, SHOWN, CELLS, torch.ones(1, 1))[0]
    torch.testing.assert_close(after[:, 31, 31], painted, atol=0.15, rtol=0)


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
    second = editor.apply(source, styles, mask, first, what=text)                           # upon an edit, that edit's
    added = first.image + second.drawn - first.drawn
    wanted = first.image + share * (with_structure(added, first.image, share, 16, kept) - first.image)
    torch.testing.assert_close(second.image, wanted, atol=1e-5, rtol=0)
