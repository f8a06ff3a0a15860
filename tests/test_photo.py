"""Photos: pictures of every kind, and the geometry against closed forms and drawn faces."""

import io
import json
import warnings
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFilter, PngImagePlugin
from torch.nn import functional as F

import attention
from attention.editing import photo
from attention.editing.photo import find_landmarks, read_landmarks, read_photo
from attention.editing.placed import Placed
from attention.errors import UserError
from attention.files import pictures
from attention.inversion.frame import Frame, ffhq_frame, frame_like
from attention.worlds.drawn.faces import FaceParams, draw_faces

# Eyes, nose, corners of the mouth of a face that stands upright.
UPRIGHT = np.array([[100.0, 100], [200, 100], [150, 160], [120, 220], [180, 220]])


def turned(points, degrees, scale, shift):
    angle = np.deg2rad(degrees)
    return scale * points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + shift


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


# --- reading

def saved(tmp_path, picture, name="a.png", **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def test_a_plain_picture_is_read_as_it_is(tmp_path):
    pixels = noise(20, 30)
    for source in (saved(tmp_path, Image.fromarray(pixels)), Image.fromarray(pixels), pixels):
        assert np.array_equal(np.asarray(read_photo(source)), pixels)


def test_a_rotated_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                            # the camera was held on its side
    pixels = noise(20, 30)
    path = saved(tmp_path, Image.fromarray(pixels), exif=exif)
    assert np.array_equal(np.asarray(read_photo(path)), np.rot90(pixels, -1))


def test_transparency_becomes_white(tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8] = [200, 10, 10, 255]
    read = np.asarray(read_photo(saved(tmp_path, Image.fromarray(pixels))))
    assert (read[:8] == [200, 10, 10]).all() and (read[8:] == 255).all()


@pytest.mark.parametrize("mode, value, expected", [("L", 77, 77), ("I;16", 77 * 257, 77), ("1", 1, 255),
                                                   ("LA", (77, 255), 77), ("F", 77 / 255, 77)])
def test_grey_pictures_keep_their_grey(mode, value, expected, tmp_path):
    name = "a.tif" if mode == "F" else "a.png"
    read = np.asarray(read_photo(saved(tmp_path, Image.new(mode, (16, 16), value), name)))
    assert read.shape == (16, 16, 3) and (read == expected).all()


def test_cmyk_is_read_as_its_colours(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "a.jpg", quality=100)
    with pytest.warns(UserWarning, match=r"a\.jpg is CMYK without a colour profile"):
        red, green, blue = np.asarray(read_photo(path))[8, 8]
    assert red > 250 and green < 5 and blue < 5


# --- colour profiles

def tag(profile, name):
    """Where the content of a tag of an ICC profile begins."""
    for start in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12):
        if profile[start:start + 4] == name:
            return int.from_bytes(profile[start + 4:start + 8], "big")
    raise KeyError(name)


