"""What of a photo is background, clothes, hair and skin (inversion/layout.py), and places that keep to its person."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attention.errors import UserError
from attention.inversion.layout import CLASSES, Layout, load_layout
from attention.inversion.small import MAPS, SmallEncoder
from attention.method.editor import ABOUT, UNSURE, Place
from attention.worlds.faces.fit import layout as layout_fit
from attention.worlds.faces.fit.layout import LayoutFit, classes_of, fit_layout, overlaps, scene
from attention.worlds.faces.parts import PARTS

COLOURS = np.array([[30, 60, 200], [20, 160, 40], [90, 50, 20], [230, 190, 160]], np.uint8)     # of CLASSES


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return SmallEncoder(torch.randn(8), torch.rand(8) + 0.5, 20).eval().requires_grad_(False)


def plain_parts(count, side=128):
    """Faces (N, side, side, 3) of one colour a class, and their parts (N, side, side): heads at random places."""
    random, found = np.random.default_rng(0), []
    rows, columns = np.mgrid[:side, :side] / side
    for _ in range(count):
        x, y = random.uniform(0.4, 0.6, 2)
        labels = np.full((side, side), PARTS.index("background"))
        labels[rows > y + 0.28] = PARTS.index("clothes")
        labels[(columns - x) ** 2 + (rows - y + 0.1) ** 2 < 0.3**2] = PARTS.index("hair")
        labels[(columns - x) ** 2 + (rows - y - 0.08) ** 2 < 0.22**2] = PARTS.index("skin")
        labels[(columns - x) ** 2 + (rows - y - 0.15) ** 2 < 0.05**2] = PARTS.index("lips")
        found.append(labels)
    labels = np.stack(found)
    return COLOURS[classes_of(labels).argmax(dim=1).numpy()], labels


def test_what_lies_in_a_face_is_skin_and_each_place_is_one_thing():
    classes = classes_of(np.arange(len(PARTS))[None, None])
    named = {part: CLASSES[int(number)] for part, number in zip(PARTS, classes.argmax(dim=1).flatten(), strict=True)}
    assert {part: name for part, name in named.items() if name != "skin"} == {name: name for name in CLASSES[:3]}
    assert torch.equal(classes.sum(dim=1), torch.ones(1, 1, len(PARTS)))


def test_a_layout_is_learned_from_faces_whose_parts_are_known(encoder):
    pixels, labels = plain_parts(24)
    layout = fit_layout(encoder, pixels[:16], labels[:16], LayoutFit(steps=16, rate=1e-2, faces=4))
    known = overlaps(layout, pixels[16:], labels[16:])
    assert list(known) == list(CLASSES) and known["hair"] > 0.5 and known["skin"] > 0.7


def test_the_maps_of_an_encoder_are_the_last_of_every_side(encoder):
    shown = torch.randn(1, 3, 128, 128)
    maps = encoder.maps(shown)
    assert [(seen.shape[1], seen.shape[-1]) for seen in maps] == [(width, 64 >> i) for i, (width, _) in enumerate(MAPS)]
    torch.testing.assert_close(encoder.head(encoder.trunk[-4:](maps[-1])).unflatten(1, (3, 8)), encoder.changes(shown))


def test_what_is_where_moves_with_the_face_and_backgrounds_are_exchanged_behind_it(monkeypatch):
    for name in ("GAMMA", "TINT", "GREY", "TURN", "SIZE", "SHIFT"):
        monkeypatch.setattr(layout_fit, name, 0.0)
    for name in ("BEHIND", "VIVID"):
        monkeypatch.setattr(layout_fit, name, 1.0)
    pixels, labels = plain_parts(8)
    faces, classes = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, classes_of(labels)
    shown, wanted = scene(faces, classes, -torch.ones_like(faces), torch.Generator().manual_seed(0))
    mirrored = [not torch.allclose(one, other, atol=1e-3) for one, other in zip(wanted, classes, strict=True)]
    assert 0 < sum(mirrored) < 8
    for one, other, turned in zip(wanted, classes, mirrored, strict=True):
        torch.testing.assert_close(one, other.flip(-1) if turned else other, atol=1e-3, rtol=0)
    inside, beside = wanted[:, 0] == 0, F.max_pool2d(1 - wanted[:, :1], 7, 1, 3)[:, 0] == 0
    inside = F.max_pool2d((~inside).float(), 7, 1, 3) == 0
    face = torch.stack([one.flip(-1) if turned else one for one, turned in zip(faces, mirrored, strict=True)])
    grey, known = shown.mean(dim=1), face.mean(dim=1)                           # whatever there is of colour
    torch.testing.assert_close(grey[inside], known[inside], atol=0.02, rtol=0)
    assert (grey[beside] - known[beside]).abs().mean() > 0.2


def test_a_saved_layout_is_nearly_the_same_and_goes_with_its_encoder_alone(encoder, tmp_path):
    torch.manual_seed(1)
    layout, shown = Layout(encoder).eval(), torch.rand(1, 3, 64, 64) * 2 - 1
    layout.save(tmp_path / "layout.safetensors", torch.int8)
    loaded = load_layout(tmp_path / "layout.safetensors", encoder)
    found, known = loaded(shown), layout(shown)
    assert found.shape == (1, 4, 128, 128) and (found - known).abs().mean() < 0.05 * known.std()
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.manual_seed(2)
    with pytest.raises(UserError, match=r"another encoder than the one that is here; make it again: .* --part layout"):
        load_layout(tmp_path / "layout.safetensors", SmallEncoder(encoder.mean, encoder.spread, 20))
    with pytest.raises(UserError, match="an encoder of the kind faces, but the world has another"):
        load_layout(tmp_path / "layout.safetensors", torch.nn.Identity())


def test_background_is_the_mean_of_looks_from_aside_and_mirrored(encoder, monkeypatch):
    """By a layout that calls every bright pixel background: the looks are put back where they came from."""
    layout = Layout(encoder).eval()
    monkeypatch.setattr(layout, "forward", lambda seen: 20 * F.pad(seen[:, :1], (0, 0, 0, 0, 0, 3)))
    photo = -torch.ones(1, 3, 128, 128)
    photo[..., 20:60, 30:50] = 1
    found = layout.background(photo)
    assert found.shape == (1, 1, 128, 128) and float(found[0, 0, 40, 40]) > 0.99 > 0.01 > float(found[0, 0, 90, 90])
    assert ((found > 0.5)[0, 0] == (photo[0, 0] > 0)).float().mean() > 0.995
    torch.testing.assert_close(layout.background(photo.flip(-1)), found.flip(-1), atol=1e-4, rtol=0)


@pytest.fixture
def halves():
    """Attention that is as large left and right of the middle, and a photo whose right half is background."""
    attention = torch.full((1, 1, 64, 64), 0.95)
    behind = torch.zeros(1, 1, 128, 128)
    behind[..., 64:] = 1
    return attention, behind


def test_of_a_photo_s_person_nothing_is_shown_on_what_is_surely_background(halves):
    attention, behind = halves
    attention[..., 40:] = 0.1                                                       # a third of the background
    place = Place.of(attention, attention)
    left = place.of_person(behind)
    assert (place.mask[..., 36] > 0.5).all() and (left.mask[..., 36:] == 0).all()
    assert torch.equal(left.mask[..., :28], place.mask[..., :28]) and torch.equal(left.raw, place.raw)
    assert torch.equal(left.at(0.2).mask[..., 36:], torch.zeros(1, 1, 64, 28))      # behind every gate
    doubtful = place.of_person(UNSURE * behind)
    assert torch.equal(doubtful.mask, place.mask)


def test_what_is_about_the_background_stays(halves):
    attention, behind = halves
    place = Place.of(attention, attention)
    assert torch.equal(place.of_person(behind).mask, place.mask)
    assert (place.mask[..., 32:].mean() > ABOUT) and torch.equal(place.of_person(0 * behind).mask, place.mask)
