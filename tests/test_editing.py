"""Editing for people, with the shipped editor: chains, what a region starts from, sheets, and mistakes."""

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Calls, square
from PIL import Image

from attention.editing.session import load_editor
from attention.errors import UserError
from attention.images import to_image
from attention.method.defaults import COVERAGE, STRENGTH
from attention.method.spatial_attention import threshold_for
from benchmarks import editing as benchmark

REACH = 8           # pixels of the picture beyond a mask that later convolutions can change


def beyond(mask, side):
    """(side, side) where a picture is further than REACH from a mask (1, 1, h, h)."""
    grown = F.max_pool2d(F.interpolate((mask > 0).float(), size=(side, side)), 2 * REACH + 1, stride=1, padding=REACH)
    return grown[0, 0] == 0


# --- one edit

def test_an_edit_is_what_the_method_computes(editor):
    edit = editor.open_seed(7).edit("grey hair", "hair", strength=0.15, coverage=0.6)
    text, where = (editor.world.clip.encode_text([words]) for words in ("grey hair", "hair"))
    with torch.no_grad():
        source = editor.region_editor.source(editor.world.sample_w(1, 7))
        expected = editor.region_editor(source, text, where, strength=0.15, threshold=threshold_for(0.6))
    assert torch.equal(edit.tensor, expected.image) and torch.equal(edit.mask, expected.mask)
    assert edit.image.size == (editor.world.generator.resolution,) * 2


def test_strength_zero_changes_no_bit(editor):
    assert torch.equal(editor.open_seed(7).edit("grey hair", strength=0.0).tensor, editor.open_seed(7).tensor)


def test_a_latent_is_the_same_source_as_its_seed(editor):
    w = editor.world.sample_w(1, 7)
    for latent in (w, w[0], w[0].numpy(), w.expand(editor.world.generator.n_latent, -1)):
        torch.testing.assert_close(editor.open_latent(latent).tensor, editor.open_seed(7).tensor, rtol=0, atol=1e-5)


def test_regions_and_masks_say_where(editor):
    opened = editor.open_seed(7)
    chosen = torch.mode(opened.regions.flatten()).values.item()
    by_region = opened.edit("purple hair", regions=[chosen])
    inside = opened.regions == chosen
    # A blurred mask is one where all of the 5 x 5 pixels around are inside.
    core = F.avg_pool2d(F.pad(inside[None, None].float(), [2] * 4, mode="reflect"), 5, stride=1)[0, 0] == 1
    assert core.any() and torch.allclose(by_region.mask[0, 0][core], torch.tensor(1.0))
    assert not by_region.mask[0, 0][F.max_pool2d(inside[None].float(), 5, stride=1, padding=2)[0] == 0].any()
    painted = opened.edit("purple hair", mask=square())
    assert torch.equal(painted.mask[0, 0] > 0, torch.from_numpy(square() > 0))


def test_the_styles_of_another_face_fill_the_region_exactly(editor):
    generator, face, other = editor.world.generator, editor.open_seed(7), editor.open_seed(11)
    count = len(editor.region_editor.edited)
    with torch.no_grad():
        expected = generator.synthesis(other.styles[:count] + face.styles[count:]).image
    for everywhere in ({}, {"mask": np.full((64, 64), 255, np.uint8)}):
        torch.testing.assert_close(face.take_styles(other, **everywhere).tensor, expected, rtol=0, atol=1e-5)


def test_a_picture_can_say_what_by_how_clip_sees_it(editor, tmp_path):
    other = editor.open_seed(11).image
    edit, embedding = editor.open_seed(7).resemble(other, "hair"), editor.embedding_of(other)
    with torch.no_grad():
        torch.testing.assert_close(embedding, editor.world.clip.encode_image(to_image(np.array(other)[None])))
        expected = editor.region_editor(edit.source, embedding, editor.world.clip.encode_text(["hair"]),
                                        threshold=threshold_for(0.8))
    torch.testing.assert_close(edit.tensor, expected.image, rtol=0, atol=1e-5)
    other.save(tmp_path / "other.png")
    for picture in (np.asarray(other), tmp_path / "other.png", str(tmp_path / "other.png")):
        assert torch.equal(editor.open_seed(7).resemble(picture, "hair").tensor, edit.tensor)


# --- chains