@cache                                                      # it says when it was made
def display_p3():
    """The profile of a telephone's photos: sRGB's curve, and the primaries of Display P3 (adapted to D50)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for name, xyz in ((b"rXYZ", (0.51512, 0.2412, -0.00105)), (b"gXYZ", (0.29198, 0.69225, 0.04189)),
                      (b"bXYZ", (0.1571, 0.06657, 0.78407))):
        start = tag(profile, name) + 8
        profile[start:start + 12] = b"".join(round(value * 65536).to_bytes(4, "big", signed=True) for value in xyz)
    return bytes(profile)


def test_a_photo_of_display_p3_keeps_its_numbers_and_its_profile_and_is_shown_to_the_generator_in_srgb(tmp_path):
    editor = attention.load_editor("drawn", device="cpu")
    in_srgb = draw_faces(FaceParams.sample(1, seed=8), 256).images[0]
    p3 = ImageCms.ImageCmsProfile(io.BytesIO(display_p3()))
    in_p3 = ImageCms.profileToProfile(Image.fromarray(in_srgb), ImageCms.createProfile("sRGB"), p3)
    assert np.abs(np.asarray(in_p3).astype(int) - in_srgb).max() > 10                    # or the profile is none
    path = saved(tmp_path, in_p3, "a.png", icc_profile=display_p3())
    face, plain = editor.open_photo(path, aligned=True), editor.open_photo(in_srgb, aligned=True)
    assert abs(face.origin["psnr"][0] - plain.origin["psnr"][0]) < 0.1
    edited = face.edit("purple hair", "hair")
    with Image.open(edited.save(tmp_path / "b.png")) as written:
        assert written.info["icc_profile"] == display_p3()
        numbers = np.asarray(written)
    changed = (numbers != np.asarray(in_p3)).any(axis=2)
    mask = F.interpolate(edited.mask, size=(128, 128), mode="bilinear")[0, 0].numpy().repeat(2, 0).repeat(2, 1) > 0
    assert changed.any() and not (changed & ~grown(mask)).any()
    assert np.array_equal(np.asarray(editor.replay(tmp_path / "b.png", path).image), numbers)
    # Seen as colours, it is the edit of the same photo in sRGB.
    seen = np.asarray(ImageCms.profileToProfile(Image.fromarray(numbers), p3, ImageCms.createProfile("sRGB")))
    expected = np.asarray(plain.edit("purple hair", "hair").image)
    assert np.abs(seen.astype(int) - expected).mean() < 1


def linear_grey():
    """A profile of grey whose numbers count light."""
    white = b"XYZ \0\0\0\0" + b"".join(round(value * 65536).to_bytes(4, "big") for value in (0.9642, 1, 0.8249))
    tags = {b"wtpt": white, b"kTRC": b"curv" + bytes(8)}
    table, content = len(tags).to_bytes(4, "big"), b""
    for name, value in tags.items():
        start = 128 + 4 + 12 * len(tags) + len(content)
        table, content = table + name + start.to_bytes(4, "big") + len(value).to_bytes(4, "big"), content + value
    header = bytes(8) + b"\x02\x10\0\0mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28) + white[8:] + bytes(48)
    whole = header + table + content
    return len(whole).to_bytes(4, "big") + whole[4:]


def grown(mask):
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(9))) > 0


@pytest.mark.parametrize(("primaries", "transfer"), [(1, 13), (12, 13), (9, 16)])
@pytest.mark.parametrize("ending", ["png", "avif"])
def test_colours_of_other_code_points_than_those_of_srgb_are_told(primaries, transfer, ending, tmp_path):
    path, picture = tmp_path / f"photo.{ending}", Image.new("RGB", (32, 32), (200, 30, 90))
    if ending == "png":
        points = PngImagePlugin.PngInfo()
        points.add(b"cICP", bytes([primaries, transfer, 0, 1]))
        picture.save(path, pnginfo=points)
    else:
        picture.save(path)
        whole = path.read_bytes()
        place = whole.index(b"colrnclx") + 8
        path.write_bytes(whole[:place] + bytes([0, primaries, 0, transfer]) + whole[place + 4:])
    with warnings.catch_warnings(record=True) as said:
        read_photo(path)
    told = [str(one.message) for one in said]
    expected = f"photo.{ending} says by code points (primaries {primaries}, transfer {transfer})"
    assert [expected in note for note in told] == [True] * ((primaries, transfer) != (1, 13)), told
    with path.open("rb") as opened:
        assert pictures.read_picture(opened).info.get(pictures.CODE_POINTS) == (primaries, transfer)


def test_what_rgb_cannot_hold_becomes_srgb_through_its_profile_and_that_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"e\.png has a colour profile of GRAY \(L\); it is turned into sRGB"):
        read = np.asarray(read_photo(saved(tmp_path, Image.new("L", (16, 16), 128), "e.png", icc_profile=linear_grey())))
    assert np.ptp(read) <= 1 and abs(int(read[0, 0, 0]) - 188) <= 1                      # half of the light is 188 in sRGB
    lab = Image.new("LAB", (16, 16), (128, 128, 128))
    lab_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with pytest.warns(UserWarning, match=r"a\.tif has a colour profile of Lab \(LAB\); it is turned into sRGB"):
        read = read_photo(saved(tmp_path, lab, "a.tif", icc_profile=lab_profile))
    assert np.ptp(np.asarray(read)) <= 1 and 115 < np.asarray(read)[0, 0, 0] < 125 and not read.info.get("icc_profile")
    with pytest.warns(UserWarning, match=r"b\.png has a colour profile that cannot be read; it is passed over"):
        assert not read_photo(saved(tmp_path, Image.new("RGB", (16, 16)), "b.png", icc_profile=b"?" * 200)).info.get(
            "icc_profile")
    with pytest.warns(UserWarning, match=r"profile of Lab, but its pixels are RGB; the profile is passed over"):
        read_photo(saved(tmp_path, Image.new("RGB", (16, 16)), "c.png", icc_profile=lab_profile))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("L", "RGBA", "P", "RGB"):
            path = saved(tmp_path, Image.new(mode, (16, 16), "black"), "d.png", icc_profile=display_p3())
            assert read_photo(path).info["icc_profile"] == display_p3()


def test_what_eight_bits_of_rgb_cannot_hold_is_told(tmp_path):
    glass = Image.new("RGBA", (16, 16), (9, 9, 9, 254))
    deep = Image.fromarray(np.full((16, 16), 9000, np.uint16))
    for name, picture, told in (("a.png", glass, r"a\.png is transparent in places, which become white"),
                                ("b.png", deep, r"b\.png has 16 bits a colour, of which 8 are kept"),
                                ("c.tif", deep, r"c\.tif has 16 bits a colour")):
        with pytest.warns(UserWarning, match=told):
            read_photo(saved(tmp_path, picture, name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_photo(saved(tmp_path, Image.new("RGBA", (16, 16), "black"), "d.png"))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff"])
def test_of_an_animation_the_first_frame_is_read_and_that_is_told(name, tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=rf"{name} has 2 frames, and the first is taken"):
        red, green, blue = np.asarray(read_photo(path))[0, 0]
    assert red > 250 and green < 5 and blue < 5


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("a text")
    whole = saved(tmp_path, Image.fromarray(noise(64, 64)), "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:len(whole) // 2])
    saved(tmp_path, Image.new("RGB", (15, 100)), "c.png")
    saved(tmp_path, Image.new("1", (20_000, 5_001)), "d.png")
    for name, message in (("a.png", "cannot be read as a picture"), ("b.png", "cannot be read as a picture"),
                          ("c.png", "15 x 100 pixels"), ("d.png", r"100\.02 megapixels, but"), ("e.png", "is missing")):
        with pytest.raises(UserError, match=rf"^\S*{name}[^(]*{message}"):
            read_photo(tmp_path / name)
    with pytest.raises(UserError, match="array of float64"):
        read_photo(np.zeros((16, 16)))


def test_the_limits_hold_for_pictures_and_arrays_too(monkeypatch):
    monkeypatch.setattr(pictures, "MEGAPIXELS", 0.01)
    for source in (Image.new("RGB", (200, 100)), np.zeros((100, 200, 3), np.uint8)):
        with pytest.raises(UserError, match=r"the picture has 0\.02 megapixels, but at most 0\.01"):
            read_photo(source)
    assert read_photo(Image.new("RGB", (100, 100))).size == (100, 100)
    with pytest.raises(UserError, match="the picture is 8 x 8 pixels"):
        read_photo(np.zeros((8, 8, 4), np.uint8))


# --- landmarks

def test_landmarks_come_from_json_or_text(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.JSON").write_text(json.dumps(UPRIGHT.tolist()), encoding=encoding)
        (tmp_path / "a.txt").write_text("\n".join(f"{x}, {y}" for x, y in UPRIGHT) + "\n", encoding=encoding)
        assert all(np.array_equal(read_landmarks(tmp_path / name), UPRIGHT) for name in ("a.JSON", "a.txt"))


@pytest.mark.parametrize("points", [np.zeros((98, 2)), np.zeros((3, 2)), [[1, 2]] * 4, "points", None])
def test_other_points_frame_no_face(points):
    with pytest.raises(UserError, match="expected x and y of 68 points"):
        ffhq_frame(points)


@pytest.mark.parametrize("text", ["", "1 2", "one two", "\n".join(["1 2"] * 67), "\n".join(["1 nan"] * 5)])
def test_other_files_are_no_landmarks(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=r"a\.txt"):
        read_landmarks(tmp_path / "a.txt")


def test_the_largest_face_is_taken_and_others_by_number():
    small, large = UPRIGHT * 0.5, UPRIGHT * 2
    with pytest.warns(UserWarning, match="2 faces were found"):
        assert np.array_equal(find_landmarks(Image.new("RGB", (9, 9)), lambda pixels: [small, large]), large)
    assert np.array_equal(find_landmarks(Image.new("RGB", (9, 9)), lambda pixels: [small, large], face=1), small)
    for face, found, message in ((None, None, "no face was found"), (0, [], "no face was found"),
                                 (2, [small, large], "0 to 1")):
        with pytest.raises(UserError, match=message):
            find_landmarks(Image.new("RGB", (9, 9)), lambda pixels, found=found: found, face)


def test_a_large_photo_is_searched_small_and_its_landmarks_are_where_the_face_is(monkeypatch):
    monkeypatch.setattr(photo, "DETECTION_SIDE", 60)
    asked = []
    found = find_landmarks(Image.new("RGB", (240, 120)), lambda pixels: asked.append(pixels.shape) or [UPRIGHT / 4])
    assert asked == [(30, 60, 3)]
    np.testing.assert_allclose(found, UPRIGHT)


def test_a_face_from_the_side_is_told():
    side = UPRIGHT.copy()
    side[1] = side[0] + [10, 3]                                 # both eyes on one side, above the mouth
    for points in (side, np.tile(UPRIGHT[:1], (5, 1)), np.repeat(side[:1], 68, axis=0)):
        with pytest.raises(UserError, match="as in a face seen from the side; give a more frontal photo"):
            ffhq_frame(points)


# --- geometry

def test_ffhq_frames_a_face_by_its_eyes_and_mouth():
    frame = ffhq_frame(UPRIGHT)                                 # eyes 100 apart, 120 above the mouth: 1.8 * 120 is more
    np.testing.assert_allclose(frame.center, [150, 112])
    np.testing.assert_allclose(frame.right, [216, 0], atol=1e-9)
    every = np.zeros((68, 2))
    for index, point in zip((range(36, 42), range(42, 48), (48,), (54,)), UPRIGHT[[0, 1, 3, 4]], strict=True):
        every[list(index)] = point
    np.testing.assert_allclose(ffhq_frame(every).right, frame.right)


@pytest.mark.parametrize("frame_of", [ffhq_frame, lambda points: frame_like(points, UPRIGHT / 200 - 0.7)])
def test_a_frame_turns_and_grows_with_its_face(frame_of):
    upright, other = frame_of(UPRIGHT), frame_of(turned(UPRIGHT, 30, 2, [40, -7]))
    np.testing.assert_allclose(other.center, turned(upright.center, 30, 2, [40, -7]))
    np.testing.assert_allclose(other.right, turned(upright.right, 30, 2, [0, 0]))


def test_a_frame_like_typical_landmarks_puts_them_there():
    typical = np.array([[-0.3, -0.1], [0.3, -0.1], [0, 0.2], [-0.2, 0.5], [0.2, 0.5]])
    frame = Frame(np.array([300.0, 200]), turned(np.array([[80.0, 0]]), 25, 1, 0)[0])
    points = frame.center + typical[:, :1] * frame.right + typical[:, 1:] * frame.down
    found = frame_like(points, typical)
    np.testing.assert_allclose(found.center, frame.center)
    np.testing.assert_allclose(found.right, frame.right)


def test_the_frame_of_a_whole_picture_crops_every_bit_of_it():
    pixels = noise(64, 64)
    assert np.array_equal(Frame(np.array([32.0, 32]), np.array([32.0, 0])).crop(Image.fromarray(pixels), 64), pixels)


@pytest.mark.parametrize("half, degrees", [(40, 0), (40, 35), (150, -20)])
def test_a_crop_shows_what_lies_under_the_square(half, degrees):
    def colour(x, y):                                           # smooth, so that interpolation is nearly exact
        return 127 + 100 * np.stack([np.sin(x / 40), np.cos(y / 50), np.sin((x + y) / 60)], axis=2)

    x, y = np.meshgrid(np.arange(400) + 0.5, np.arange(360) + 0.5)
    photo = Image.fromarray(colour(x, y).round().astype(np.uint8))
    frame = Frame(np.array([200.0, 180]), turned(np.array([[half, 0.0]]), degrees, 1, 0)[0])
    steps = (np.arange(64) + 0.5) / 32 - 1
    across, down = np.meshgrid(steps, steps)
    places = [frame.center[axis] + across * frame.right[axis] + down * frame.down[axis] for axis in (0, 1)]
    inside = (places[0] > 6) & (places[0] < 394) & (places[1] > 6) & (places[1] < 354)
    error = np.abs(frame.crop(photo, 64) - colour(*places))[inside]
    assert error.max() <= 4


def test_a_drawing_turned_and_scaled_into_a_photo_is_cut_out_again():
    drawing = draw_faces(FaceParams.sample(1, seed=3)).images[0]
    turn = Frame(np.array([260.0, 230]), turned(np.array([[150.0, 0]]), 20, 1, 0)[0])
    black, whole = np.zeros_like(drawing), np.ones(drawing.shape[:2])
    photo = turn.put_back(Image.new("RGB", (520, 480)), black, drawing, whole)
    error = (turn.crop(photo, 128)[4:-4, 4:-4].astype(float) - drawing[4:-4, 4:-4]) / 255
    assert 10 * np.log10(1 / np.mean(error**2)) > 28


def test_frames_are_apart_by_the_mean_distance_of_their_corners_over_the_side():
    true = Frame(np.array([100.0, 80.0]), np.array([50.0, 0.0]))
    assert Frame(np.array([103.0, 84.0]), true.right).apart(true) == pytest.approx(0.05)
    assert Frame(true.center, np.array([60.0, 0.0])).apart(true) == pytest.approx(0.1 * 2**0.5)
    points = np.array([[100.0, 80.0], [150.0, 130.0]])
    assert true.within(points, 64).tolist() == [[32, 32], [64, 64]]
    turned = Frame(true.center, np.array([30.0, 40.0]))
    np.testing.assert_allclose(turned.in_photo(turned.within(points, 64), 64), points)


@pytest.mark.parametrize("center, right", [((50, 50), (0, 0)), ((500, 500), (30, 0))])
def test_a_square_without_size_or_outside_of_the_photo_is_refused(center, right):
    with pytest.raises(UserError, match="landmarks coincide or lie outside"):
        Frame(np.array(center, float), np.array(right, float)).crop(Image.new("RGB", (100, 100)), 64)


@pytest.mark.parametrize("center, half, size, edges", [
    ((50, 50), 50, (100, 100), (False, False, False, False)), ((50, 50), 30, (100, 100), (True, True, True, True)),
    ((50, 50), 50, (150, 100), (False, False, True, False)), ((60, 40), 45, (100, 120), (True, False, False, True))])
def test_an_edit_that_goes_on_past_the_square_fades_where_the_photo_does(center, half, size, edges):
    """Left, top, right and bottom."""
    photo = Image.new("RGB", size)
    for turns in range(4):
        angle = turns * np.pi / 2                               # the square turned: its left lies on the photo's top ...
        frame = Frame(np.array(center, float), half * np.array([np.cos(angle), np.sin(angle)]))
        share = Placed(photo, frame).fading(100)
        ends = share[50, 0], share[0, 50], share[50, 99], share[99, 50]
        expected = np.roll(edges, -turns)
        assert (share[6:94, 6:94] == 1).all() and share.dtype == np.float32
        assert [end < 0.1 for end in ends] == expected.tolist() and [end == 1 for end in ends] == (~expected).tolist()
    open_at_top = Placed(photo, Frame(np.array([50.0, 50]), np.array([20.0, 0]))).fading(100)
    assert (np.diff(open_at_top[:6, 50]) > 0).all() and np.array_equal(open_at_top, open_at_top[::-1, ::-1])
