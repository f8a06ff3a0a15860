"""Promises of the drawn faces: exact masks, true captions, a smooth rule from z, and a reader that can be trusted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_faces import small_generator
from safetensors.torch import save_file

from attention.errors import UserError
from attention.files.published import SHIPPED
from attention.generator import sample_z
from attention.images import Damage, augment, augmented, psnr, to_image, to_pixels
from attention.inversion.invert import psnr_of_inversions
from attention.worlds.concepts import EDIT_PROMPTS, PART_NAMES
from attention.worlds.drawn.concepts import BY_PHRASE, CONCEPTS, OPTIONS, captions, truth_table
from attention.worlds.drawn.encoder import load_tower
from attention.worlds.drawn.faces import PARTS, SIZE, FaceParams, draw_faces, landmarks
from attention.worlds.drawn.fit.clip import PASTED, PIECES, _paste_parts, _piece_of
from attention.worlds.drawn.fit.encoder import EncoderFit, fit_tower
from attention.worlds.drawn.fit.generator import AREAS, BLEND_SIDE, part_error, part_shares
from attention.worlds.drawn.fit.reader import ReaderFit, fit_reader
from attention.worlds.drawn.reader import AttributeReader
from attention.worlds.drawn.truth import DrawnFaces, SeenFaces
from attention.worlds.truth import balanced_accuracy

# The labels that a change of a part may touch: the part, and what hangs from it or is painted in its colour.
TOUCHES = {"skin": ("skin", "nose", "ears", "neck", "lips", "mouth", "eyes"), "lips": ("lips", "mouth"),
           "mouth": ("lips", "mouth"), "ears": ("ears", "earrings")}
# Pixels beyond the mask within which a change must stay: one for anti-aliasing, more where the paint fades out softly.
SOFT_EDGE = {"cheeks": 2, "jaw": 3}
# A mask holds what covers over half a pixel. Slivers thinner than that (mouth corners, hair beside an ear) may add
# this share of the change, and reach this far.
SLIVERS, SLIVER_REACH = 0.02, 12
PRESENCES = ("beard", "rosy_cheeks", "earrings", "glasses")
LOCAL = [concept for concept in CONCEPTS if concept.attribute not in ("face_width", "face_height")]


@pytest.fixture(scope="module")
def faces() -> FaceParams:
    """24 faces whose attributes are wholly there or absent: a half transparent part lets others shine through."""
    params = FaceParams.sample(24, seed=5)
    return replace(params, **{name: np.round(getattr(params, name)) for name in PRESENCES})


@pytest.fixture(scope="module")
def drawing(faces):
    return draw_faces(faces)


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    grown = torch.from_numpy(mask).float()
    for kernel, padding in (((2 * pixels + 1, 1), (pixels, 0)), ((1, 2 * pixels + 1), (0, pixels))):
        grown = F.max_pool2d(grown, kernel, stride=1, padding=padding)
    return grown.numpy() > 0


def allowed(drawing, part: str) -> np.ndarray:
    return np.logical_or.reduce([drawing.mask(name) for name in TOUCHES.get(part, (part,))])


# --- the renderer

def test_same_seed_gives_same_faces():
    one, same, other = (draw_faces(FaceParams.sample(6, seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.images, same.images) and np.array_equal(one.labels, same.labels)
    assert not np.array_equal(one.images, other.images)


def test_a_face_does_not_depend_on_its_neighbours(faces, drawing):
    alone = draw_faces(faces.take(slice(7, 8)), chunk=1)
    assert np.array_equal(alone.images[0], drawing.images[7]) and np.array_equal(alone.labels[0], drawing.labels[7])


def test_labels_and_areas_fit_the_picture(drawing):
    assert drawing.images.shape == (24, SIZE, SIZE, 3) and drawing.images.dtype == np.uint8
    assert drawing.labels.shape == (24, SIZE, SIZE) and drawing.labels.max() < len(PARTS)
    always = ("background", "skin", "nose", "eyes", "brows", "lips", "hair", "neck", "cloth", "cheeks", "jaw")
    assert all(drawing.mask(part).any(axis=(1, 2)).all() for part in always)


def test_a_thing_worn_is_labelled_only_where_it_is_worn(faces, drawing):
    for part in ("glasses", "earrings"):
        assert np.array_equal(drawing.mask(part).any(axis=(1, 2)), getattr(faces, part) == 1), part


def test_a_concept_changes_only_its_part(faces, drawing):
    for concept in LOCAL:
        after = draw_faces(concept.apply(faces))
        change = np.abs(after.images.astype(int) - drawing.images).sum(axis=3)
        part = allowed(drawing, concept.part) | allowed(after, concept.part)
        outside = change * ~grow(part, SOFT_EDGE.get(concept.part, 1))
        assert change.sum() > 0 and outside.sum() <= SLIVERS * change.sum(), concept.phrase
        assert not change[~grow(part, SLIVER_REACH)].any(), concept.phrase


def test_face_shape_leaves_the_background_far_from_the_head_alone(faces, drawing):
    after = draw_faces(BY_PHRASE["a wide face"].apply(faces))
    changed = (after.images != drawing.images).any(axis=3)
    ground = drawing.mask("background") & after.mask("background")
    assert not (changed & ~grow(~ground, 1)).any()


def test_landmarks_lie_in_their_parts(faces):
    bare = replace(faces, glasses=np.zeros(24, np.float32), eye_opening=np.full(24, 0.8, np.float32),
                   mouth_open=np.full(24, 0.8, np.float32))
    points, labels = landmarks(bare), draw_faces(bare).labels
    for name, part in (("left_eye", "eyes"), ("right_eye", "eyes"), ("nose", "nose")):
        columns, rows = ((points[name] + 1) / 2 * SIZE).astype(int).T
        assert (labels[np.arange(24), rows, columns] == PARTS.index(part)).all(), name
    lips = grow(labels == PARTS.index("lips"), 3)           # a corner is where the lips end
    for name in ("left_mouth", "right_mouth"):
        columns, rows = ((points[name] + 1) / 2 * SIZE).astype(int).T
        assert np.abs(points[name]).max() < 1 and lips[np.arange(24), rows].any(axis=1).all(), name


def test_from_z_is_deterministic_and_smooth():
    z = np.random.default_rng(3).standard_normal((64, 64))
    step = 1e-3 * np.random.default_rng(4).standard_normal(z.shape)
    before, again, near = (FaceParams.from_z(value).as_matrix() for value in (z, z.copy(), z + step))
    assert np.array_equal(before, again)
    assert 0 < np.abs(near - before).max() < 0.02           # the steepest slope is 6 / 4 a category and a z of norm 8
    assert before.min() >= 0 and before.max() <= 1
    np.testing.assert_allclose(FaceParams.from_z(3 * z).as_matrix(), before, atol=1e-5)     # the length does not count


# --- concepts and captions

def test_apply_makes_true_and_changes_one_field(faces):
    for concept in CONCEPTS:
        after = concept.apply(faces)
        assert (concept.truth(after) == 1).all() and concept.seen_in(after).all(), concept.phrase
        assert all(np.array_equal(getattr(after, name), getattr(faces, name))
                   for name in FaceParams.widths() if name != concept.attribute), concept.phrase


def test_what_is_seen_agrees_with_the_truth_where_it_is_plain(faces):
    states, seen = DrawnFaces(faces).states(), SeenFaces(faces).holds()
    assert states.shape == seen.shape == (len(CONCEPTS), len(faces))
    assert seen[states == 1].all() and not seen[states == 0].any()


def test_captions_say_only_true_things(faces):
    meaning = {words: i for i, concept in enumerate(CONCEPTS) for words in (concept.phrase, *concept.synonyms)}
    truths = truth_table(faces)
    for truth, lines in zip(truths, captions(faces, seed=1), strict=True):
        assert len(lines) == 10
        for line in lines:
            assert line.endswith(".")
            said = line[:-1].replace(", and ", ", ").split(", ")
            assert all(truth[meaning[words]] == 1 for words in said), line
    assert captions(faces, seed=1) == captions(faces, seed=1)


def test_every_concept_has_a_part_that_can_be_named(drawing):
    assert len(EDIT_PROMPTS) >= 24
    for concept in CONCEPTS:
        assert concept.part in PART_NAMES and drawing.mask(concept.part).shape == drawing.labels.shape
        assert concept.option is None or concept.option in OPTIONS[concept.attribute]


# --- what the generator and CLIP are fitted to

def test_part_shares_are_the_areas_of_the_drawing(drawing):
    rows = np.array([3, 8])
    shares = part_shares(drawing, rows)
    assert shares.shape == (2, len(AREAS), BLEND_SIDE, BLEND_SIDE)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, BLEND_SIDE, BLEND_SIDE))
    skin = drawing.mask("skin")[rows]
    for part, mask in (("eyes", drawing.mask("eyes")[rows]), ("cheeks", skin & drawing.mask("cheeks")[rows]),
                       ("skin", skin & ~drawing.mask("cheeks")[rows] & ~drawing.mask("jaw")[rows])):
        np.testing.assert_allclose(shares[:, AREAS.index(part)].mean(dim=(1, 2)), mask.mean(axis=(1, 2)), rtol=1e-5)


def test_part_error_equals_the_loop():
    random = torch.Generator().manual_seed(0)
    features, prototypes = torch.randn(2, 5, 3, 3, generator=random), torch.randn(4, 5, generator=random)
    shares = torch.rand(2, 4, 3, 3, generator=random)
    shares = shares / shares.sum(dim=1, keepdim=True)
    area, total, weights = shares.mean(dim=(0, 2, 3)), 0.0, 0.0
    for image in range(2):
        for y in range(3):
            for x in range(3):
                share = shares[image, :, y, x]
                distance = torch.stack([(features[image, :, y, x] - one).square().sum() for one in prototypes])
                chance = torch.exp(-distance) / torch.exp(-distance).sum()
                weight = sum(float(share[part]) / float(area[part]) ** 0.5 for part in range(4))
                total += weight * float((share * (0.1 * distance - chance.log())).sum())
                weights += weight
    assert float(part_error(features, shares, prototypes)) == pytest.approx(total / weights, rel=1e-5)


def test_a_pasted_piece_leaves_only_what_both_faces_share(faces, drawing):
    before, truths = drawing.images.copy(), truth_table(faces)
    images, pasted = before.copy(), truths.copy()
    random = np.random.default_rng(0)
    untouched = np.ones(len(images), bool)
    for _ in range(8):
        untouched &= _paste_parts(random, images, drawing.labels, pasted)
    assert 0 < untouched.sum() < len(images)
    np.testing.assert_array_equal(images[untouched], before[untouched])
    np.testing.assert_array_equal(pasted[untouched], truths[untouched])
    moved = {field for table in (PASTED, PIECES) for fields in table.values() for field in fields}
    still = np.array([concept.attribute not in moved for concept in CONCEPTS])
    np.testing.assert_array_equal(pasted[:, still], truths[:, still])
    hair = drawing.mask("hair")[0]
    shares = [(_piece_of(random, hair) & hair).sum() / hair.sum() for _ in range(20)]
    assert 0.19 < min(shares) < 0.4 < 0.6 < max(shares) < 0.81


# --- the attribute reader

@pytest.fixture
def tiny_reader() -> AttributeReader:
    torch.manual_seed(0)
    return AttributeReader(widths=(4, 4, 4, 4), squeeze=2, hidden=8).eval()


def test_reader_gives_faces_of_any_size(tiny_reader):
    for side in (64, 128, 192):
        params = tiny_reader.read(torch.zeros(3, 3, side, side))
        assert truth_table(params).shape == (3, len(CONCEPTS))
        np.testing.assert_allclose(params.hair_colour.sum(axis=1), 1, atol=1e-5)


def test_reader_file_gives_the_same_reader(tiny_reader, tmp_path):
    path, images = tmp_path / "reader.safetensors", torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    tiny_reader.accuracies = {"drawings": {"glasses": 0.5}}
    tiny_reader.save(path)
    loaded = AttributeReader.load(path)
    assert loaded.accuracies == tiny_reader.accuracies and not loaded.training
    assert np.array_equal(loaded.read(images).as_matrix(), tiny_reader.read(images).as_matrix())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_reader_refuses_missing_cut_and_foreign_files(tiny_reader, tmp_path):
    whole, cut, foreign = (tmp_path / name for name in ("whole", "cut", "foreign"))
    tiny_reader.save(whole)
    cut.write_bytes(whole.read_bytes()[:-50])
    save_file({"weight": torch.zeros(1)}, foreign)
    for path in (tmp_path / "missing", cut, foreign):
        with pytest.raises(UserError, match=path.name):
            AttributeReader.load(path)


def test_an_encoder_learns_to_tell_latents_and_is_read_again_as_it_was(tmp_path):
    generator = small_generator()[1]
    with torch.no_grad():
        w = generator.mapping(sample_z(32, 8, 0))
        pictures_of_w = to_pixels(generator.picture(generator.styles(w)))
    recipe = EncoderFit(batch_size=32, latent_steps=60, picture_steps=2, width=8)
    encoder = fit_tower(generator, pictures_of_w, w, Damage(shift=0, blur=0, gain=0, offset=0, noise=0.02), recipe)
    shown = torch.from_numpy(pictures_of_w).movedim(-1, 1) / 127.5 - 1
    error = (encoder(shown) - w).square().mean() / (w - w.mean(dim=0)).square().mean()
    assert error < 0.5                                                      # of that of the mean face
    made = generator.picture(generator.styles(encoder(shown)))
    assert psnr_of_inversions(encoder, generator, shown) == pytest.approx(float(psnr(made, shown).mean()), abs=1e-3)
    encoder.save(tmp_path / "encoder.safetensors")
    again = load_tower(tmp_path / "encoder.safetensors")
    torch.testing.assert_close(again(shown), encoder(shown), atol=0.02, rtol=0.02)                  # half precision
    whole = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match=r"worlds\.drawn\.build --part encoder"):
        load_tower(tmp_path / "encoder.safetensors")


def test_augmented_pictures_are_shifted_by_what_is_told():
    images = to_image(draw_faces(FaceParams.sample(4, seed=8)).images)
    made, shift = augment(images, torch.Generator().manual_seed(0), Damage(3 * 2 / 128, True, 0, 0, 0, 0.4, 0, 0, 0))
    assert 0 < shift.abs().max() <= 3
    for picture, source, (dx, dy) in zip(made, images, shift.round().int().tolist(), strict=True):
        inner = torch.roll(source, (dy, dx), dims=(1, 2))[:, 8:-8, 8:-8]
        torch.testing.assert_close(picture[:, 8:-8, 8:-8], inner, atol=1e-4, rtol=0)


def test_the_view_of_a_picture_does_not_depend_on_the_others():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, part = augmented(images, [5, 6, 7]), augmented(images[1:2], [6])
    assert torch.equal(whole[1:2], part) and not torch.equal(whole[0], whole[1])


def test_fit_runs_and_is_reproducible():
    fit = ReaderFit(faces=16, steps=2, batch=4)
    one, same = (fit_reader(fit).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_shipped_reader_reads_unseen_drawings():
    params = FaceParams.sample(64, seed=321)
    seen = SeenFaces(AttributeReader.load(SHIPPED / "reader.safetensors").read(to_image(draw_faces(params).images)))
    assert np.mean(list(balanced_accuracy(CONCEPTS, DrawnFaces(params).states(), seen.holds()).values())) > 0.9


def test_balanced_accuracy_equals_a_naive_count_and_passes_over_what_only_one_side_has():
    states = np.array([[1, 1, 0, np.nan, 0], [1, 1, np.nan, 1, 1]])
    held = np.array([[True, False, False, True, True], [True] * 5])
    assert balanced_accuracy(CONCEPTS[:2], states, held) == {CONCEPTS[0].phrase: pytest.approx((1 / 2 + 1 / 2) / 2)}
