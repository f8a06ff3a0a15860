"""Photos with the shipped editor of drawn faces: what is edited is put back, in the photo's own colours."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import square
from PIL import Image

from attention.editing.colours import Tone, lightness
from attention.editing.placed import Placed
from attention.errors import UserError
from attention.images import to_image, to_pixels
from attention.inversion.frame import Frame
from attention.worlds.drawn.faces import FaceParams, draw_faces, landmarks
from attention.worlds.drawn.photos import POINTS


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


def test_a_photo_is_a_path_a_picture_or_its_pixels(editor, tmp_path):
    drawing = Image.fromarray(draw_faces(FaceParams.sample(1, seed=8), 256).images[0])
    points = np.concatenate([landmarks(FaceParams.sample(1, seed=8))[name] for name in POINTS])
    drawing.save(tmp_path / "face.png")
    opened = [editor.open_photo(source, detect=lambda pixels: [spread_to_68(128 + 128 * points)])
              for source in (drawing, str(tmp_path / "face.png"), tmp_path / "face.png", np.asarray(drawing))]
    for face in opened[1:]:
        assert torch.equal(face.tensor, opened[0].tensor)


def test_the_mask_of_a_photo_is_as_large_as_the_photo_and_says_where_again(editor, tmp_path):
    params = FaceParams.sample(1, seed=8)
    around = Image.fromarray(np.pad(draw_faces(params, 384).images[0], ((100, 116), (200, 116), (0, 0))))
    points = spread_to_68([392, 292] + 192 * np.concatenate([landmarks(params)[name] for name in POINTS]))
    face = editor.open_photo(around, landmarks=points)
    edit = face.edit("purple hair", strength=0.2)
    mask, changed = np.asarray(edit.mask_image), (np.asarray(edit.image) != np.asarray(around)).any(axis=2)
    assert edit.mask_image.size == around.size
    assert not changed[mask == 0].any() and changed[mask == 255].mean() > 0.9 and 0.01 < (mask == 255).mean() < 0.4
    edit.mask_image.save(tmp_path / "mask.png")
    for again in (edit.mask_image, str(tmp_path / "mask.png")):
        place = face.edit("purple hair", mask=again).mask
        assert float((place - (edit.mask > 0.125).float()).abs().mean()) < 0.05 < float(edit.mask.mean())
    assert torch.equal(face.edit("beard", mask=edit.mask).mask > 0.5, edit.mask > 0.5)       # of the square, as it is
    outside = Image.new("L", around.size)
    outside.paste(255, (0, 0, 60, 60))
    with pytest.raises(UserError, match="black within the square round the face"):
        face.edit("beard", mask=outside)
    with pytest.warns(UserWarning, match="the mask is 50 x 50 and the photo not"):
        face.edit("beard", mask=Image.new("L", (50, 50), "white"))


def test_a_photo_takes_over_what_the_generator_made_where_a_mask_is_soft_too(editor):
    face = editor.open_seed(3)
    before = np.asarray(face.image).astype(int)
    edit = face.edit("grey hair", coverage=0.9)
    photo, frame = face.image, Frame(np.array([64.0, 64]), np.array([64.0, 0]))
    after, back = np.asarray(edit.image).astype(int), np.asarray(edit.put_back(Placed(photo, frame))).astype(int)
    share = F.interpolate(edit.mask, size=back.shape[:2], mode="bilinear")[0, 0].numpy()
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


def test_a_background_of_a_framed_photo_reaches_the_photo_s_edges(editor):
    face = editor.open_photo(editor.open_seed(3).image, aligned=True).edit("purple hair", mask=np.ones((64, 64), bool))
    changed = np.abs(np.asarray(face.image).astype(int) - np.asarray(editor.open_seed(3).image)).max(axis=2)
    made = np.abs(to_pixels(face.tensor)[0].astype(int) - to_pixels(face.source.image)[0]).max(axis=2)
    edge = np.ones((128, 128), bool)
    edge[2:-2, 2:-2] = False
    assert changed[edge & (made > 20)].mean() > 20 and (np.asarray(face.mask_image)[edge] == 255).all()


def test_a_photo_keeps_earlier_changes_beside_one_that_they_give_way_to(editor):
    face = editor.open_photo(editor.open_seed(3).image, aligned=True)
    first = face.edit("purple hair")
    second = first.edit("red lipstick", "lips", replace=True)
    beside, hair = (np.asarray(edit.mask_image) for edit in (second, first))
    before, after = np.asarray(first.image), np.asarray(second.image)
    kept = (beside == 0) & (hair == 255)
    assert kept.sum() > 500 and np.array_equal(before[kept], after[kept])
    assert (after[beside == 255] != before[beside == 255]).any()


def test_a_change_of_a_photo_that_ends_at_the_edges_of_the_square_is_told(editor):
    drawing = draw_faces(FaceParams.sample(1, seed=8), 256).images[0]
    points = spread_to_68(128 + 128 * np.concatenate([landmarks(FaceParams.sample(1, seed=8))[name] for name in POINTS]))
    around = Image.fromarray(np.pad(drawing, ((64, 64), (64, 64), (0, 0))))
    face = editor.open_photo(around, detect=lambda pixels: [points + 64])
    with pytest.warns(UserWarning, match="fades out at the edges of the square round the face"):
        edit = face.edit("purple hair", mask=np.ones((64, 64), bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lips = edit.edit("red lipstick", mask=square()).edit("red hair", mask=np.ones((64, 64), bool))  # told already
        lips.undo().undo().with_changes(lips.changes)
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


@pytest.mark.parametrize("steps", [-3, 1.5, "many"])
def test_steps_of_refinement_that_are_none_are_refused(editor, steps):
    with pytest.raises(UserError, match="refine is"):
        editor.open_photo(editor.open_seed(3).image, aligned=True, refine=steps)
