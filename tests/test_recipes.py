"""Recipes: a saved picture says how it was made, is made again to the bit, and what is none is refused."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from conftest import Calls, square
from PIL import Image, PngImagePlugin

from attention.editing import recipes
from attention.editing.edited import Change
from attention.editing.recipes import RECIPE_KEY, pack, pixel_hash, read_recipe
from attention.errors import UserError


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