def test_outside_a_later_region_the_picture_equals_the_last_edit_to_the_bit(editor):
    first = editor.open_seed(7).edit("grey hair")
    second = first.edit("red lipstick", "lips")
    untouched = beyond(second.mask, second.tensor.shape[-1])
    assert untouched.any() and (second.mask > 0).any()
    assert torch.equal(second.tensor[..., untouched], first.tensor[..., untouched])
    assert not torch.equal(second.tensor, first.tensor)


def test_a_later_change_of_the_same_region_adds_to_it_unless_it_replaces(editor):
    first, alone = (editor.open_seed(7).edit(what, mask=square()) for what in ("grey hair", "purple hair"))
    layer = editor.region_editor.layer
    added, replaced = (first.edit("purple hair", mask=square(), replace=replaces) for replaces in (False, True))
    features = [edited.edits[-1].features[layer] for edited in (first, alone, added)]
    torch.testing.assert_close(features[2], features[0] + features[1] - first.source.features[layer], rtol=1e-4, atol=1e-4)
    # The mask is all or nothing, so nothing of the first change is left under one that replaces it.
    torch.testing.assert_close(replaced.tensor, alone.tensor, rtol=0, atol=1e-5)
    assert not torch.allclose(added.tensor, alone.tensor, atol=1e-2)


def test_a_chain_keeps_what_a_change_of_strength_zero_lies_over(editor):
    edited = editor.open_seed(7).edit("red lipstick", "lips").edit("purple hair")
    assert torch.equal(edited.edit("pale skin", strength=0.0).tensor, edited.tensor)
    assert torch.equal(edited.edit("beard", mask=np.full((64, 64), 255, np.uint8), strength=0.0).tensor, edited.tensor)


def test_the_order_of_changes_does_not_matter(editor):
    edited = editor.open_seed(7).edit("grey hair", mask=square()).edit("red lipstick", mask=square(start=30, end=50))
    edited = edited.edit("beard", mask=square())
    turned = edited.with_changes(edited.changes[::-1])
    torch.testing.assert_close(turned.tensor, edited.tensor, rtol=0, atol=1e-4)


def test_undo_gives_the_picture_before(editor):
    first = editor.open_seed(7).edit("grey hair")
    assert torch.equal(first.edit("beard").undo().tensor, first.tensor)
    assert torch.equal(first.undo().tensor, editor.open_seed(7).tensor)
    with pytest.raises(UserError, match="nothing to undo"):
        editor.open_seed(7).undo()


def test_changes_can_be_put_in_another_order(editor):
    edited = editor.open_seed(7).edit("grey hair").edit("red lipstick", "lips")
    turned = edited.with_changes(edited.changes[::-1])
    assert torch.equal(turned.mask, edited.undo().mask) and [change.what for change in turned.changes] == [
        "red lipstick", "grey hair"]


def test_moving_a_slider_attends_once(editor):
    opened = editor.open_seed(9)
    with Calls(attention=editor.region_editor.attention) as calls:
        masks = [opened.edit("grey hair", "hair", strength=strength, coverage=coverage).mask
                 for strength, coverage in ((0.05, 0.5), (0.1, 0.5), (0.2, 1.0))]
    assert calls == {"attention": 1} and torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_a_slider_changes_the_last_change_and_redoes_nothing_that_it_does_not_touch(editor):
    edited = editor.open_seed(9).edit("grey hair").edit("beard")
    stronger, wider = (edited.undo().edit("beard", **options) for options in ({"strength": 0.2}, {"coverage": 1.0}))
    with Calls(attention=editor.region_editor.attention, mapping=editor.world.generator.style,
               text=editor.world.clip.model.transformer) as calls:
        moved = edited.retouch(0.2, COVERAGE), edited.retouch(STRENGTH, 1.0)
    assert calls == {"attention": 0, "mapping": 0, "text": 0} and all(after.source is edited.source for after in moved)
    for after, expected in zip(moved, (stronger, wider), strict=True):
        assert torch.equal(after.tensor, expected.tensor) and after.changes == expected.changes


def test_the_benchmark_says_no_text_twice(editor):
    actions, texts = benchmark.actions_of(editor, 2), editor.embed.cache_info
    for name, new in (("an edit: new text", 1), ("an edit: new text, new place", 2), ("strength only", 0)):
        for action in actions[name]:
            before = texts().misses
            action()
            assert texts().misses == before + new


# --- sheets and mistakes

