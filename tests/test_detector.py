"""Faces in photos: a real one, turned, dark, small or spoilt; and what is no face."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from attention.editing.colours import Tone
from attention.editing.detector import load_detector, turned, turned_back
from attention.editing.photo import find_landmarks
from attention.errors import UserError
from attention.inversion import dlib_models
from attention.inversion.frame import ffhq_frame

samples = pytest.importorskip("skimage.data", reason="the photos are scikit-image's")

def test_a_detector_that_is_cut_short_is_told_with_the_command_that_mends_it(tmp_path, monkeypatch):
    pytest.importorskip("dlib", reason="faces are found with the extra photos")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / dlib_models.DETECTOR).write_bytes(b"\0" * 1000)
    monkeypatch.setattr(dlib_models, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    load_detector.cache_clear()
    with pytest.raises(UserError, match=r"landmarks\.dat cannot be read .* pip install --force-reinstall .*, or give"):
        load_detector()


@pytest.fixture(scope="module")
def portrait():
    """A real photo, 512 px, in the public domain, and where a person sees its eyes and the corners of its mouth."""
    pytest.importorskip("dlib", reason="faces are found with the extra photos")
    return Image.fromarray(samples.astronaut()), np.array([[203, 101], [247, 104], [201, 139], [246, 141]])


def corners(frame):
    return np.array([frame.center + x * frame.right + y * frame.down for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))])


def test_a_face_is_found_where_a_person_sees_it(portrait):
    photo, seen = portrait
    points = find_landmarks(photo, load_detector())
    found = np.array([points[36:42].mean(0), points[42:48].mean(0), points[48], points[54]])
    assert np.abs(found - seen).max() < 4


LOOKS, TURNS = ("as it is", "dark", "grey", "half", "jpeg"), (180, 90, 0, 20, -30)


@pytest.mark.parametrize(("look", "degrees"), [          # each look with a turn of its own; another pair takes a second
    pytest.param(look, degrees, marks=() if LOOKS.index(look) == TURNS.index(degrees) else pytest.mark.slow)
    for look in LOOKS for degrees in TURNS])
def test_a_turned_dark_small_or_spoilt_face_is_found_in_the_same_frame(portrait, degrees, look):
    """To 2.5 % of the frame's side, against the frame in the photo as it is."""
    whole, truth = portrait[0], corners(ffhq_frame(find_landmarks(portrait[0], load_detector())))
    photo, scale = turned(whole, degrees), 0.5 if look == "half" else 1
    if look == "dark":
        photo = photo.point(lambda level: level * 0.1)
    elif look == "grey":
        photo = photo.convert("L").convert("RGB")
    elif look == "half":
        photo = photo.resize([side // 2 for side in photo.size], Image.Resampling.BOX)
    elif look == "jpeg":
        photo.save(file := io.BytesIO(), "JPEG", quality=30)
        photo = Image.open(file).convert("RGB")
    found = turned_back(corners(ffhq_frame(find_landmarks(photo, load_detector()))) / scale, degrees, whole.size)
    assert np.linalg.norm(found - truth, axis=1).max() < 0.025 * np.linalg.norm(truth[1] - truth[0])


def test_no_face_is_found_in_a_cat_in_noise_or_where_the_face_is_too_small(portrait):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    for photo in (Image.fromarray(samples.cat()), Image.fromarray(noise), portrait[0].resize((64, 64))):
        with pytest.raises(UserError, match="no face was found in the photo; give a larger"):
            find_landmarks(photo, load_detector())


def test_photographs_of_colours_have_no_tone():
    astronaut, cat, coffee = (picture() for picture in (samples.astronaut, samples.cat, samples.coffee))
    assert all(Tone.of(picture) is None for picture in (astronaut, astronaut[:200, 130:330], cat, coffee))
