"""Editing for people, with the shipped editor: chains, recipes, what a region starts from, and mistakes."""

import base64
import io
import json
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin

import attention
from attention.editing import recipes
from attention.editing import session as editing
from attention.editing.recipes import RECIPE_KEY, pack, pixel_hash, read_recipe
from attention.editing.session import COVERAGE
from attention.errors import UserError
from attention.method.mapper import STRENGTH
from attention.method.spatial_attention import threshold_for
from attention.worlds.drawn.faces import FaceParams, draw_faces, landmarks
from attention.worlds.drawn.photos import POINTS
from benchmarks import editing as benchmark

REACH = 8           # pixels of the picture beyond a mask that later convolutions can change


@pytest.fixture(scope="module")
def editor():
    return attention.load_editor("drawn", device="cpu")


def square(side=64, start=20, end=36):
    mask = np.zeros((side, side), np.uint8)
    mask[start:end, start:end] = 255
    return mask


def beyond(mask, side):
    """(side, side) where a picture is further than REACH from a mask (1, 1, h, h)."""
    grown = F.max_pool2d(F.interpolate((mask > 0).float(), size=(side, side)), 2 * REACH + 1, stride=1, padding=REACH)
    return grown[0, 0] == 0


# --- one edit

def test_an_edit_is_what_the_method_computes(editor):
    edit = editor.edit(7, "grey hair", "hair", strength=0.15, coverage=0.6)
    text, where = (editor.world.clip.encode_text([words]) for words in ("grey hair", "hair"))
    with torch.no_grad():
        source = editor.region_editor.source(editor.world.sample_w(1, 7))
        expected = editor.region_editor(source, text, where, strength=0.15, threshold=threshold_for(0.6))
    assert torch.equal(edit.tensor, expected.image) and torch.equal(edit.mask, expected.mask)
    assert edit.image.size == (editor.world.generator.resolution,) * 2


def test_strength_zero_changes_no_bit(editor):
    assert torch.equal(editor.edit(7, "grey hair", strength=0.0).tensor, editor.open(7).tensor)


def test_a_latent_is_the_same_source_as_its_seed(editor):
    w = editor.world.sample_w(1, 7)
    for source in (w, w[0], w[0].numpy(), w.expand(editor.world.generator.n_latent, -1)):
        torch.testing.assert_close(editor.open(source).tensor, editor.open(7).tensor, rtol=0, atol=1e-5)


def test_regions_and_masks_say_where(editor):
    opened = editor.open(7)
    chosen = torch.mode(opened.regions.flatten()).values.item()
    by_region = opened.edit("purple hair", chosen)
    inside = opened.regions == chosen
    # A blurred mask is one where all of the 5 x 5 pixels around are inside.
    core = F.avg_pool2d(F.pad(inside[None, None].float(), [2] * 4, mode="reflect"), 5, stride=1)[0, 0] == 1
    assert core.any() and torch.allclose(by_region.mask[0, 0][core], torch.tensor(1.0))
    assert not by_region.mask[0, 0][F.max_pool2d(inside[None].float(), 5, stride=1, padding=2)[0] == 0].any()
    painted = opened.edit("purple hair", square())
    assert torch.equal(painted.mask[0, 0] > 0, torch.from_numpy(square() > 0))


def test_the_styles_of_another_face_fill_the_region_exactly(editor):
    generator, whole = editor.world.generator, np.full((64, 64), 255, np.uint8)
    transferred, count = editor.edit(7, 11, whole, exact=True), len(editor.region_editor.edited)
    mine, theirs = editor.open(7).styles, editor.open(11).styles
    with torch.no_grad():
        expected = generator.synthesis(theirs[:count] + mine[count:]).image
    torch.testing.assert_close(transferred.tensor, expected, rtol=0, atol=1e-5)


def test_a_face_can_say_what_by_how_clip_sees_it(editor):
    edit, other = editor.edit(7, 11, "hair"), editor.open(11)
    embedding = editor.world.clip.encode_image(other.tensor)
    with torch.no_grad():
        expected = editor.region_editor(edit.source, embedding, editor.world.clip.encode_text(["hair"]),
                                        threshold=threshold_for(0.8))
    torch.testing.assert_close(edit.tensor, expected.image, rtol=0, atol=1e-5)


