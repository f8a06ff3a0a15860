"""Early pictures: of the same layers as whole ones, and what a slider shows while it moves."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from plain_faces import small_generator

from attention.clip_models.tiny import TinyCLIP
from attention.editing.desk import Desk
from attention.editing.edited import Change, Edited
from attention.editing.folder import ServerFolder
from attention.editing.history import summary
from attention.editing.masks import pack_mask
from attention.editing.recipes import pack
from attention.editing.session import Editor
from attention.errors import UserError
from attention.files.generator import early_generator, save_head
from attention.generator import MobileStyleGAN
from attention.method.dose import SHARES, Judge
from attention.method.editor import Place, RegionEditor
from attention.method.regions import RegionClusters
from attention.worlds.base import Part, WorldEntry
from attention.worlds.world import World


@pytest.fixture(scope="module")
def small():
    return small_generator()


def test_an_early_picture_comes_of_the_same_layers_and_a_foreign_head_is_refused(small, tmp_path):
    whole, early = small
    path = tmp_path / "early.safetensors"
    save_head(path, early.head)
    loaded = early_generator(whole, path)
    w = torch.randn(2, 8)
    torch.testing.assert_close(loaded.picture(loaded.styles(w)), early.picture(early.styles(w)), atol=2e-2, rtol=0)
    for one, other in zip(loaded.synthesis(loaded.styles(w)).features[:16], whole.synthesis(whole.styles(w)).features,
                          strict=False):
        assert torch.equal(one, other)
    other = MobileStyleGAN((8, 8, 8, 8, 8, 6, 8), style_dim=8, mapping_layers=1)
    with pytest.raises(UserError, match="is no early picture of this generator"):
        early_generator(other, path)


@pytest.fixture
def small_editor(small, tmp_path):
    """An editor of the small generator, whose world has early pictures."""
    whole, early = small
    save_head(tmp_path / "head.safetensors", early.head)
    clip = TinyCLIP(["hair", "lips"], dim=8, image_size=16, width=4, text_width=8, text_heads=2, text_layers=1).freeze()
    entry = WorldEntry("small", tmp_path / "none", ("hair", "lips"), Part("tiny", "none"),
                       early=tmp_path / "head.safetensors", preview=tmp_path / "head.safetensors")
    editor = RegionEditor(whole, RegionClusters(torch.randn(4, 8), 12, "small"), 12, 8, mapper="natural",
                          faces=whole.styles(torch.randn(100, 8))[:13])
    for parameter in editor.mapper.to_change.parameters():
        torch.nn.init.normal_(parameter)
    return Editor(editor.requires_grad_(False), World(entry, whole, "small", torch.device("cpu"), clip=clip), "small")


def test_early_edits_are_those_of_the_early_generator_whatever_came_before(small_editor):
    change = Change("lips", {"mask": pack_mask(np.eye(64), 64)}, 0.2)
    whole = small_editor.open_seed(3).edit("hair", regions=[0, 1], strength=0.3)
    early = whole.early().then(change)
    alone = small_editor.early.open_seed(3).edit("hair", regions=[0, 1], strength=0.3).then(change)
    assert early.tensor.shape[-1] == 128 and whole.then(change).tensor.shape[-1] == 512
    assert torch.equal(early.tensor, alone.tensor) and not torch.equal(early.tensor, whole.early().source.image)
    assert whole.early().source is whole.early().source                                         # made once


def test_an_early_edit_of_an_edited_face_shows_the_earlier_one_and_its_own_change(small_editor):
    """Of edits that end at edges, which are added up in pictures."""
    change = Change("lips", {"mask": pack_mask(np.eye(64), 64)}, 0.2, edges=True)
    whole = small_editor.open_seed(3).then(Change("hair", [0, 1], 0.3, edges=True))
    before, early = whole.early().tensor, whole.early().then(change)
    share = early.source.edges.share(early.mask)
    outside = (share == 0).expand_as(before)
    assert outside.any() and torch.equal(early.tensor[outside], before[outside])
    alone = small_editor.early.open_seed(3).then(Change("hair", [0, 1], 0.3, edges=True))
    assert torch.equal(before, alone.tensor) and torch.equal(early.tensor, alone.then(change).tensor)
    assert (early.tensor - before).abs().max() > 0.01
    assert whole.early() is whole.early() and any(value is whole.early().tensor for value in whole.tensors())


def test_it_does_not_matter_when_early_pictures_are_asked_for(small_editor):
    face = small_editor.open_seed(3)
    one = face.edit("hair", regions=[0, 1], strength=0.3)
    two = one.edit("lips", regions=[1], strength=0.3).edit("hair", regions=[2], strength=0.2)
    early = face.early().edit("hair", regions=[0, 1], strength=0.3)
    assert torch.equal(early.tensor, one.early().tensor) and torch.equal(early.whole().tensor, one.tensor)
    assert torch.equal(two.early().undo().tensor, two.undo().early().tensor)
    assert torch.equal(two.early().undo().undo().tensor, one.early().tensor)
    assert torch.equal(two.early().undo().whole().tensor, two.undo().tensor)
    turned = two.changes[::-1]
    assert torch.equal(two.early().with_changes(turned).tensor, two.with_changes(turned).early().tensor)
    assert torch.equal(two.early().retouch(0.1, 0.8).whole().tensor, two.retouch(0.1, 0.8).tensor)
    assert two.whole() is two and two.early().early() is two.early()


def test_what_an_early_picture_saves_is_the_whole_one(small_editor, tmp_path):
    early = small_editor.open_seed(3).edit("hair", regions=[0, 1], strength=0.3).early()
    path = early.edit("lips", regions=[2], strength=0.3).save(tmp_path / "saved.png")
    with Image.open(path) as saved:
        assert saved.size == (512, 512)
        assert np.array_equal(np.asarray(saved), np.asarray(small_editor.replay(path).image))


def test_doses_are_those_of_small_pictures_whatever_is_shown(small_editor):
    world, editor = small_editor.world, small_editor.region_editor
    assert world.preview().smallest.resolution == world.smallest.resolution == 128 and world.smallest is world.smallest
    editor.judge = Judge(lambda images: images.mean(dim=(2, 3)).repeat(1, 3)[:, :8], world.smallest)
    face, alone = small_editor.open_seed(3), small_editor.early.open_seed(3)
    small = editor.with_generator(world.smallest)
    source, text, mask = small.source(world.sample_w(1, 3)), small_editor.embed("hair"), torch.ones(1, 1, 64, 64)
    source = dataclasses.replace(source, w=None)                                # it is judged as it is
    wanted = small.doses(source, text, mask)
    assert torch.equal(editor.doses(face.source, text, mask), wanted) and 0 < wanted < SHARES[-1]
    assert torch.equal(small_editor.early.region_editor.doses(alone.source, text, mask), wanted)
    assert not torch.equal(editor.doses(dataclasses.replace(face.source, w=None), text, mask), wanted)
    held = face.source.judged
    assert len(held) == 1 and held[0].image.shape[-1] == 128 and any(value is held[0].image for value in face.tensors())


def test_the_face_that_a_photo_s_rows_share_is_early_too(small_editor):
    rows = torch.randn(1, small_editor.world.generator.n_latent, small_editor.world.generator.style_dim)
    photo = Edited(small_editor, {"w": pack(rows)}, small_editor.region_editor.source_of_photo(rows))
    early = photo.early().source.shared
    assert torch.equal(early.image, small_editor.early.open_latent(rows.mean(dim=1)).tensor)
    assert early.features is photo.source.shared.features       # made once


def test_a_slider_shows_early_pictures_and_the_whole_one_when_it_rests(small_editor):
    with ServerFolder() as folder:
        desk = Desk(small_editor, folder)
        page = desk.change(desk.show_seed(3), "hair", "regions 0, 1", 0.1, 0.8)
        moved = desk.glance(page, 0.2, 0.8)
        assert moved.steps == page.steps and moved.sliders == (0.2, 0.8) and moved.early in moved.files
        with Image.open(desk.picture(moved)) as shown:
            assert shown.size == (128, 128)
        rested = desk.rest(moved, 0.25, 0.8)
        assert rested.last.strength == 0.25 and rested.early == "" and desk.rest(rested, 0.25, 0.8) is rested
        with Image.open(desk.picture(rested)) as shown:
            whole = small_editor.open_seed(3).edit("hair", regions=[0, 1], strength=0.25).image
            assert np.array_equal(np.asarray(shown), np.asarray(whole))
        changed = desk.change(moved, "lips", "regions 0, 1", 0.1, 0.8)
        for following in (changed, desk.redo(desk.undo(moved)), desk.save(moved)):
            assert following.steps[0].change.strength == 0.2 and following.early == ""      # before it could rest


def test_a_slider_that_still_moves_after_undo_takes_no_later_step_away(small_editor):
    with ServerFolder() as folder:
        desk = Desk(small_editor, folder)
        page = desk.change(desk.show_seed(3), "hair", "regions 0, 1", 0.1, 0.8)
        page = desk.undo(desk.change(page, "lips", "regions 0, 1", 0.1, 0.8))
        again = desk.redo(desk.glance(page, 0.2, 0.8))
        assert again.at == len(again.steps) == 2 and again.early == ""
        assert [step.change.strength for step in again.steps] == [0.1, 0.1]


def test_a_reload_keeps_the_dose_that_a_slider_of_coverage_has_kept(small_editor, monkeypatch):
    """For nothing before the blend runs again while it moves, and so the dose is that of another coverage."""
    world = small_editor.world
    small_editor.region_editor.judge = Judge(lambda images: images.mean(dim=(2, 3)).repeat(1, 3)[:, :8], world.smallest)
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    monkeypatch.setattr(small_editor.region_editor, "locate", lambda *_: Place.of(ramp, ramp))
    with ServerFolder() as folder:
        desk = Desk(small_editor, folder)
        slid = desk.slide(desk.change(desk.show_seed(3), "hair", "lips", 0.3, 0.9), 0.3, 0.2)
        anew, again = desk.change(desk.show_seed(3), "hair", "lips", 0.3, 0.2), desk.begin(desk.address(slid))
        assert anew.last.dose != slid.last.dose == again.last.dose and again.changes == slid.changes
        assert torch.equal(desk.edited(again).tensor, desk.edited(slid).tensor)
        with pytest.warns(UserWarning, match="from edit 1 on: dose is -1"):
            assert not desk.begin(desk.address(slid).replace(str(slid.last.dose), "-1")).steps
        assert desk.begin('?seed=3&edit=["hair","lips",0.3,0.2]').changes == anew.changes     # as addresses were


def test_the_note_says_where_the_sliders_stand_while_they_move(small_editor):
    with ServerFolder() as folder:
        desk = Desk(small_editor, folder)
        page = desk.change(desk.show_seed(3), "hair", "lips", 0.1, 0.8)
        moved = desk.glance(page, 0.2, 0.7)
        assert "strength 0.2, coverage 0.7" in summary(moved) and "strength 0.1, coverage 0.8" in summary(page)
        assert desk.glance(page, 0.1, 0.8) is page                                      # they stand there
        assert "coverage" not in summary(desk.change(page, "hair", "regions 0, 1", 0.1, 0.8))
