"""How much of a strength suits a face, against naive searches; and that a recipe remembers it."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_editor

from attention.editing.edited import Edited
from attention.editing.recipes import pack
from attention.editing.session import Editor, load_editor
from attention.files.published import SHIPPED
from attention.method.dose import ENOUGH, SHARES, Judge, least_share
from attention.training.runs import load_run
from attention.worlds import registry


def searched(gains, shares, enough):
    """The least share, by trying many."""
    tried = np.linspace(0, shares[-1], 200_001)
    gained = np.interp(tried, [0, *shares], [0, *gains])
    return tried[(gained >= enough * max(0, *gains) - 1e-9).argmax()] if max(gains) > 0 else 1.0


@pytest.mark.parametrize("enough", [0.3, 0.87, 0.99])
def test_the_least_share_that_gains_enough_is_found(enough):
    gains = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = least_share(list(gains.T), (0.6, 1.0, 1.7), enough)
    expected = [searched(row, (0.6, 1.0, 1.7), enough) for row in gains.tolist()]
    assert found.shape == (200, 1) and (gains.amax(dim=1) < 0).any()
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-5)


@torch.no_grad()
def test_a_face_has_the_dose_that_its_own_edits_say():
    editor = tiny_editor()
    torch.manual_seed(0)
    seen = torch.nn.Conv2d(3, 8, 3)
    editor.judge = Judge(lambda images: seen(images).square().mean(dim=(2, 3)), editor.generator)
    source = editor.source(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)))
    text = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    whole = editor(source, text, text, strength=0.4, threshold=0.0)
    for face in range(3):
        alone = editor.source_of([style[face:face + 1] for style in source.styles])
        one, mask = text[face:face + 1], whole.mask[face:face + 1]
        edits = [editor.apply(alone, editor.mapper(alone.styles, one, share * editor.mapper.strength), mask)
                 for share in (0, *SHARES)]
        similar = [float(F.cosine_similarity(editor.judge.embed(edit.image.clamp(-1, 1)), one)) for edit in edits]
        dose = searched([value - similar[0] for value in similar[1:]], SHARES, ENOUGH)
        assert editor.doses(source, text, whole.mask)[face].item() == pytest.approx(dose, abs=0.02)
        plain = editor.apply(alone, editor.mapper(alone.styles, one, 0.4 * dose), mask).image
        torch.testing.assert_close(whole.image[face:face + 1], plain, atol=5e-3, rtol=0)


@pytest.fixture(scope="module")
def dosed():
    """The shipped editor of drawn faces, with doses."""
    plain = load_editor("drawn")
    region_editor = plain.region_editor.with_generator(plain.world.generator)
    region_editor.judge = Judge(plain.world.clip.encode_image, plain.world.generator)
    return Editor(region_editor, plain.world, plain.identity)


def test_a_recipe_remembers_the_dose_and_one_without_it_takes_every_strength_as_it_is(dosed, tmp_path):
    face = dosed.open_seed(7)
    edited = face.edit("purple hair")
    change, = edited.changes
    assert 0 < change.dose <= SHARES[-1] and change.dose != 1
    edited.save(tmp_path / "dosed.png")
    again = load_editor("drawn").replay(tmp_path / "dosed.png")             # by an editor that would give no dose itself
    assert np.array_equal(np.asarray(again.image), np.asarray(edited.image))
    stronger = edited.retouch(0.12, change.coverage)
    assert stronger.changes[0] == dataclasses.replace(change, strength=0.12)                # a slider finds no other dose
    assert face.resemble(np.asarray(face.image)).changes[0].dose == 1
    assert face.take_styles(dosed.open_seed(8), "hair").changes[0].dose == 1


def test_a_recipe_from_before_there_were_doses_is_replayed_as_it_was(dosed, tmp_path, monkeypatch):
    plain = load_editor("drawn").open_seed(7).edit("purple hair", strength=0.08)
    recipe = dict(plain.recipe)
    recipe["changes"] = [{key: value for key, value in change.items() if key != "dose"} for change in recipe["changes"]]
    monkeypatch.setattr(type(plain), "recipe", recipe)
    plain.save(tmp_path / "before.png")
    assert np.array_equal(np.asarray(dosed.replay(tmp_path / "before.png").image), np.asarray(plain.image))


def test_doses_are_given_where_the_world_asks_for_them(monkeypatch):
    assert load_run(SHIPPED)[0].judge is None
    entry = registry.WORLDS["drawn"]
    monkeypatch.setitem(registry.WORLDS, "drawn", dataclasses.replace(entry, dosed=True))
    editor, world, _ = load_run(SHIPPED)
    assert editor.judge == Judge(world.clip.encode_image, world.generator)


def test_of_a_photo_the_dose_is_the_mean_of_its_own_and_of_that_of_the_face_its_rows_share(dosed):
    rows = dosed.world.sample_w(1, 7)[:, None] + 0.4 * torch.randn(1, dosed.world.generator.n_latent, 1,
                                                                 generator=torch.Generator().manual_seed(1))
    photo = Edited(dosed, {"w": pack(rows)}, dosed.region_editor.source_of_photo(rows))
    found = [face.edit("purple hair", mask=np.full((64, 64), 255, np.uint8)).changes[0].dose
             for face in (photo, dosed.open_latent(rows.mean(dim=1)), dosed.open_latent(rows))]
    assert found[0] == pytest.approx((found[1] + found[2]) / 2, abs=1e-6) and found[1] != found[2]
