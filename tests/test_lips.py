"""Lips, told from teeth and skin by their colours."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tiny import tiny_edit

from attention.method.guided import CELL
from attention.method.lips import BESIDE, between, colours_of, like_lips, of_one_mouth

CELLS = 16
SIDE = CELL * CELLS
LEAST = torch.tensor([[0.5]])
LIPS, TEETH, SKIN = (0.7, 0.2, 0.3), (0.85, 0.8, 0.7), (0.8, 0.6, 0.5)
GRAIN_OF_COLOURS = 0.02             # a face's colours vary; without, no direction is better than another


def mouth(side, seed=5):
    """(1, 3, side, side) in [-1, 1]: teeth between lips in skin, in light and shade, and a mask of lips and teeth."""
    picture = torch.tensor(SKIN)[:, None, None].repeat(1, side, side)
    for colour, inset in ((LIPS, side // 4), (TEETH, 3 * side // 8)):
        picture[:, inset:side - inset, inset:side - inset] = torch.tensor(colour)[:, None, None]
    noise = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * GRAIN_OF_COLOURS
    picture = picture + torch.nn.functional.interpolate(noise[None], size=(side, side), mode="nearest")[0]
    mask = torch.zeros(1, 1, CELLS, CELLS)
    mask[..., 4:12, 4:12] = 1
    return (picture[None] * torch.linspace(0.6, 1, side)) * 2 - 1, mask


@pytest.mark.parametrize("side", [SIDE, 4 * SIDE])
def test_lips_show_an_edit_and_neither_teeth_nor_skin_do(side):
    picture, mask = mouth(side)
    share = like_lips(picture, mask, torch.tensor([[0.5]]))[0, 0]
    edge, middle = side // 16, slice(7 * side // 16, 9 * side // 16)
    assert share[middle, middle].max() == 0                                                                     # teeth
    assert share[side // 4 + edge // 2:side // 4 + edge, middle].min() > 0.95                                   # a lip
    assert share[:side // 4 - edge].max() == 0 and share[:, :side // 4 - edge].max() == 0                       # skin


def test_the_line_from_skin_to_lips_is_the_one_that_a_library_finds():
    """Of linear discriminant analysis, by scikit-learn, from the pixels themselves."""
    random = np.random.default_rng(0)
    spread = np.array([[0.04, 0.03], [0.03, 0.05]])
    skin, lips = (random.multivariate_normal(mean, spread**2, 400) for mean in ((0.3, -0.1), (0.6, 0.1)))
    maps = torch.tensor(np.concatenate([skin, lips]).T.reshape(1, 2, 8, 100)).float()
    first = torch.arange(800).reshape(1, 1, 8, 100) < 400
    (of_skin, spread_of_skin), (of_lips, spread_of_lips) = colours_of(maps, first), colours_of(maps, ~first)
    found = between(of_skin, spread_of_skin, of_lips, spread_of_lips)[0].numpy()
    expected = LinearDiscriminantAnalysis(solver="lsqr").fit(np.concatenate([skin, lips]), [0] * 400 + [1] * 400).coef_[0]
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=0.03)


def test_a_text_that_spares_nothing_shows_all_of_an_edit_and_in_a_grey_photo_the_mask_decides():
    picture, mask = mouth(SIDE)
    least, grey = torch.tensor([[0.5]]), picture.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    assert (like_lips(picture, mask, torch.tensor([[0.0]])) == 1).all()
    share, outer = like_lips(grey, mask, least)[0, 0], SIDE // 4 - 2 * CELL
    assert (share[SIDE // 3:2 * SIDE // 3, SIDE // 3:2 * SIDE // 3] == 1).all() and (share[:outer] == 0).all()
    assert (like_lips(picture, torch.ones_like(mask), least) == 1).all()                # nothing is beside it
    assert (like_lips(picture, torch.zeros_like(mask), least) == 0).all()
    both = like_lips(picture.expand(2, -1, -1, -1), mask.expand(2, -1, -1, -1), torch.tensor([[0.0], [0.5]]))
    assert (both[0] == 1).all()
    torch.testing.assert_close(both[1:], like_lips(picture, mask, least), atol=1e-4, rtol=0)


def test_what_has_the_colours_of_lips_is_none_at_the_mask_s_edge():
    """Two spots, two thirds of the way from skin to lips: one on a lip, one where the mask has a fifth of its most."""
    picture, mask = mouth(4 * SIDE)
    mask[..., 4:12, 12:14] = 0.2
    between_them = torch.tensor(SKIN) + 2 / 3 * (torch.tensor(LIPS) - torch.tensor(SKIN))
    on_lip, beside = (slice(4 * CELL * first + 4, 4 * CELL * last - 4) for first, last in ((4, 6), (12, 14)))
    for spot in (on_lip, beside):
        picture[..., 96:160, spot] = between_them[:, None, None] * 2 - 1
    share = like_lips(picture, mask, torch.tensor([[0.4]]))[0, 0]
    assert share[100:156, beside].max() < 0.1 and share[100:156, on_lip].median() > 0.8


def two_lips(apart, width, seed=5):
    """A picture (1, 3, S, S) of a lip in skin and of something of its colours above it, `apart` cells away and `width` of
    its width, and a mask (1, 1, h, h) of both."""
    picture = torch.tensor(SKIN)[:, None, None].repeat(1, SIDE, SIDE)
    for row, high, wide in ((10, 4, 10), (7 - apart, 3, round(10 * width))):
        rows, columns = (slice(CELL * first, CELL * (first + many)) for first, many in ((row, high), (3, wide)))
        picture[:, rows, columns] = torch.tensor(LIPS)[:, None, None]
    mask = torch.zeros(1, 1, CELLS, CELLS)
    mask[..., 2:15, 2:14] = 1
    noise = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * GRAIN_OF_COLOURS
    return (picture + noise)[None] * 2 - 1, mask


@pytest.mark.parametrize(("apart", "width", "shown"), [(2, 0.4, False), (0, 0.4, True), (2, 1.0, True)])
def test_what_lies_above_a_mouth_is_no_lip_unless_it_hangs_together_with_it_or_is_as_wide(apart, width, shown):
    """A nose's shadow, an upper lip with a dent, the upper lip of a laugh."""
    picture, mask = two_lips(apart, width)
    share = like_lips(picture, mask, LEAST)[0, 0]
    lip, above = (share[CELL * row + 3:CELL * (row + 3) - 3, CELL * 3 + 3:CELL * 7 - 3] for row in (10, 7 - apart))
    assert lip.min() > 0.8
    assert above.min() > 0.8 if shown else above.max() == 0
    both = of_one_mouth(torch.cat([torch.ones(1, 1, SIDE, SIDE), share[None, None]]), mask.expand(2, -1, -1, -1))
    assert (both[0] == 1).all()                                         # every face by itself
    torch.testing.assert_close(both[1] * share, share[None], atol=1e-5, rtol=0)


