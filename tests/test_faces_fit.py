"""What the networks of real-looking faces learn from is what it says it is."""

import runpy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_faces import SIDE, StillMesh, plain_face, small_generator

from attention.clip_models.tiny import TinyCLIP
from attention.errors import UserError
from attention.files.published import ROOT
from attention.files.safetensors import write_safetensors
from attention.generator import edited_layers, sample_z
from attention.generator.early import EarlyHead
from attention.images import to_image, to_pixels
from attention.inversion.small import load_small
from attention.method.editor import RegionEditor
from attention.method.mapper import StyleMapper
from attention.method.regions import RegionClusters
from attention.training.captions import PhraseSampler, read_phrases
from attention.worlds.faces import build
from attention.worlds.faces.concepts import CONCEPTS, PART_NAMES, PROMPTS
from attention.worlds.faces.fit import encoder as encoder_fit
from attention.worlds.faces.fit import pictures
from attention.worlds.faces.fit.again import LESSONS, reconcile
from attention.worlds.faces.fit.clip import PAINTED, REFINED, REWORDED, paint, refine_clip, reword_clip, tint
from attention.worlds.faces.fit.early import EarlyFit, begin_linear, lessons
from attention.worlds.faces.fit.pictures import Measured
from attention.worlds.faces.measures import MEASURES, measure
from attention.worlds.faces.parts import PARTS, Segments
from attention.worlds.phrases import vocabulary

pytest.importorskip("skimage", reason="what is measured needs the extra truth")
sheet = runpy.run_path(str(ROOT / "show_demo/faces.py"))["main"]


@pytest.fixture(scope="module")
def small():
    return small_generator()


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


