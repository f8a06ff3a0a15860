"""Edits that end at the picture's own edges."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import tiny_edit, tiny_editor

from attention.editing.session import Editor, load_editor
from attention.files.published import SHIPPED
from attention.method.by_text import ByText
from attention.method.guided import CELL, GuidedFilter
from attention.method.lips import like_lips
from attention.method.seam import (
    ALL,
    FLAT,
    NARROW,
    NOTHING,
    SOLID,
    WIDER,
    WINDOW,
    Edges,
    grown,
    widened,
)
from attention.training.runs import load_run
from attention.worlds import registry

CELLS = 16
SIDE = CELL * CELLS


def random_maps(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_share_is_what_a_guided_filter_makes_of_a_mask():
    guide = random_maps(1, 3, SIDE, SIDE) * 2 - 1
    mask = torch.zeros(1, 1, CELLS, CELLS)
    mask[..., 2:13] = random_maps(1, 1, CELLS, 11, seed=1)
    wanted = torch.nn.functional.interpolate(widened((mask / SOLID).clamp(max=1)), size=(SIDE, SIDE), mode="bilinear")
    expected = GuidedFilter.of(guide, CELLS, WINDOW, FLAT)(wanted)
    share = Edges.of(guide, CELLS).share(mask)
    torch.testing.assert_close(share, ((expected - NOTHING) / (ALL - NOTHING)).clamp(0, 1))


@pytest.mark.parametrize("side", [SIDE, 4 * SIDE, SIDE // 2])
def test_a_mask_of_ones_shows_all_and_one_of_zeros_nothing_to_the_last_bit(side):
    edges = Edges.of(random_maps(2, 3, side, side) * 2 - 1, CELLS)
    assert torch.equal(edges.share(torch.ones(2, 1, CELLS, CELLS)), torch.ones(2, 1, side, side))
    assert torch.equal(edges.share(torch.zeros(2, 1, CELLS, CELLS)), torch.zeros(2, 1, side, side))


def test_an_edit_ends_where_the_picture_does_and_not_where_the_mask_does():
    side, edge = 4 * SIDE, 9 * 16 + 5                                   # the picture's edge lies within a cell
    picture = -torch.ones(1, 3, side, side)
    picture[..., edge:] = 0.2
    mask = torch.zeros(1, 1, CELLS, CELLS)
    mask[..., 10:] = 1                                                  # the mask's 11 pixels beside it
    share = Edges.of(picture, CELLS).share(mask)[0, 0]
    plain = torch.nn.functional.interpolate(mask, size=(side, side), mode="bilinear")[0, 0]
    assert share[:, edge + 2:].min() > 0.5 and share[:, :edge - 2].max() < 0.1
    assert plain[:, edge + 2:].min() < 0.1                              # it would have left a rim of the old colour


def test_a_share_that_is_known_is_given_for_its_own_mask_alone():
    edges, masks = Edges.of(random_maps(1, 3, SIDE, SIDE) * 2 - 1, CELLS), torch.zeros(2, 1, CELLS, CELLS)
    masks[0, :, :5], masks[1, :, :, 9:] = 1, 1
    fresh = [Edges.of(edges.picture, CELLS).share(mask[None]) for mask in masks]
    assert not torch.equal(*fresh)
    for number in (0, 0, 1, 0, 1):
        assert torch.equal(edges.share(masks[number][None].clone()), fresh[number])


def test_only_what_is_narrow_is_widened():
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 4:4 + NARROW, 4:20] = 1                                   # wide
    mask[..., 28:31, 22:30] = 0.8                                       # narrow, as lips are
    expected = mask.clone()
    expected[..., 28 - WIDER:31 + WIDER, 22 - WIDER:30 + WIDER] = 0.8
    assert torch.equal(widened(mask), expected)


@torch.no_grad()
def test_an_editor_that_follows_edges_changes_the_shares_and_nothing_else():
    editor = tiny_editor()
    source = editor.source(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
    styles = editor.mapper(source.styles, torch.randn(2, 8, generator=torch.Generator().manual_seed(2)), 1.0)
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :, 9:] = 1
    plain = editor.apply(source, styles, mask)
    editor.follows_edges = True
    edit, share = editor.apply(source, styles, mask), source.edges.share(mask)
    torch.testing.assert_close(edit.image, source.image + share * (plain.image - source.image), atol=1e-5, rtol=0)
    untouched = (share == 0).expand_as(edit.image)
    assert untouched.any() and torch.equal(edit.image[untouched], source.image[untouched])
    assert not torch.equal(plain.image[untouched], source.image[untouched])             # the convolutions' reach
    assert torch.equal(editor.apply(source, styles, mask, edges=False).image, plain.image)
    other = editor.apply(source, styles, mask.flip(3), edit)                        # a further edit keeps the one before
    kept = (source.edges.share(mask.flip(3)) == 0).expand_as(edit.image)
    assert kept.any() and torch.equal(other.image[kept], edit.image[kept])


def test_masks_grow_by_whole_cells_each_by_its_own():
    mask = torch.zeros(1, 1, CELLS, CELLS)
    mask[..., 8, 8] = 0.7
    none, one, two = grown(mask, torch.tensor([[0.4], [0.6], [2.0]]))
    assert torch.equal(none, mask[0])
    for reach, got in ((1, one), (2, two)):
        expected = torch.zeros(1, CELLS, CELLS)
        expected[:, 8 - reach:9 + reach, 8 - reach:9 + reach] = 0.7
        assert torch.equal(got, expected)


@torch.no_grad()
def test_an_edit_that_reaches_on_is_blended_so_far_and_shown_no_farther():
    editor, source, text, _, styles, mask = tiny_edit()
    plain = editor.apply(source, styles, mask, what=text)
    editor.reach.set(text, torch.tensor([[2.0]]))
    for before in (None, plain):
        shown, share = source.image if before is None else before.image, source.edges.share(mask)
        made = editor.apply(source, styles, grown(mask, torch.tensor([[2]])), before, edges=False).image
        edit = editor.apply(source, styles, mask, before, what=text)
        torch.testing.assert_close(edit.image, shown + share * (made - shown), atol=1e-5, rtol=0)
        assert torch.equal(edit.mask, mask)
    assert torch.equal(editor.apply(source, styles, mask, what=text, edges=False).image,
                       editor.apply(source, styles, mask, edges=False).image)


@torch.no_grad()
def test_a_later_edit_shows_its_own_change_and_nothing_that_an_earlier_one_hid():
    """Both at the same mask: the earlier one spares most of it, the later one takes nothing of that back."""
    editor, source, text, other, styles, mask = tiny_edit()
    editor.spared.set(text, torch.tensor([[0.8]]))
    first = editor.apply(source, styles, mask, what=text)
    assert (first.image - first.drawn).abs().max() > 0.05                               # it hid something
    again = editor.apply(source, source.styles, mask, first, what=other)                # that changes nothing
    torch.testing.assert_close(again.image, first.image, atol=1e-5, rtol=0)
    later = editor.mapper(source.styles, other, 1.0)
    edit = editor.apply(source, later, mask, first, what=other)
    change, share = edit.drawn - first.drawn, source.edges.share(mask)
    torch.testing.assert_close(edit.image, first.image + share * change, atol=1e-5, rtol=0)
    assert change.abs().max() > 0.05


@pytest.fixture(scope="module")
def following():
    """The shipped editor of drawn faces, with edges."""
    plain = load_editor("drawn")
    region_editor = plain.region_editor.with_generator(plain.world.generator)
    region_editor.follows_edges = True
    return Editor(region_editor, plain.world, plain.identity)


def test_a_recipe_remembers_whether_its_edits_followed_edges(following, tmp_path, monkeypatch):
    plain = load_editor("drawn")
    edited, before = following.open_seed(7).edit("grey hair"), plain.open_seed(7).edit("grey hair")
    assert not torch.equal(edited.tensor, before.tensor)
    edited.save(tmp_path / "edges.png")
    assert torch.equal(plain.replay(tmp_path / "edges.png").tensor, edited.tensor)
    recipe = {**before.recipe, "changes": [{key: value for key, value in change.items() if key != "edges"}
                                           for change in before.recipe["changes"]]}
    monkeypatch.setattr(type(before), "recipe", recipe)                 # from before there were edges
    before.save(tmp_path / "before.png")
    assert torch.equal(following.replay(tmp_path / "before.png").tensor, before.tensor)


def test_what_gives_way_to_a_later_change_does_so_inside_and_stays_outside(following):
    face = following.open_seed(7)
    first = face.edit("grey hair")
    second = first.edit("purple hair", "hair", replace=True)
    share = dataclasses.replace(face.source, image=first.tensor).edges.share(second.mask)
    kept = (share == 0).expand_as(first.tensor)
    assert kept.any() and torch.equal(second.tensor[kept], first.tensor[kept])


def test_edits_of_a_photo_follow_the_photos_edges(following):
    photo = np.asarray(following.open_seed(12).image)
    opened = following.open_photo(photo, aligned=True, refine=0)
    square = torch.from_numpy(opened.photo.square(128)).permute(2, 0, 1)[None] / 127.5 - 1
    mask = random_maps(1, 1, 64, 64).round()
    torch.testing.assert_close(opened.source.edges.share(mask), Edges.of(square, 64).share(mask), atol=1e-3, rtol=0)
    assert (opened.source.image - square).abs().mean() > 0.01           # which the inversion's are not


def test_a_photo_stays_as_it_is_where_an_edit_does_not_show(following, monkeypatch):
    """Of lips in a mask of lips and skin: nothing of what the latent makes of the skin comes with them."""
    spared = ByText(otherwise=0.0)
    spared.set(following.embed("red lipstick"), torch.tensor([[0.5]]))
    monkeypatch.setattr(following.region_editor, "spared", spared)
    photo = following.open_seed(12).image
    edit = following.open_photo(photo, aligned=True, refine=0).edit("red lipstick")
    source = edit.source
    lips = like_lips(source.edges.picture, edit.mask, spared(following.embed("red lipstick")), source.image)
    share = (source.edges.share(edit.mask) * lips)[0, 0].numpy()
    changed = (np.asarray(edit.image) != np.asarray(photo)).any(axis=2)
    blended = torch.nn.functional.interpolate(edit.mask, size=share.shape, mode="bilinear")[0, 0].numpy()
    assert (blended[share == 0] > 0.25).sum() > 20                      # by which it was made
    assert not changed[share == 0].any() and changed[share > 0.9].mean() > 0.9
    mask = np.asarray(edit.mask_image)
    assert (mask[share == 0] == 0).all() and (mask[share == 1] == 255).all()


def test_edges_are_followed_where_the_world_asks_for_it(monkeypatch):
    assert not load_run(SHIPPED)[0].follows_edges
    monkeypatch.setitem(registry.WORLDS, "drawn", dataclasses.replace(registry.WORLDS["drawn"], follows_edges=True))
    assert load_run(SHIPPED)[0].follows_edges
