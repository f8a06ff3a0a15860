"""Edits put back into photos: what must not be touched, what stays of a photo, and what does not."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from test_photo import noise, turned

from attention.editing.placed import Placed
from attention.editing.session import Editor, load_editor
from attention.inversion.frame import HUE, SET, Frame, kept_detail

SQUARE, ALL = Frame(np.array([320.0, 320]), np.array([320.0, 0])), np.ones((640, 640))


def test_where_the_mask_is_empty_the_photo_stays_bit_for_bit():
    photo = Image.fromarray(noise(300, 400))
    frame = Frame(np.array([180.0, 140]), turned(np.array([[90.0, 0]]), 25, 1, 0)[0])
    before, after = noise(64, 64, 1), noise(64, 64, 2)
    mask = np.zeros((64, 64))
    assert np.array_equal(np.asarray(frame.put_back(photo, before, after, mask)), np.asarray(photo))
    mask[20:30, 20:40] = 1
    changed = (np.asarray(frame.put_back(photo, before, after, mask)) != np.asarray(photo)).any(axis=2)
    rows, columns = np.nonzero(changed)
    offset = np.stack([columns + 0.5, rows + 0.5], axis=1) - frame.center
    across, down = (offset @ axis / frame.half**2 for axis in (frame.right, frame.down))      # in [-1, 1]
    assert len(rows) > 100
    pixel = 2 / 64                                              # interpolation reaches one pixel of the square further
    assert (across >= 20 * pixel - 1 - pixel).all() and (across <= 40 * pixel - 1 + pixel).all()
    assert (down >= 20 * pixel - 1 - pixel).all() and (down <= 30 * pixel - 1 + pixel).all()


@pytest.mark.parametrize("change", [2, 12, 40])
@pytest.mark.parametrize("half", [20, 90, 300])
def test_a_change_arrives_at_any_size_even_past_the_edge_a_small_one_added_a_large_one_set(half, change):
    photo = Image.new("RGB", (400, 300), (100, 100, 100))
    frame = Frame(np.array([150.0, 150]), turned(np.array([[half, 0.0]]), -15, 1, 0)[0])
    before, after = np.full((64, 64, 3), 50, np.uint8), np.full((64, 64, 3), 50 + change, np.uint8)
    result = np.asarray(frame.put_back(photo, before, after, np.ones((64, 64))))
    expected = 100 + change - (100 - 50) * (1 - np.exp(-3 * change**2 / SET**2))
    assert (result[150 - half // 2:150 + half // 2, 150 - half // 2:150 + half // 2] == round(expected)).all()
    assert result.shape == (300, 400, 3)


def test_an_edit_of_nothing_puts_nothing_back():
    photo, frame = Image.fromarray(noise(100, 100)), Frame(np.array([50.0, 50]), np.array([30.0, 10]))
    same = noise(64, 64, 1)
    assert np.array_equal(np.asarray(frame.put_back(photo, same, same, np.ones((64, 64)))), np.asarray(photo))


@pytest.mark.parametrize("made, kept", [
    (lambda before: before, 1), (lambda before: 40 + 0.5 * before, 0.5), (lambda before: before * 4, 1.5),      # at most
    (lambda before: 255 - before, 0), (lambda before: noise(600, 600, 9).astype(float), 0)])
def test_detail_is_kept_as_far_as_an_edit_follows_it(made, kept):
    before = noise(600, 600, 3).astype(np.float32)
    assert kept_detail(before, made(before).astype(np.float32))[20:-20, 20:-20].mean() == pytest.approx(kept, abs=0.05)
    flat = np.full((600, 600, 3), 80, np.float32)
    assert (kept_detail(flat, flat + 50) == 1).all()                                        # there is nothing to follow
    assert kept_detail(flat, flat / 2).mean() == pytest.approx(0.5, abs=0.01)               # and half of the light is left


def test_a_recoloured_part_keeps_the_photo_s_own_detail_and_a_new_one_shows_nothing_of_it():
    frame, whole = Frame(np.array([320.0, 320]), np.array([320.0, 0])), np.ones((640, 640))
    strands = noise(640, 640, 5).astype(float) / 4 + 60
    misfit = 30 * np.sin(np.arange(640) / 25)[None, :, None] * np.ones((640, 1, 3))          # what the inversion missed
    photo = Image.fromarray((strands + misfit).round().astype(np.uint8))
    before, other = strands.astype(np.uint8), noise(640, 640, 6)
    for change, stays in ((2, misfit), (60, 0)):                # a colour that is set is that of the edit
        recoloured = np.asarray(frame.put_back(photo, before, before + np.uint8(change), whole)).astype(float)
        assert np.abs(recoloured - (strands + stays + change))[20:-20, 20:-20].mean() < 2
    replaced = np.asarray(frame.put_back(photo, before, other, whole)).astype(float)
    assert np.abs(replaced - other)[20:-20, 20:-20].mean() < 4


def bars(*places, side=640):
    """(side, side) 1 in bars of 40 rows from these rows on, 0 beside them."""
    found = np.zeros((side, side))
    for place in places:
        found[place:place + 40] = 1
    return found[..., None]


def pixels(*terms):
    """(side, side, 3) uint8 of colours and maps that are added up."""
    return np.clip(sum(np.asarray(term, float) for term in terms), 0, 255).round().astype(np.uint8)


def test_what_is_drawn_anew_shows_no_teeth_that_the_photo_has_beside_the_generator_s():
    """A mouth that closes: the generator's teeth go, and the photo's, 30 pixels lower, too."""
    skin, teeth, lip = np.array([150, 110, 90]), np.array([90, 120, 130]), np.array([30, -30, -20])
    photo = Image.fromarray(pixels(np.ones((640, 640, 1)) * skin, bars(330) * teeth))
    before = pixels(np.ones((640, 640, 1)) * skin, bars(300) * teeth)
    after = pixels(np.ones((640, 640, 1)) * skin, bars(300, 330).clip(0, 1) * lip)
    plain, anew = (np.asarray(SQUARE.put_back(photo, before, after, ALL, drawn)).astype(float) for drawn in (None, ALL))
    ghost = slice(345, 365)
    assert np.abs(plain - after)[ghost].mean() > 12                                     # or it is a test of nothing
    assert np.abs(anew - after)[ghost].mean() < 6
    assert np.array_equal(np.asarray(SQUARE.put_back(photo, before, after, ALL, 0 * ALL)), plain)


@pytest.mark.parametrize("turn", [0, 40])
def test_what_is_drawn_anew_has_the_photo_s_hue_unless_it_sets_another_one(turn):
    """A generator that is pinker than the photo, and an edit of new structure, darker by 4, that turns blue by `turn`."""
    away, hue = np.array([-20, 0, 20]), np.array([0, 0, 1])
    before, other = noise(640, 640, 3) // 4 + 100, noise(640, 640, 4) // 4 + 96
    photo, after = Image.fromarray(pixels(before, away)), pixels(other, turn * hue)
    plain, anew = (np.asarray(SQUARE.put_back(photo, before, after, ALL, drawn)).astype(float) for drawn in (None, ALL))
    turned_by = turn * hue - turn / 3
    expected = away * np.exp(-np.square(turned_by).sum() / HUE**2)
    middle = slice(60, -60), slice(60, -60)
    assert np.abs((plain - after)[middle].mean(axis=(0, 1))).max() < 5                  # as the generator drew it
    np.testing.assert_allclose((anew - after)[middle].mean(axis=(0, 1)), expected, atol=2)


def test_what_is_drawn_anew_and_changes_nothing_leaves_the_photo_as_it_is():
    photo, same = Image.fromarray(noise(640, 640)), noise(640, 640, 1)
    assert np.array_equal(np.asarray(SQUARE.put_back(photo, same, same, ALL, ALL)), np.asarray(photo))


def test_changes_that_keep_no_structure_and_end_at_edges_are_drawn_anew(monkeypatch):
    plain = load_editor("drawn")
    region_editor = plain.region_editor.with_generator(plain.world.generator)
    region_editor.follows_edges = True
    region_editor.structure = type(region_editor.structure)(otherwise=0.0)
    region_editor.structure.set(plain.embed("purple hair"), torch.ones(1, 1))
    editor, given = Editor(region_editor, plain.world, plain.identity), []
    monkeypatch.setattr(Placed, "put_back", lambda self, before, after, share, anew=None: given.append((share, anew)))
    face, square = editor.open_seed(3), Placed(editor.open_seed(3).image, Frame(np.array([64.0, 64]), np.array([64.0, 0])))
    hair, lips = (face.edit(what) for what in ("purple hair", "red lipstick"))
    for edit in (hair, lips, hair.edit("red lipstick"), face.take_styles(editor.open_seed(5), "hair"),
                 lips.with_changes([dataclasses.replace(lips.changes[0], edges=False)])):
        edit.put_back(square)
    (_, kept), (mask, drawn), (both, one), (whole, taken), (_, old) = given
    assert kept is None and old is None
    assert np.array_equal(mask, drawn) and np.array_equal(whole, taken)
    assert np.array_equal(one, mask) and (both > one).any()