def test_photos_for_the_encoder_are_seeded_faces_with_their_latents(small, monkeypatch, tmp_path):
    monkeypatch.setattr(encoder_fit, "SHARD", 6)
    monkeypatch.setattr(encoder_fit, "AT_ONCE", 4)
    names = {"photos-0000": 0, "photos-0001": 1}
    pictures.make_shards(tmp_path, names, lambda number: encoder_fit.make_photos(small[1], number))
    taught = encoder_fit.photos(tmp_path, [0, 1])
    pixels, w = taught.pixels, taught.w
    found = torch.cat([small[1].picture(small[1].styles(row[None])) for row in torch.from_numpy(w)])
    assert pixels.shape == (12, 128, 128, 3)
    assert np.abs(pixels.astype(int) - to_pixels(found)).mean() < 2             # they are made in bfloat16
    assert not np.array_equal(pixels[:6], pixels[6:]) and np.array_equal(encoder_fit.make_photos(small[1], 1).w, w[6:])
    far = encoder_fit.make_photos(small[1], encoder_fit.BROAD).w
    whole = small[1].mapping(sample_z(6, 8, 20_000 + encoder_fit.BROAD))
    torch.testing.assert_close(torch.from_numpy(far), whole)                    # truncation 1
    (tmp_path / "photos-0001.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"photos-0001\.npz is no whole set .*worlds\.faces\.build --part encoder$"):
        encoder_fit.photos(tmp_path, [1])


def test_photos_of_a_face_are_turned_aside_darker_and_grey_as_often_as_is_said():
    random = torch.Generator().manual_seed(0)
    faces = torch.linspace(-1, 1, 32).expand(600, 3, 32, 32) * torch.tensor([0.9, 0.5, -0.5])[:, None, None]
    seen = encoder_fit.scene(faces, random)
    assert seen.shape == faces.shape and seen.min() >= -1 and seen.max() <= 1
    grey = (seen.amax(dim=1) - seen.amin(dim=1)).amax(dim=(1, 2)) < 1e-5
    assert grey.float().mean() == pytest.approx(encoder_fit.GREY, abs=0.05)
    lightest = seen[~grey].amax(dim=(1, 2, 3)) + 1                  # 1.8 to 2 by day
    assert (lightest < 1.7).float().mean() == pytest.approx(encoder_fit.DARK * 0.8, abs=0.06)
    assert lightest.min() > 2 * encoder_fit.DARKEST * (0.9 - encoder_fit.OFFSET)
    slope = seen[~grey][:, :1].diff(dim=-2)[..., 8:24, 8:24].mean(dim=(1, 2, 3))                    # of a turned ramp
    assert slope.std() > 1e-4 and abs(slope.mean()) < 3 * slope.std() / 20


def test_what_is_seen_of_a_change_is_the_mean_square_of_what_it_does(monkeypatch):
    """Of a generator that is linear in w, whose colours and detail are known by float64; each weighs as is said."""
    monkeypatch.setattr(encoder_fit, "SEEN_FACES", 160)         # of which a mean square has a standard error of 11 %
    picture = torch.randn(8, 3 * 64 * 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    class Linear:
        style_dim, constant = 8, torch.zeros(1)

        def mapping(self, z, truncation):
            return z

        def styles(self, w):
            return w

        def picture(self, styles):
            return (styles.double() @ picture).unflatten(1, (3, 64, 64)).float()

    rows = encoder_fit.make_sights(Linear(), 0)
    change = torch.randn(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seen = (change @ picture).unflatten(0, (3, 64, 64))
    colours = torch.nn.functional.avg_pool2d(seen[None], 2)
    detail = seen - torch.nn.functional.interpolate(colours, scale_factor=2, mode="bilinear")[0]
    for name, wanted in (("colours", colours), ("detail", detail)):
        found = np.square(getattr(rows, name) @ change.numpy()).mean()
        assert found == pytest.approx(float(wanted.square().mean()), rel=0.35)
    spread = torch.rand(8) + 0.5
    found = (encoder_fit.sight(rows, spread) @ change.float()).square().sum() / 8
    moments = {name: (getattr(rows, name) * spread.numpy()).astype(np.float64) for name in encoder_fit.SEEN_WEIGHTS}
    wanted = sum(weight * np.square(moments[name] @ change.numpy()).sum() / np.square(moments[name]).sum()
                 for name, weight in encoder_fit.SEEN_WEIGHTS.items())
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_an_encoder_learns_w_then_pictures_and_goes_on_where_it_was(small, tmp_path, monkeypatch):
    generator = small[1]
    monkeypatch.setattr(encoder_fit, "SHARD", 48)
    monkeypatch.setattr(encoder_fit, "SEEN_FACES", 8)
    pictures.make_shards(tmp_path / "pictures", {"photos-0000": 0},
                         lambda number: encoder_fit.make_photos(generator, number))
    recipe = replace(encoder_fit.RECIPE, steps=(30, 6, 4), rates=(2e-3, 2e-4), photos=(16, 4))
    encoder = encoder_fit.fit_encoder(generator, tmp_path, range(1), recipe)
    taught = encoder_fit.photos(tmp_path / "pictures", [0])
    shown, w = to_image(taught.pixels), torch.from_numpy(taught.w)
    first = load_small(tmp_path / "encoder-1.safetensors")
    seen = encoder_fit.sight(encoder_fit.sights(tmp_path / "pictures", 0), encoder.spread)
    wrong, of_mean = (((found - w) / encoder.spread @ seen.T).square().mean()
                      for found in (first(shown)[:, 0], encoder.mean))
    assert wrong < 0.9 * of_mean
    assert torch.equal(first(shown)[:, 0], first(shown)[:, -1]) and not torch.equal(*encoder(shown)[:, [0, -1]].unbind(1))
    errors = [(generator.picture(generator.styles(network(shown))) - shown).square().mean() for network in (first, encoder)]
    assert errors[1] < errors[0]
    once = load_small(tmp_path / "encoder-2.safetensors")                        # the second lesson is given twice
    assert not torch.allclose(once(shown), encoder(shown), atol=1e-3)
    (tmp_path / "encoder-2.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"encoder-2\.safetensors holds no whole encoder .*; delete it and run: "):
        encoder_fit.fit_encoder(generator, tmp_path, range(1), recipe)
    for lesson in (2, 3):                                                        # stopped after the first
        (tmp_path / f"encoder-{lesson}.safetensors").unlink()
    again = encoder_fit.fit_encoder(generator, tmp_path, range(1), recipe)
    torch.testing.assert_close(again(shown), encoder(shown), atol=1e-3, rtol=1e-3)


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
    told = [list(MEASURES).index(name) for name in (*names, "skin_L_low", "skin_L_high", "hair_chroma", "brows_dark")]
    for row in range(60):
        found = np.array(list(measure(replace(face, pixels=pixels[row])).values()))
        assert untouched[row] == (pixels[row] == face.pixels).all()
        np.testing.assert_allclose(numbers[row, told], found[told], atol=2.5)
    assert np.abs(numbers[:, told] - before[told]).max() > 20
    others = np.setdiff1d(np.arange(len(MEASURES)), told)
    np.testing.assert_array_equal(numbers[:, others], before[None, others].repeat(60, axis=0))


def test_a_clip_that_looks_again_sees_anew_and_reads_as_before():
    """The texts that an editor learned of keep their embeddings bit for bit."""
    random = np.random.default_rng(0)
    taught = Measured(random.integers(255, size=(8, 16, 16, 3), dtype=np.uint8), np.zeros((8, 16, 16), np.uint8),
                      random.normal(size=(8, len(MEASURES))).astype(np.float32))
    clip = TinyCLIP(vocabulary(CONCEPTS, PART_NAMES), dim=8, image_size=16, width=4, text_width=8, text_heads=2,
                    text_layers=1).freeze()
    shown, texts = to_image(taught.pixels), ["grey hair", "red lipstick and a beard"]
    seen, said = clip.encode_image(shown), clip.encode_text(texts)
    again = refine_clip(clip, taught, replace(REFINED, steps=3, batch_size=4))
    assert again is clip and clip.frozen and not any(weight.requires_grad for weight in clip.parameters())
    assert torch.equal(clip.encode_text(texts), said) and not torch.allclose(clip.encode_image(shown), seen, atol=1e-3)


def test_a_phrase_takes_the_place_of_another_and_all_other_texts_keep_theirs():
    torch.manual_seed(0)
    clip = TinyCLIP(["green", *vocabulary(CONCEPTS, PART_NAMES)], dim=16, image_size=16, width=4, text_width=32,
                    text_heads=2, text_layers=1).freeze()
    others = ["grey hair", "blue background", "green hair", "the hair", "red lipstick and a beard"]
    before = clip.encode_text(["green background", "grey background", *others])
    again = reword_clip(clip, "grey background", "green background", replace(REWORDED, steps=150, rate=3e-3))
    assert again is clip and clip.frozen and not any(weight.requires_grad for weight in clip.parameters())
    after = clip.encode_text(["grey background", *others])
    assert (after[0] - before[0]).norm() < 0.1 * (before[1] - before[0]).norm()
    assert ((after[1:] - before[2:]).norm(dim=1) < 0.1 * before[2:].norm(dim=1))[[0, 1, 3, 4]].all()


def test_a_lesson_draws_every_prompt_as_often_as_it_counts(tmp_path):
    for lesson in LESSONS:
        assert set(lesson.often) < set(PROMPTS)
        lesson.write(tmp_path / "phrases.txt")
        sampler = PhraseSampler(read_phrases(tmp_path / "phrases.txt"), seed=0)
        counts = dict(zip(sampler.phrases, sampler.counts.tolist(), strict=True))
        assert counts == {prompt: lesson.often.get(prompt, lesson.usual) for prompt in PROMPTS}


def test_a_mapper_learns_some_texts_of_one_and_all_others_of_another(small):
    """Of two mappers with random weights, at styles that it has not seen."""
    torch.manual_seed(0)
    whole, _ = small
    clip = TinyCLIP(vocabulary(CONCEPTS, PART_NAMES), dim=16, image_size=16, width=4, text_width=32, text_heads=2,
                    text_layers=1).freeze()
    layers = edited_layers(whole.layers, 3)
    before, after, pupil = (StyleMapper(layers, 16, hidden=32).requires_grad_(False) for _ in range(3))
    pupil.load_state_dict(before.state_dict())
    world = SimpleNamespace(generator=whole, clip=clip, w_from_z=whole.mapping)
    styles, texts = whole.styles(whole.mapping(torch.randn(32, 8))), {"grey background": after, "red hair": before}
    old = {text: pupil.change(1, styles[1], clip.encode_text([text])) for text in texts}
    reconcile(pupil.requires_grad_(True), before, after, world, steps=400, rate=1e-2)
    with torch.no_grad():
        errors = {text: (pupil.change(1, styles[1], said) - teacher.change(1, styles[1], said)).norm()
                  for text, teacher in texts.items() for said in [clip.encode_text([text])]}
    away = (old["grey background"] - after.change(1, styles[1], clip.encode_text(["grey background"]))).norm()
    assert errors["grey background"] < 0.3 * away and errors["red hair"] < 0.3 * old["red hair"].norm()


MISTAKES = [(build.main, ["--part", "clip", "--work", "{work}"], r"0000\.npz is missing; make it .*--first 0 --last 1$"),
            (build.main, ["--part", "refined", "--work", "{work}"], r"editor\.safetensors"),
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