def test_where_lips_hardly_differ_from_skin_the_other_picture_of_the_face_decides():
    picture, mask = mouth(SIDE)
    grey = picture.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    assert torch.equal(like_lips(grey, mask, LEAST, picture), like_lips(picture, mask, LEAST))
    assert torch.equal(like_lips(grey, mask, LEAST, grey), like_lips(grey, mask, LEAST))            # the mask alone
    faces, others = torch.cat([grey, picture]), torch.cat([picture, grey])                          # each by itself
    shares = like_lips(faces, mask.expand(2, -1, -1, -1), LEAST.expand(2, -1), others)
    torch.testing.assert_close(shares, like_lips(picture, mask, LEAST).expand(2, -1, -1, -1), atol=1e-4, rtol=0)


def test_lips_of_a_photo_are_lips_in_both_of_its_pictures_a_few_pixels_beside_allowed():
    """What has their colours in the photo alone, hanging together with them, is none."""
    picture, mask = mouth(SIDE)
    mask[..., 2:14, 2:14] = 1
    moved, spotted = picture.roll(BESIDE - 1, dims=3), picture.clone()
    spotted[..., SIDE // 4 - 6:SIDE // 4, 24:40] = torch.tensor(LIPS)[:, None, None] * 2 - 1
    spot = slice(SIDE // 4 - 6, SIDE // 4 - BESIDE - 1), slice(26, 38)
    assert like_lips(spotted, mask, LEAST)[0, 0][spot].mean() > 0.3
    assert like_lips(spotted, mask, LEAST, picture)[0, 0][spot].max() < 0.05
    torch.testing.assert_close(like_lips(picture, mask, LEAST, moved), like_lips(picture, mask, LEAST), atol=0.1, rtol=0)


@torch.no_grad()
def test_a_photo_s_lips_are_looked_for_in_it_and_in_what_its_latent_makes():
    editor, source, text, _, styles, mask = tiny_edit()
    plain = editor.apply(source, styles, mask, what=text).image
    editor.spared.set(text, torch.tensor([[0.8]]))
    grey = source.image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    photo = dataclasses.replace(source, guide=grey)
    share = photo.edges.share(mask) * like_lips(grey, mask, editor.spared(text), source.image)
    whole = editor.apply(photo, styles, mask, what=text, edges=False).image
    edit = editor.apply(photo, styles, mask, what=text)
    torch.testing.assert_close(edit.image, source.image + share * (whole - source.image), atol=1e-5, rtol=0)
    assert (edit.image - plain).abs().max() > 0.05


@torch.no_grad()
def test_an_editor_spares_what_a_text_spares_and_no_other_text_does():
    editor, source, text, other, styles, mask = tiny_edit()
    plain = editor.apply(source, styles, mask, what=text).image
    assert torch.equal(plain, editor.apply(source, styles, mask).image)                                 # nothing is known
    editor.spared.set(text, torch.tensor([[0.8]]))
    red, spared = like_lips(source.image, mask, editor.spared(text)), editor.apply(source, styles, mask, what=text)
    assert red.min() < 0.5
    torch.testing.assert_close(spared.image, source.image + red * (plain - source.image), atol=1e-5, rtol=0)
    assert torch.equal(editor.apply(source, styles, mask, what=other).image, plain)
    assert torch.equal(editor.apply(source, styles, mask, what=text, edges=False).image,
                       editor.apply(source, styles, mask, edges=False).image)
    after = editor.apply(source, styles, mask, spared, what=text)                       # the mouth that is there by then
    red = like_lips(spared.image, mask, editor.spared(text))
    whole = editor.apply(source, styles, mask, spared).image
    torch.testing.assert_close(after.image, spared.image + red * (whole - spared.image), atol=1e-5, rtol=0)
