"""Editing for people, with the shipped editor: chains, recipes, what a region starts from, and mistakes."""

import base64
import io
import json
import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin

from attention.editing import recipes
from attention.editing.colours import Tone, lightness
from attention.editing.edited import Change
from attention.editing.placed import Placed, fading
from attention.editing.recipes import RECIPE_KEY, pack, pixel_hash, read_recipe
from attention.errors import UserError
from attention.images import to_image, to_pixels
from attention.inversion.frame import Frame
from attention.method.defaults import COVERAGE, STRENGTH
from attention.method.spatial_attention import threshold_for
from attention.worlds.drawn.faces import FaceParams, draw_faces, landmarks
from attention.worlds.drawn.photos import POINTS
from benchmarks import editing as benchmark

REACH = 8           # pixels of the picture beyond a mask that later convolutions can change


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


class Calls:
    """How often modules have run: a hook on each counts."""

    def __init__(self, **modules):
        self.counts = dict.fromkeys(modules, 0)
        self.hooks = [module.register_forward_pre_hook(partial(self.count, name)) for name, module in modules.items()]

    def count(self, name, *arguments):
        self.counts[name] += 1

    def __enter__(self):
        return self.counts

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


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


# --- recipes

def test_a_saved_picture_can_be_made_again_pixel_by_pixel(editor, tmp_path):
    face, picture = editor.open_latent(editor.world.sample_w(1, 3)), editor.open_seed(12).image
    edited = face.edit("grey hair").edit("red lipstick", regions=[3, 5], strength=0.2)
    edited = edited.edit("beard", mask=square(128, 60, 90)).take_styles(editor.open_seed(11), "hair")
    edited = edited.resemble(picture, "eyes", replace=True)
    path = edited.save(tmp_path / "edited.png")
    again = editor.replay(path)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(again.image))
    assert torch.equal(again.tensor, edited.tensor) and again.recipe == edited.recipe


def test_a_recipe_keeps_any_text_as_text(editor, tmp_path):
    what = "серые волосы 💇 <b>'; rm -rf \"$HOME\""
    edited = editor.open_seed(7).with_changes([Change(what, "hair")])
    assert read_recipe(edited.save(tmp_path / "edited.png"))["changes"][0]["what"] == what


def test_only_png_can_hold_a_recipe(editor, tmp_path):
    with pytest.raises(UserError, match=r"edited\.jpg does not end in \.png"):
        editor.open_seed(7).save(tmp_path / "edited.jpg")
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