def test_a_grid_shows_every_prompt_at_every_strength(editor):
    side = editor.world.generator.resolution
    with pytest.raises(UserError, match="at least one change"):
        editor.grid(editor.open_seed(7), [], [0.1])
    sheet = np.asarray(editor.grid(editor.open_seed(7), ["grey hair", "beard"], [0.05, 0.2]))
    assert sheet.shape[1] == side + 4 * (side + side // 2)
    edit = np.asarray(editor.open_seed(7).edit("beard", strength=0.05).image)
    left = side + 2 * (side + side // 2)
    assert np.array_equal(sheet[-side:, left:left + side], edit)


@pytest.mark.parametrize("seed", [-1, 2**70, True, 1.5, "7", None])
def test_seeds_that_are_none_are_refused(seed, editor):
    with pytest.raises(UserError, match=r"the seed is .* whole number"):
        editor.open_seed(seed)


@pytest.mark.parametrize("latent", [np.zeros(5), np.full(64, np.nan), np.array([None] * 64), 7, None,
                                    torch.zeros(512, dtype=torch.bool), torch.full((512,), torch.nan), [0.0] * 512])
def test_latents_that_are_none_are_refused(latent, editor):
    with pytest.raises(UserError, match=r"the latent is .* finite numbers"):
        editor.open_latent(latent)


def test_a_latent_beyond_all_faces_is_told_and_no_endless_number_is_printed(editor):
    with pytest.raises(UserError, match=r"^the latent is none of a face: its picture has values beyond 1000, where"):
        editor.open_latent(1e6 * editor.world.sample_w(1, 7))
    for opens, value in ((editor.open_seed, 10**400), (editor.open_latent, [0.5] * 512)):
        with pytest.raises(UserError) as told:
            opens(value)
        assert len(str(told.value)) < 320


@pytest.mark.parametrize("picture", [None, 5, torch.zeros(3, 64, 64), b"photo"])
def test_what_is_no_picture_is_named_with_what_is(picture, editor):
    for opens in (editor.open_photo, editor.open_seed(7).resemble):
        with pytest.raises(UserError, match=r"^the picture is .*, expected a path, a picture or an array of uint8$"):
            opens(picture)


def test_aligned_and_a_device_are_of_their_kinds(editor):
    with pytest.raises(UserError, match="aligned is 'no', expected True or False"):
        editor.open_photo(np.zeros((64, 64, 3), np.uint8), aligned="no")
    for device in (None, 5.5, "gpu"):
        with pytest.raises(UserError, match=r"--device is .*, expected auto, cpu, cuda or cuda:N"):
            load_editor("drawn", device=device)


@pytest.mark.parametrize("arguments, message", [
    (dict(what=""), "text is empty"), (dict(what="beard", where="  "), "text is empty"),
    (dict(what=11), "what is a int, expected a text; resemble takes a picture"),
    (dict(what="beard", where=[3]), r"where is a list, expected a text; say regions="),
    (dict(what="beard", strength=-0.1), "strength is -0.1"), (dict(what="beard", strength=1.5), "strength is 1.5"),
    (dict(what="beard", strength=float("nan")), "strength is nan"), (dict(what="beard", coverage=2), "coverage is 2"),
    (dict(what="beard", regions=[]), "numbers from 0 to 63"), (dict(what="beard", regions=[64]), "numbers from 0 to 63"),
    (dict(what="beard", regions=[1.5]), "numbers from 0 to 63"),
    (dict(what="beard", regions=[3], mask=square()), "regions and mask all say where"),
    (dict(what="beard", where="lips", regions=[3]), "where and regions all say where"),
    (dict(what="beard", strength="much"), "strength is .much."),
    (dict(what="beard", mask=(square() > 0).astype(np.uint8)), "black"),
    (dict(what="beard", mask=square() * 1j), "complex"),
    (dict(what="beard", mask=np.zeros((64, 32))), "expected a square"),
    (dict(what="beard", mask=np.zeros((0, 0))), "expected a square"),
    (dict(what="beard", mask=np.zeros((64, 64))), "black"),
])
def test_arguments_that_make_no_edit_are_refused(arguments, message, editor):
    with pytest.raises(UserError, match=message):
        editor.open_seed(7).edit(**arguments)


def test_only_a_square_picture_can_be_resembled_and_only_a_face_gives_styles(editor, tmp_path):
    face = editor.open_seed(7)
    with pytest.raises(UserError, match="64 x 32, expected a square one"):
        face.resemble(Image.new("RGB", (64, 32)))
    with pytest.raises(UserError, match=r"nowhere\.png is missing"):
        face.resemble(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="the face is a int"):
        face.take_styles(11)


def test_a_text_that_is_too_long_is_told_and_its_beginning_counts(editor):
    with pytest.warns(UserWarning, match="longer than CLIP reads"):
        edit = editor.open_seed(7).edit("grey hair " + "beard " * 80)
    fitting = editor.open_seed(7).edit("grey hair " + "beard " * 20)
    assert torch.equal(edit.tensor, fitting.tensor) and len(edit.changes[0].what) == 490


def test_a_mask_is_white_by_its_light_and_its_opacity_at_any_depth(editor):
    face, half = editor.open_seed(7), square().astype(np.uint16) * 257
    half[40:60, 40:60] = 9000                                                                   # 14 %
    glass = np.full((64, 64, 4), 255, np.uint8)
    glass[..., 3] = square()
    for mask in (Image.fromarray(half), half, Image.fromarray(glass)):
        found = face.edit("beard", mask=mask).mask[0, 0]
        assert float(found[24:32, 24:32].min()) == 1 and float(found[42:58, 42:58].max()) < 0.2 and found[0, 0] == 0
    with pytest.raises(UserError, match="numbers that are not finite"):
        face.edit("beard", mask=np.full((64, 64), np.nan))


def test_what_goes_wrong_without_a_text_is_told_too(editor):
    face = editor.open_seed(7)
    assert repr(face) == "<Edited: seed 7, unedited>" and "drawn" in repr(editor)
    with pytest.warns(UserWarning, match="a strength of 0.5 is beyond the usual ones, 0 to 0.3"):
        assert repr(face.edit("beard", strength=0.5)) == "<Edited: seed 7, beard>"
    with pytest.raises(UserError, match="no change to retouch"):
        face.retouch(0.1, 0.8)
    with pytest.raises(UserError, match=r"regions are \[99999\]"):
        face.edit("beard", regions=99999)
    assert np.array_equal(editor.grid(face, "beard", 0.1), editor.grid(face, "beard", [0.1]))
    assert np.array_equal(editor.grid(face, "beard"), editor.grid(face, "beard", [0.05, 0.1, 0.15, 0.2]))


def test_what_is_not_known_is_named_every_time_it_is_said(editor):
    for _ in range(2):
        with pytest.warns(UserWarning, match="'zebra'"):
            editor.open_seed(7).edit("beard", "hair of a zebra")
        with pytest.warns(UserWarning, match="'zebra'"):
            editor.grid(editor.open_seed(7), ["grey hair of a zebra"], [0.1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        editor.open_seed(7).edit("purple hair", "hair")                                    # knows every word
    with pytest.raises(UserError, match="text is empty"):
        editor.grid(editor.open_seed(7), [" "], [0.1])


def test_a_mask_of_another_size_goes_to_the_same_place(editor):
    small, large = (editor.open_seed(7).edit("beard", mask=square(side, start=side // 4, end=side // 2))
                    for side in (64, 512))
    assert torch.equal(small.mask, large.mask)


def test_numbers_of_numpy_are_numbers(editor):
    plain = editor.open_seed(7).edit("beard", strength=0.25, coverage=0.5)
    numpy = editor.open_seed(7).edit("beard", strength=np.float32(0.25), coverage=np.float64(0.5))
    assert torch.equal(plain.tensor, numpy.tensor) and numpy.recipe == plain.recipe
    for wrong in (True, "0.1", None):
        with pytest.raises(UserError, match=r"strength is .* must be a number"):
            editor.open_seed(7).edit("beard", strength=wrong)


def test_a_grid_takes_one_text_and_strengths_of_numpy(editor):
    one = editor.grid(editor.open_seed(7), "beard", np.array([0.1, 0.2]))
    assert np.array_equal(np.asarray(one), np.asarray(editor.grid(editor.open_seed(7), ["beard"], [0.1, 0.2])))


def test_a_face_of_another_world_has_no_styles_for_this_one(editor):
    world = SimpleNamespace(generator_hash="of another", name="cars")
    other = copy.copy(editor.open_seed(3))
    object.__setattr__(other, "editor", SimpleNamespace(world=world))
    with pytest.raises(UserError, match="the face is of the world cars, whose styles drawn has not"):
        editor.open_seed(7).take_styles(other, "hair")