# --- chains

def test_outside_a_later_region_the_picture_equals_the_last_edit_to_the_bit(editor):
    first = editor.edit(7, "grey hair")
    second = first.edit("red lipstick", "lips")
    untouched = beyond(second.mask, second.tensor.shape[-1])
    assert untouched.any() and (second.mask > 0).any()
    assert torch.equal(second.tensor[..., untouched], first.tensor[..., untouched])
    assert not torch.equal(second.tensor, first.tensor)


def test_a_later_change_of_the_same_region_adds_to_it_unless_it_replaces(editor):
    first, alone = (editor.edit(7, what, square()) for what in ("grey hair", "purple hair"))
    layer = editor.region_editor.layer
    added, replaced = (first.edit("purple hair", square(), replace=replaces) for replaces in (False, True))
    features = [edited.edits[-1].features[layer] for edited in (first, alone, added)]
    torch.testing.assert_close(features[2], features[0] + features[1] - first.source.features[layer], rtol=1e-4, atol=1e-4)
    # The mask is all or nothing, so nothing of the first change is left under one that replaces it.
    torch.testing.assert_close(replaced.tensor, alone.tensor, rtol=0, atol=1e-5)
    assert not torch.allclose(added.tensor, alone.tensor, atol=1e-2)


def test_a_chain_keeps_what_a_change_of_strength_zero_lies_over(editor):
    edited = editor.edit(7, "red lipstick", "lips").edit("purple hair")
    assert torch.equal(edited.edit("pale skin", strength=0.0).tensor, edited.tensor)
    assert torch.equal(edited.edit("beard", np.full((64, 64), 255, np.uint8), strength=0.0).tensor, edited.tensor)


def test_the_order_of_changes_does_not_matter(editor):
    edited = editor.edit(7, "grey hair", square()).edit("red lipstick", square(start=30, end=50)).edit("beard", square())
    turned = edited.with_changes(edited.changes[::-1])
    torch.testing.assert_close(turned.tensor, edited.tensor, rtol=0, atol=1e-4)


def test_undo_gives_the_picture_before(editor):
    first = editor.edit(7, "grey hair")
    assert torch.equal(first.edit("beard").undo().tensor, first.tensor)
    assert torch.equal(first.undo().tensor, editor.open(7).tensor)
    with pytest.raises(UserError, match="nothing to undo"):
        editor.open(7).undo()


def test_changes_can_be_put_in_another_order(editor):
    edited = editor.edit(7, "grey hair").edit("red lipstick", "lips")
    turned = edited.with_changes(edited.changes[::-1])
    assert torch.equal(turned.mask, edited.undo().mask) and [change.what for change in turned.changes] == [
        "red lipstick", "grey hair"]


def test_moving_a_slider_attends_once(editor, monkeypatch):
    real, asked = editor.region_editor.attend, []
    monkeypatch.setattr(editor.region_editor, "attend", lambda *arguments: asked.append(1) or real(*arguments))
    opened = editor.open(9)
    masks = [opened.edit("grey hair", "hair", strength, coverage).mask for strength, coverage in
             ((0.05, 0.5), (0.1, 0.5), (0.2, 1.0))]
    assert len(asked) == 1 and torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_a_slider_changes_the_last_change_and_redoes_nothing_that_it_does_not_touch(editor, monkeypatch):
    edited = editor.edit(9, "grey hair").edit("beard")
    stronger, wider = (edited.undo().edit("beard", **options) for options in ({"strength": 0.2}, {"coverage": 1.0}))

    def refuse(*arguments, **options):
        raise AssertionError("this depends on neither strength nor coverage")

    for owner, name in ((editor.region_editor, "source_of"), (editor.region_editor, "attend"), (editor, "_embed"),
                        (editor.region_editor.regions, "assign"), (editor.world.generator, "mapping")):
        monkeypatch.setattr(owner, name, refuse)
    assert torch.equal(edited.retouch(0.2, COVERAGE).tensor, stronger.tensor)
    assert torch.equal(edited.retouch(STRENGTH, 1.0).tensor, wider.tensor)
    assert edited.retouch(0.2, COVERAGE).changes == stronger.changes