def test_a_recipe_is_replayed_with_the_threads_that_it_was_made_with(editor, tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        made = editor.open_seed(3).edit("purple hair")
        path = made.save(tmp_path / "a.png")
        torch.set_num_threads(1)
        again = editor.replay(path)
        assert torch.equal(again.tensor, made.tensor)
        # Without it, or with another number, a rounding differs: no more than a level of a pixel.
        recipe = read_recipe(path)
        del recipe["source"]["threads"]
        written(path, json.dumps(recipe))
        other = np.asarray(editor.replay(path).image).astype(int)
        assert np.abs(other - np.asarray(made.image)).max() <= 1
    finally:
        torch.set_num_threads(before)


def garbled_recipes(editor):
    """Recipes that no edit writes, by the place that is wrong and what is wrong there."""
    def packed(*shape, value=0.0):
        return {"shape": list(shape), "float32": base64.b64encode(np.full(shape, value, "<f4").tobytes()).decode()}

    face = editor.world.generator.style_dim
    huge = packed(2_600_000)                                                             # 14 MB as text
    for seed in ("/etc/passwd", True, 1.5, -1, 10**30, None):
        yield "source", {"source": {"seed": seed}}
    for w in (packed(5, face), packed(face), packed(1, face, value=np.nan), {**packed(1, face), "shape": [1, face + 1]},
              huge, {**packed(1, face), "shape": [True, face]}, [1.0], "w"):
        yield "source.w", {"source": {"w": w}}
        yield "changes.0.what", {"changes": [{"what": {"styles_of": w}, "where": "hair"}]}
        yield "changes.0.what", {"changes": [{"what": {"embedding": w}, "where": "hair"}]}
    for where in ([1] * 2000, "hair " * 1_000_000, {"mask": "A" * 1_000_000}, {"mask": 1}, [True], "\ud800"):
        yield "changes.0.where", {"changes": [{"what": "beard", "where": where}]}
    for part in ({"strength": True}, {"strength": "0.1"}, {"coverage": [0]}, {"replace": 1}):
        yield f"changes.0.{next(iter(part))}", {"changes": [{"what": "beard", "where": "beard", **part}]}
    yield "changes.999.where", {"changes": [{"what": "a", "where": "a"}] * 999 + [{"what": "a", "where": [64]}]}
    yield "changes", {"changes": {"what": "a"}}
    yield "source", {"source": "seed"}
    yield "source.threads", {"source": {"seed": 1, "threads": 10**9}}
    yield "more than 200,000 values", {"changes": [[]] * 300_000}


def test_a_recipe_is_checked_as_a_whole_before_anything_of_it_is_done(editor, tmp_path):
    sound = {"editor": editor.identity, "source": {"seed": 1}, "changes": []}
    with Calls(generator=editor.world.generator.style) as calls:
        for place, part in garbled_recipes(editor):
            written(tmp_path / "a.png", json.dumps(sound | part))
            with pytest.raises(UserError, match=re.escape(place)) as told:
                editor.replay(tmp_path / "a.png")
            assert str(told.value).startswith(f"{tmp_path}/a.png") and len(str(told.value)) < 400
    assert calls == {"generator": 0}


def test_a_recipe_that_is_too_long_is_not_read(editor, tmp_path, monkeypatch):
    path = editor.open_seed(7).edit("beard").save(tmp_path / "a.png")
    monkeypatch.setattr(recipes, "LONGEST_RECIPE", len(json.dumps(read_recipe(path))) - 1)
    with pytest.raises(UserError, match=r"a\.png has a recipe of \d+ characters, but at most \d+ are read"):
        editor.replay(path)


@pytest.mark.parametrize("place", [[1, 2, 3], [float("nan"), 1], ["left", "top"]])
def test_a_recipe_whose_face_is_nowhere_is_refused(place, editor, tmp_path):
    photo = Image.new("RGB", (32, 32))
    said = {"name": "a.jpg", "sha256": pixel_hash(photo), "center": place, "right": [16.0, 0.0]}
    written(tmp_path / "a.png", json.dumps({"editor": editor.identity, "changes": [],
                                            "source": {"w": pack(editor.world.sample_w(1, 1)), "photo": said}}))
    with pytest.raises(UserError, match=r"has a garbled recipe \(source\.photo\.center: expected a place|NaN is no number"):
        editor.replay(tmp_path / "a.png", photo)


def test_a_photo_for_a_picture_that_is_of_none_is_refused(editor, tmp_path):
    path = editor.open_seed(7).save(tmp_path / "a.png")
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
    with pytest.raises(UserError, match=r"b\.png is missing"):
        editor.replay(tmp_path / "b.png")


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


def test_a_grid_of_a_photo_shows_the_photo_with_its_edits_put_back(editor):
    params = FaceParams.sample(1, seed=8)
    around = np.pad(draw_faces(params, 384).images[0], ((100, 116), (200, 116), (0, 0)))
    points = spread_to_68([392, 292] + 192 * np.concatenate([landmarks(params)[name] for name in POINTS]))
    face = editor.open_photo(Image.fromarray(around), landmarks=points)
    side = editor.world.generator.resolution
    sheet = np.asarray(editor.grid(face, ["purple hair"], [0.2]))[-side:].astype(int)
    crop = face.photo.square(side).astype(int)
    assert np.abs(sheet[:, :side] - crop).mean() < 2                            # the photo itself, not what was made of it
    assert np.abs(to_pixels(face.tensor)[0].astype(int) - crop).mean() > 4
    edit = face.edit("purple hair", strength=0.2)
    whole = Placed(edit.image, face.photo.frame).square(side).astype(int)       # the same from the photo at its own size
    assert np.abs(sheet[:, side:2 * side] - whole).mean() < 2 < np.abs(whole - crop).mean()


def test_a_grid_of_a_black_and_white_photo_is_black_and_white(editor):
    grey = editor.open_seed(3).image.convert("L").convert("RGB")
    with pytest.warns(UserWarning, match="black and white"):
        face = editor.open_photo(grey, aligned=True)
    side = editor.world.generator.resolution
    edit = np.asarray(editor.grid(face, ["purple hair"], [0.2]))[-side:, side:2 * side]
    assert np.ptp(edit, axis=2).max() == 0 and (edit != np.asarray(grey)).any()


@pytest.mark.parametrize("seed", [-1, 2**70, True, 1.5, "7", None])
def test_seeds_that_are_none_are_refused(seed, editor):
    with pytest.raises(UserError, match=r"the seed is .* whole number"):
        editor.open_seed(seed)


@pytest.mark.parametrize("latent", [np.zeros(5), np.full(64, np.nan), np.array([None] * 64), 7, None])
def test_latents_that_are_none_are_refused(latent, editor):
    with pytest.raises(UserError, match=r"the latent is .* finite numbers"):
        editor.open_latent(latent)


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


# --- what an independent reader tried

def test_a_photo_is_a_path_a_picture_or_its_pixels(editor, tmp_path):
    drawing = Image.fromarray(draw_faces(FaceParams.sample(1, seed=8), 256).images[0])
    points = np.concatenate([landmarks(FaceParams.sample(1, seed=8))[name] for name in POINTS])
    drawing.save(tmp_path / "face.png")
    opened = [editor.open_photo(source, detect=lambda pixels: [spread_to_68(128 + 128 * points)])
              for source in (drawing, str(tmp_path / "face.png"), tmp_path / "face.png", np.asarray(drawing))]
    for face in opened[1:]:
        assert torch.equal(face.tensor, opened[0].tensor)


def test_a_photo_takes_over_what_the_generator_made_where_a_mask_is_soft_too(editor):
    face = editor.open_seed(3)
    before = np.asarray(face.image).astype(int)
    edit = face.edit("grey hair", coverage=0.9)
    photo, frame = face.image, Frame(np.array([64.0, 64]), np.array([64.0, 0]))
    after, back = np.asarray(edit.image).astype(int), np.asarray(edit.put_back(Placed(photo, frame))).astype(int)
    share = F.interpolate(edit.mask, size=back.shape[:2], mode="bilinear")[0, 0].numpy()
    share[fading(128) < 1] = 0                                  # the edges of the square
    soft = (share > 0.3) & (share < 0.7) & (np.abs(after - before).max(axis=2) > 12)
    assert soft.sum() > 50
    assert np.abs(back - after)[share > 0.3].max() <= 1         # the generator's own picture has nothing to keep
    assert np.array_equal(back[share == 0], before[share == 0])


def test_a_black_and_white_photo_stays_so_and_that_is_told_once(editor):
    grey = np.array(editor.open_seed(3).image.convert("L").convert("RGB"))
    noisy = grey.astype(int) + np.random.default_rng(0).integers(-2, 3, grey.shape)
    noisy[:8, :30] = (250, 120, 0)                              # a stamp
    for pixels, stays in ((grey, 0), (noisy.clip(0, 255).astype(np.uint8), 6)):            # noise may grow as detail does
        with pytest.warns(UserWarning, match="the face is black and white, and so are its edits"):
            face = editor.open_photo(Image.fromarray(pixels), aligned=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            edited = np.asarray(face.edit("purple hair").image)
        changed = (edited != pixels).any(axis=2)
        assert changed.sum() > 500 and np.ptp(edited[changed], axis=1).max() <= stays
    assert Tone.of((np.asarray(editor.open_seed(3).image) * 0.06).astype(np.uint8)) is None     # it is dark


def test_a_toned_photo_keeps_its_tone_and_that_is_told(editor):
    colours, sepia = np.asarray(editor.open_seed(3).image), np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168],
                                                                      [0.272, 0.534, 0.131]])
    toned = (colours @ sepia.T * 0.8).round().clip(0, 255).astype(np.uint8)                # red is 1.44 times blue
    cyanotype = (lightness(colours)[..., None] / 255 * [215, 190, 160] + [20, 50, 80]).astype(np.uint8)
    for pixels, ratio in ((toned, lambda rgb: rgb[:, 0] / rgb[:, 2]), (cyanotype, lambda rgb: rgb[:, 2] - rgb[:, 0])):
        with pytest.warns(UserWarning, match="the face is in shades of one colour, and so are its edits"):
            face = editor.open_photo(Image.fromarray(pixels), aligned=True)
        edited = np.asarray(face.edit("purple hair").image)
        changed = (np.abs(edited.astype(int) - pixels).max(axis=2) > 8) & (edited.min(axis=2) > 40)
        assert changed.sum() > 300
        light, known = lightness(pixels).ravel(), ratio(pixels.reshape(-1, 3).astype(float))
        order = np.argsort(light)
        expected = np.interp(lightness(edited[changed]), light[order], known[order])
        assert np.abs(ratio(edited[changed].astype(float)) - expected).max() < 0.15 * np.abs(known).max()


def test_a_change_of_strength_zero_brings_nothing_of_an_earlier_one_into_a_photo(editor):
    face = editor.open_photo(editor.open_seed(3).image, aligned=True).edit("red lipstick")
    with pytest.warns(UserWarning, match="nothing changed"):
        again = face.edit("purple hair", "skin", strength=0)
    assert np.array_equal(np.asarray(again.image), np.asarray(face.image))


def test_a_change_of_a_photo_that_ends_at_the_edges_of_the_square_is_told(editor):
    drawing = draw_faces(FaceParams.sample(1, seed=8), 256).images[0]
    points = spread_to_68(128 + 128 * np.concatenate([landmarks(FaceParams.sample(1, seed=8))[name] for name in POINTS]))
    around = Image.fromarray(np.pad(drawing, ((64, 64), (64, 64), (0, 0))))
    face = editor.open_photo(around, detect=lambda pixels: [points + 64])
    with pytest.warns(UserWarning, match="fades out at the edges of the square round the face"):
        face.edit("purple hair", mask=np.ones((64, 64), bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        face.edit("red lipstick", mask=square())
        editor.open_photo(drawing, aligned=True).edit("purple hair", mask=np.ones((64, 64), bool))      # it is all there is


def spread_to_68(points):
    """(5, 2) landmarks as (68, 2): every point of a group where the group's one is."""
    found = np.repeat(points[2:3], 68, axis=0)
    for indices, point in ((range(36, 42), points[0]), (range(42, 48), points[1]), ((48,), points[3]), ((54,), points[4])):
        found[list(indices)] = point
    return found


def test_a_framed_picture_gives_the_styles_of_its_inversion(editor):
    face = editor.open_photo(editor.open_seed(3).image, aligned=True)
    other = editor.open_seed(7).take_styles(face, "hair")
    inverted = editor.open_latent(editor.world.invert(to_image(np.array(editor.open_seed(3).image)[None])).w)
    assert torch.equal(other.tensor, editor.open_seed(7).take_styles(inverted, "hair").tensor)


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


@pytest.mark.parametrize("where", [[99], [[1]], [], [True], [-1]])
def test_a_recipe_with_regions_that_there_are_not_is_refused(editor, tmp_path, where):
    path = editor.open_seed(7).edit("beard", regions=[3]).save(tmp_path / "edited.png")
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
        editor.open_photo(editor.open_seed(3).image, aligned=True, refine=steps)