def test_the_benchmark_says_no_text_twice_and_writes_what_it_prints(tmp_path, monkeypatch, capsys, editor):
    said = []
    monkeypatch.setattr(benchmark, "start", lambda: None)
    monkeypatch.setattr(benchmark, "load_editor", lambda *arguments, **options: editor)
    monkeypatch.setattr(editor, "embed", lambda text: said.append(text) or editor._embed(text))
    report = json.loads(benchmark.main(["--repeats", "2", "--out", str(tmp_path / "editing.json")]).read_text())
    new = [text for text in said if text != benchmark.FIRST]
    assert len(new) == len(set(new)) + 2                        # what says where as well: embedded for both
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()[4:]]
    assert [[name, *(f"{1000 * values[key]:.0f}" for key in ("median", "min", "max"))]
            for name, values in report["seconds"].items()] == rows


# --- recipes

def test_a_saved_picture_can_be_made_again_pixel_by_pixel(editor, tmp_path):
    face = editor.world.sample_w(1, 3)
    edited = (editor.edit(face, "grey hair").edit("red lipstick", [3, 5], strength=0.2).edit("beard", square(128, 60, 90))
              .edit(11, "hair", exact=True).edit(12, "eyes", replace=True))
    path = edited.save(tmp_path / "edited.png")
    again = editor.replay(path)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(again.image))
    assert torch.equal(again.tensor, edited.tensor) and again.recipe == edited.recipe


def test_a_recipe_keeps_any_text_as_text(editor, tmp_path):
    what = "серые волосы 💇 <b>'; rm -rf \"$HOME\""
    with pytest.warns(UserWarning, match="does not know"):
        edited = editor.edit(7, what)
    assert read_recipe(edited.save(tmp_path / "edited.png"))["changes"][0]["what"] == what


def test_only_png_can_hold_a_recipe(editor, tmp_path):
    with pytest.raises(UserError, match=r"edited\.jpg does not end in \.png"):
        editor.open(7).save(tmp_path / "edited.jpg")
    assert not list(tmp_path.iterdir())


def written(path, text):
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt(RECIPE_KEY, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)


def large_mask():
    """A grey PNG that is not of the blend layer's side, in base64."""
    file = io.BytesIO()
    Image.new("L", (65, 64), 255).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("text, message", [
    (None, "has no recipe"), ("[1]", "has no recipe"), ("{", "cannot be read"),
    (json.dumps({"editor": "other"}), "was made by the editor other"),
    (json.dumps({"editor": "{identity}", "source": {}, "changes": []}), "has a garbled recipe"),
    (json.dumps({"editor": "{identity}", "source": {"seed": 1}, "changes": [{"why": 1}]}), "has a garbled recipe"),
    *((json.dumps({"editor": "{identity}", "source": {"seed": 1}, "changes": [{"what": "a", "where": "a"} | garbled]}),
       "has a garbled recipe")
      for garbled in ({"where": {"mask": "?"}}, {"where": {}}, {"what": {"embedding": 1}}, {"what": 3},
                      {"where": {"mask": large_mask()}})),
    ("[" * 100_000, "cannot be read"),
    ('{"changes": [' + "1," * 1000 + "1]}", "has a recipe of 1,001 changes, but at most"),
])
def test_pictures_without_a_whole_recipe_of_this_editor_are_refused(text, message, editor, tmp_path):
    written(tmp_path / "a.png", text and text.replace("{identity}", editor.identity))
    with pytest.raises(UserError, match=rf"^\S*a\.png {message}"):
        editor.replay(tmp_path / "a.png")


def test_a_recipe_that_is_too_long_is_not_read(editor, tmp_path, monkeypatch):
    path = editor.edit(7, "beard").save(tmp_path / "a.png")
    monkeypatch.setattr(recipes, "LONGEST_RECIPE", len(json.dumps(read_recipe(path))) - 1)
    with pytest.raises(UserError, match=r"a\.png has a recipe of \d+ characters, but at most \d+ are read"):
        editor.replay(path)


@pytest.mark.parametrize("place", [[1, 2, 3], [float("nan"), 1], ["left", "top"]])
def test_a_recipe_whose_face_is_nowhere_is_refused(place, editor, tmp_path):
    photo = Image.new("RGB", (32, 32))
    said = {"name": "a.jpg", "sha256": pixel_hash(photo), "center": place, "right": [16.0, 0.0]}
    written(tmp_path / "a.png", json.dumps({"editor": editor.identity, "changes": [],
                                            "source": {"w": pack(editor.world.sample_w(1, 1)), "photo": said}}))
    with pytest.raises(UserError, match="has a garbled recipe"):
        editor.replay(tmp_path / "a.png", photo)


def test_a_photo_for_a_picture_that_is_of_none_is_refused(editor, tmp_path):
    path = editor.open(7).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is no edit of a photo"):
        editor.replay(path, Image.new("RGB", (32, 32)))


def test_a_recipe_with_an_impossible_strength_is_refused(editor, tmp_path):
    written(tmp_path / "a.png", json.dumps({"editor": editor.identity, "source": {"seed": 1},
                                            "changes": [{"what": "beard", "where": "beard", "strength": 50}]}))
    with pytest.raises(UserError, match="strength is 50"):
        editor.replay(tmp_path / "a.png")


def test_a_text_file_named_png_is_no_recipe(editor, tmp_path):
    (tmp_path / "a.png").write_text("grey hair")
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        editor.replay(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"b\.png is not a file"):
        editor.replay(tmp_path / "b.png")


# --- sheets and mistakes

def test_a_grid_shows_every_prompt_at_every_strength(editor):
    side = editor.world.generator.resolution
    with pytest.raises(UserError, match="at least one change"):
        editor.grid(7, [], [0.1])
    sheet = np.asarray(editor.grid(7, ["grey hair", "beard"], [0.05, 0.2]))
    assert sheet.shape[1] == side + 4 * (side + side // 2)
    edit = np.asarray(editor.edit(7, "beard", strength=0.05).image)
    left = side + 2 * (side + side // 2)
    assert np.array_equal(sheet[-side:, left:left + side], edit)


@pytest.mark.parametrize("source", [-1, 2**70, True, np.zeros(5), np.full(64, np.nan), np.array([None] * 64),
                                    None])
def test_sources_that_are_none_are_refused(source, editor):
    with pytest.raises(UserError, match=r"expected a (seed|whole number)"):
        editor.open(source)


@pytest.mark.parametrize("arguments, message", [
    (dict(what=""), "text is empty"), (dict(what="beard", where="  "), "text is empty"),
    (dict(what="beard", strength=-0.1), "strength is -0.1"), (dict(what="beard", strength=1.5), "strength is 1.5"),
    (dict(what="beard", strength=float("nan")), "strength is nan"), (dict(what="beard", coverage=2), "coverage is 2"),
    (dict(what="beard", where=[]), "numbers of regions from 0 to 63"),
    (dict(what="beard", where=64), "numbers of regions from 0 to 63"),
    (dict(what="beard", where=1.5), "numbers of regions from 0 to 63"),
    (dict(what="beard", strength="much"), "strength is .much."),
    (dict(what="beard", where=(square() > 0).astype(np.uint8)), "black"),
    (dict(what="beard", where=square() * 1j), "complex"),
    (dict(what="beard", where=np.zeros((64, 32))), "expected a square"),
    (dict(what="beard", where=np.zeros((64, 64))), "black"),
    (dict(what="beard", exact=True), "is the text 'beard'"),
])
def test_arguments_that_make_no_edit_are_refused(arguments, message, editor):
    with pytest.raises(UserError, match=message):
        editor.edit(7, **arguments)


def test_a_text_that_is_too_long_is_told_and_its_beginning_counts(editor):
    with pytest.warns(UserWarning, match="longer than CLIP reads"):
        edit = editor.edit(7, "grey hair " + "beard " * 1665)                    # 10,000 characters
    fitting = editor.edit(7, "grey hair " + "beard " * 20)
    assert torch.equal(edit.tensor, fitting.tensor) and len(edit.changes[0].what) == 10_000


@pytest.mark.parametrize("text, named", [
    ("grey zebra", "'zebra', and"),
    ("💇", "'💇', and"), ("灰色の髪", "'灰色の髪', and"), ("شعر رمادي", "'شعر', 'رمادي', and"),
    ("z" * 10_000, rf"'{'z' * 40}', and"),
    (" ".join(f"z{i}" for i in range(1000)), r"'z0', 'z1', 'z2', 'z3', 'z4' and 995 words more, and"),
])
def test_what_clip_does_not_know_is_named_every_time_it_is_said(text, named, editor):
    for _ in range(2):
        with pytest.warns(UserWarning) as told:
            editor.edit(7, "beard", text)
        matching = [str(warning.message) for warning in told if re.search(rf"does not know {named}", str(warning.message))]
        assert len(matching) == 1 and len(matching[0]) < 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        editor.edit(7, "purple hair", "hair")                                    # knows every word


def test_a_grid_names_what_clip_does_not_know(editor):
    with pytest.warns(UserWarning, match="'zebra'"):
        editor.grid(7, ["zebra"], [0.1])
    with pytest.raises(UserError, match="text is empty"):
        editor.grid(7, [" "], [0.1])


def test_a_mask_of_another_size_goes_to_the_same_place(editor):
    small, large = (editor.edit(7, "beard", square(side, start=side // 4, end=side // 2)) for side in (64, 512))
    assert torch.equal(small.mask, large.mask)


# --- what an independent reader tried

def test_a_picture_may_stand_wherever_a_seed_does(editor, tmp_path, monkeypatch):
    """A path, Pillow's picture or its pixels are opened as photos: their face is searched."""
    drawing = Image.fromarray(draw_faces(FaceParams.sample(1, seed=8), 256).images[0])
    points = np.concatenate([landmarks(FaceParams.sample(1, seed=8))[name] for name in POINTS])
    monkeypatch.setattr(editing, "load_detector", lambda device: lambda pixels: [spread_to_68(128 + 128 * points)])
    drawing.save(tmp_path / "face.png")
    expected = editor.open_photo(drawing).edit("purple hair")
    for source in (str(tmp_path / "face.png"), tmp_path / "face.png", drawing, np.asarray(drawing)):
        assert torch.equal(editor.edit(source, "purple hair").tensor, expected.tensor)


def spread_to_68(points):
    """(5, 2) landmarks as (68, 2): every point of a group where the group's one is."""
    found = np.repeat(points[2:3], 68, axis=0)
    for indices, point in ((range(36, 42), points[0]), (range(42, 48), points[1]), ((48,), points[3]), ((54,), points[4])):
        found[list(indices)] = point
    return found


def test_a_framed_picture_gives_its_very_styles(editor, tmp_path):
    other = editor.open(3).image
    face = editor.open_photo(other, aligned=True)
    expected = editor.edit(7, face, "hair", exact=True)
    other.save(tmp_path / "other.png")
    for what in (other, np.asarray(other), tmp_path / "other.png"):
        assert torch.equal(editor.edit(7, what, "hair", exact=True).tensor, expected.tensor)


def test_numbers_of_numpy_are_numbers(editor):
    plain = editor.edit(7, "beard", strength=0.25, coverage=0.5)
    numpy = editor.edit(7, "beard", strength=np.float32(0.25), coverage=np.float64(0.5))
    assert torch.equal(plain.tensor, numpy.tensor) and numpy.recipe == plain.recipe
    for wrong in (True, "0.1", None):
        with pytest.raises(UserError, match=r"strength is .* must be a number"):
            editor.edit(7, "beard", strength=wrong)


def test_a_grid_takes_one_text_and_strengths_of_numpy(editor):
    one = editor.grid(7, "beard", np.array([0.1, 0.2]))
    assert np.array_equal(np.asarray(one), np.asarray(editor.grid(7, ["beard"], [0.1, 0.2])))


@pytest.mark.parametrize("where", [[99], [[1]], [], [True], [-1]])
def test_a_recipe_with_regions_that_there_are_not_is_refused(editor, tmp_path, where):
    path = editor.edit(7, "beard", 3).save(tmp_path / "edited.png")
    recipe = read_recipe(path)
    recipe["changes"][0]["where"] = where
    info = PngImagePlugin.PngInfo()
    info.add_itxt(RECIPE_KEY, json.dumps(recipe))
    Image.open(path).save(path, pnginfo=info)
    with pytest.raises(UserError, match="regions"):
        editor.replay(path)


@pytest.mark.parametrize("steps", [-3, 1.5, "many"])
def test_steps_of_refinement_that_are_none_are_refused(editor, steps):
    with pytest.raises(UserError, match="refine is"):
        editor.open_photo(editor.open(3).image, aligned=True, refine=steps)
