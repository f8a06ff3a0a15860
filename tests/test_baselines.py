"""The methods that ours is compared with: what each is allowed to change, and that each does what its paper says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max
from safetensors import safe_open
from tiny import tiny_editor

from attention.baselines import (
    FOLDER,
    METHODS,
    GlobalDirections,
    LatentMappers,
    LatentOptimisation,
    Method,
    Nothing,
    PixelAttention,
    RegionMethod,
    TruePart,
    WithoutAttention,
    fit,
    regional,
)
from attention.baselines.base import clip_distance, extended
from attention.baselines.directions import NEUTRAL, SPREAD_FACES, SPREAD_SEED, STEP, channels, layer_directions
from attention.baselines.latents import LatentMapper, train_mapper
from attention.baselines.regional import EDITOR_KIND, PixelRegions, load_variant, variant_config
from attention.config import parse_config
from attention.errors import UserError
from attention.files.safetensors import write_safetensors
from attention.generator import conv_layers
from attention.method import lips
from attention.method.dose import Judge
from attention.method.losses import attention_variation
from attention.method.regions import RegionClusters
from attention.method.spatial_attention import blur_mask
from attention.training.runs import build_editor
from attention.worlds.drawn.faces import FaceParams
from attention.worlds.drawn.truth import DrawnFaces
from attention.worlds.registry import WORLDS, load_world
from attention.worlds.world import World

PROMPTS = ("red hair", "glasses")
TRAINED = {"mapper": LatentMappers, "directions": GlobalDirections, "pixels": PixelAttention,
           "no_attention": WithoutAttention}


class ToyCLIP:
    """Averages of 4 x 4 blocks times a fixed matrix; every text is a fixed random vector."""

    dim, image_size = 8, 32

    def __init__(self):
        self.matrix = torch.randn(48, self.dim, generator=torch.Generator().manual_seed(3))

    def encode_image(self, images):
        return F.adaptive_avg_pool2d(images, 4).flatten(1) @ self.matrix.to(images.dtype)

    def encode_text(self, texts):
        return torch.stack([torch.randn(self.dim, generator=torch.Generator().manual_seed(sum(map(ord, text))))
                            for text in texts])


@pytest.fixture(scope="module")
def editor():
    return tiny_editor().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def world(editor):
    """The tiny generator in the place of the drawn one, without augmented views, in float32."""
    entry = replace(WORLDS["drawn"], views="plain", settings={}, prompts=PROMPTS)
    return World(entry, editor.generator, "of the tests", torch.device("cpu"), clip=ToyCLIP())


@pytest.fixture(scope="module")
def drawn():
    return load_world("drawn", device="cpu")


@pytest.fixture
def faces(world):
    return world.sample_w(2, seed=1), DrawnFaces(FaceParams.sample(2, seed=1))


@pytest.fixture(scope="module")
def directions(world):
    found = [layer_directions(world, layer, faces=2, seed=5) for layer in conv_layers(world.generator.layers)]
    return GlobalDirections(world, torch.cat(found), threshold=0.3)


@pytest.fixture
def ready(world, editor, directions):
    """ready(key): a method of the tiny world; nothing of it is trained."""

    def make(key):
        torch.manual_seed(0)
        return {"nothing": lambda: Nothing(world), "optimisation": lambda: LatentOptimisation(world, steps=15),
                "mapper": lambda: LatentMappers(world, {prompt: LatentMapper(16) for prompt in PROMPTS}),
                "directions": lambda: directions, "pixels": lambda: PixelAttention(world, editor),
                "no_attention": lambda: WithoutAttention(world, editor), "true_part": lambda: TruePart(world, editor),
                "ours": lambda: RegionMethod(world, editor)}[key]()

    return make


# --- what all of them promise


def test_a_default_is_one_of_five_rising_strengths(ready):
    for key in METHODS:
        method = ready(key)
        assert isinstance(method, Method) and method.key == key
        assert method.strength in method.strengths and len(method.strengths) == 5, key
        assert list(method.strengths) == sorted(method.strengths), key
        assert method.given_mask == (key == "true_part"), key


def test_strength_zero_gives_the_source_and_more_is_more_change(world, ready, faces):
    w, params = faces
    source = world.picture(w)
    for key in METHODS:
        method = ready(key)
        none, weak, strong = (method.edit(w, "red hair", strength, params)[0]
                              for strength in (0.0, method.strengths[0], method.strengths[-1]))
        assert not none.requires_grad, key
        assert_close_to_max(none, source, 2e-5)
        if key != "nothing":
            assert 0 < (weak - source).square().mean() < (strong - source).square().mean(), key


def test_pictures_change_with_other_faces_of_the_same_number(world, editor, ready, faces):
    method, (w, params) = ready("ours"), faces
    other = world.sample_w(2, seed=2)
    method.edit(w, "red hair", 0.1, params)
    assert torch.equal(method.edit(other, "red hair", 0.0, params)[0], editor.source(other).image)


# --- latents


def test_optimisation_lowers_its_loss_and_faces_do_not_disturb_each_other(world, faces):
    method, text = LatentOptimisation(world, steps=12), world.clip.encode_text(["red hair"])
    start, said = extended(world, faces[0]), []
    together = method.optimise(start, text, 30.0, said.append)
    assert said[-1] < said[0]
    alone = torch.cat([method.optimise(row, text, 30.0) for row in start.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_one_step_of_the_optimisation_lowers_the_distance_to_the_text(world, faces):
    text, start = world.clip.encode_text(["red hair"]), extended(world, faces[0])
    moved = LatentOptimisation(world, steps=1, rate=0.01).optimise(start, text, 30.0)
    before, after = (clip_distance(world, world.picture(w), text, torch.Generator()) for w in (start, moved))
    assert (after < before).all()


def test_a_group_of_the_mapper_reads_and_moves_only_its_rows():
    torch.manual_seed(0)
    mapper, w = LatentMapper(16), torch.randn(1, 12, 16)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        other = w.clone()
        other[:, rows] += 1
        changed = (mapper(other) != mapper(w)).any(dim=2)[0]
        assert changed[rows].all() and changed.sum() == 4


def test_training_a_mapper_lowers_its_loss(world):
    said = []
    train_mapper(world, "red hair", steps=40, batch_size=4, note=said.append)
    assert np.mean(said[-5:]) < np.mean(said[:5]) - 0.02


def test_a_mapper_refuses_a_prompt_that_it_was_not_trained_for(ready, faces):
    with pytest.raises(UserError, match=r"'blue hat'.*red hair, glasses.*fit --only mapper"):
        ready("mapper").edit(faces[0], "blue hat", 0.1, faces[1])


# --- directions


@torch.no_grad()
def test_channel_directions_equal_a_naive_loop_in_float64(world, directions):
    generator, w = world.generator, world.sample_w(2, 5)
    spreads = [style.std(dim=0) for style in generator.styles(world.sample_w(SPREAD_FACES, SPREAD_SEED))]
    expected, order = [], list(channels(world))
    generator.double()
    try:
        for layer, channel in order[::7]:
            pairs = []
            for face in w.double().split(1):
                ends = []
                for sign in (1, -1):
                    moved = [style.clone() for style in generator.styles(face)]
                    moved[layer][0, channel] += sign * STEP * spreads[layer][channel].double()
                    image = world.clip.encode_image(generator.synthesis(moved).image)[0]
                    ends.append(image / image.norm())
                pairs.append((ends[0] - ends[1]) / (ends[0] - ends[1]).norm())
            expected.append((pairs[0] + pairs[1]) / (pairs[0] + pairs[1]).norm())
    finally:
        generator.float()
    assert len(order) == sum(layer.in_channels for layer in generator.layers if layer.kind == "conv")
    assert_close_to_max(directions.directions[::7], torch.stack(expected), 1e-3)    # differences of near float32 numbers


def test_only_channels_that_point_with_the_text_move_the_strongest_by_one_spread(world, directions):
    text = F.normalize(world.clip.encode_text(["red hair", NEUTRAL]), dim=1)
    relevance = directions.directions @ F.normalize(text[0] - text[1], dim=0)
    moved = torch.stack([directions.changes("red hair")[layer][channel] / directions.spread[layer][channel]
                         for layer, channel in channels(world)])
    assert torch.equal(moved != 0, relevance.abs() >= 0.3) and (moved == 0).any()
    assert moved.abs().max() == pytest.approx(1, abs=1e-5)
    assert (moved * relevance >= 0).all()


def test_directions_turn_pictures_toward_their_text(world, directions):
    w = world.sample_w(16, seed=6)
    text = F.normalize(world.clip.encode_text(["red hair", NEUTRAL]), dim=1)
    before, after = (F.normalize(world.clip.encode_image(image), dim=1)
                     for image in (world.picture(w), directions.edit(w, "red hair", 1.0)[0]))
    assert ((after - before) @ (text[0] - text[1])).mean() > 0


# --- ours and its variants


def test_the_ceiling_changes_nothing_outside_its_blurred_mask_at_the_blend(world, editor, ready, faces):
    (w, params), method, source = faces, ready("true_part"), editor.source(faces[0])
    text = world.clip.encode_text(["red hair"]).expand(2, -1)
    mask, part = method.place(source, text, "red hair", params)
    edit = editor.apply(source, editor.mapper(source.styles, text, 1.0), mask)
    changed = (edit.features[editor.layer] != source.features[editor.layer]).any(dim=1, keepdim=True)
    inside = blur_mask(part) > 0
    assert not (changed & ~inside).any() and changed[inside].all() and not inside.all()
    assert torch.equal(method.edit(w, "red hair", 1.0, params)[0], edit.image)


@pytest.mark.parametrize("spared", [0.0, 0.8])
def test_a_sweep_has_place_doses_and_what_is_spared_of_every_prompt(spared, world, editor, ready, faces, monkeypatch):
    monkeypatch.setattr(editor.spared, "otherwise", spared)
    monkeypatch.setattr(editor, "follows_edges", True)
    monkeypatch.setattr(lips, "APART", 0.0)                 # of a generator of random weights
    monkeypatch.setattr(editor, "judge", Judge(lambda images: world.clip.encode_image(images).square(), world.generator))
    (w, params), method, source, found = faces, ready("ours"), editor.source(faces[0]), []
    for prompt in PROMPTS:
        text = world.clip.encode_text([prompt]).expand(2, -1)
        found.append(editor.doses(source, text, editor.locate(source, text).mask))
        for strength in (0.05, 0.2):
            assert torch.equal(method.edit(w, prompt, strength, params)[0], editor(source, text, text, strength).image)


def test_the_ceiling_is_told_the_renderers_part(ready, faces):
    w, params = faces
    _, part = ready("true_part").edit(w, "red hair", 0.1, params)
    assert set(part.unique().tolist()) == {0.0, 1.0} and part.shape == (2, 1, 16, 16)
    rows = part.mean(dim=(0, 1, 3))
    assert rows[:8].mean() > 2 * rows[8:].mean()                    # hair is on top of a face


def test_without_attention_the_whole_picture_takes_the_edited_styles(world, editor, ready, faces):
    w, params = faces
    image, mask = ready("no_attention").edit(w, "red hair", 0.3, params)
    text = world.clip.encode_text(["red hair"]).expand(2, -1)
    assert mask is None
    assert torch.equal(image, editor.generator.synthesis(editor.mapper(editor.source(w).styles, text, 0.3)).image)


def test_pixel_regions_are_the_nearest_centroids_whatever_a_pixel_looks_like(drawn):
    regions = PixelRegions(drawn)
    feature = 10 * torch.randn(2, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    measured = RegionClusters(regions.centroids, regions.layer, "drawn").assign(feature)
    assert torch.equal(measured, regions.assign(feature)) and len(measured.unique()) == 64 * 64


def test_a_picture_attended_everywhere_costs_pixel_regions_the_budget_of_ours(drawn):
    ours, pixels = WORLDS["drawn"].settings, variant_config(PixelAttention, drawn)
    assert pixels.lambda_sec * pixels.cluster_num == pytest.approx(ours["lambda_sec"] * ours["cluster_num"])
    same = set(ours) - {"cluster_num", "lambda_sec", "lambda_ess", "position_weight"}
    assert {name: getattr(pixels, name) for name in same} == {name: ours[name] for name in same}


def test_total_variation_counts_the_steps_between_neighbours():
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 2:4, 1:5] = 0.5
    # Along each axis 6 * 5 pairs: down, 4 columns rise and fall; across, 2 rows do.
    assert float(attention_variation(mask)) == pytest.approx((4 * 2 * 0.5 + 2 * 2 * 0.5) / 30)
    assert float(attention_variation(torch.full((2, 1, 6, 6), 0.7))) == 0


# --- files


def test_trained_and_loaded_mappers_edit_the_same(world, faces, tmp_path):
    (w, params), steps = faces, 3
    path = fit.fit("mapper", fit.FitConfig(folder=tmp_path, run=tmp_path, step=steps), world)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert {"command", "seed", "minutes", "minutes_per_prompt", "steps"} <= set(said)
    loaded = METHODS["mapper"](world, tmp_path)
    for prompt in PROMPTS:
        own = LatentMappers(world, {prompt: train_mapper(world, prompt, steps)})
        error = (loaded.edit(w, prompt, 0.1, params)[0] - own.edit(w, prompt, 0.1, params)[0]).abs().max()
        assert error < 1 / 127.5                                    # half precision: less than a step of 8 bits


def test_measured_and_loaded_directions_edit_the_same(world, directions, faces, tmp_path):
    w, params = faces
    fit.fit("directions", fit.FitConfig(folder=tmp_path, run=tmp_path, step=2, seed=5), world)
    own = GlobalDirections(world, directions.directions)
    for prompt in PROMPTS:
        own_image, loaded = (method.edit(w, prompt, 2.0, params)[0]
                             for method in (own, METHODS["directions"](world, tmp_path)))
        assert_close_to_max(loaded, own_image, 0.01)


def test_directions_of_early_pictures_leave_the_layers_after_them_as_they_are(world, directions, tmp_path):
    layers, path = conv_layers(world.generator.layers), tmp_path / "directions.safetensors"
    rows = sum(layer.in_channels for layer in layers[:-2])
    said = {"kind": "where2edit channel directions", "generator_hash": world.generator_hash}
    write_safetensors(path, {"directions": directions.directions[:rows].clone()}, said)
    changes = METHODS["directions"](world, tmp_path).changes("red hair")
    assert not any(changes[layer.index].any() for layer in layers[-2:]) and changes[layers[0].index].any()
    write_safetensors(path, {"directions": directions.directions[:rows - 1].clone()}, said)
    with pytest.raises(UserError, match=r"of shape .* were expected; make it again with"):
        METHODS["directions"](world, tmp_path)


def test_a_saved_and_loaded_variant_edits_the_same(drawn, tmp_path):
    w, params = drawn.sample_w(1, 0), DrawnFaces(FaceParams.sample(1, 0))
    for variant in (PixelAttention, WithoutAttention):
        made = build_editor(variant_config(variant, drawn, seed=3), drawn, variant.regions(drawn)).eval()
        tensors = {name: value.half() for name, value in made.state_dict().items() if name.startswith(variant.saved)}
        write_safetensors(tmp_path / f"{variant.key}.safetensors", tensors,
                          {"kind": EDITOR_KIND, "generator_hash": drawn.generator_hash})
        image, mask = METHODS[variant.key](drawn, tmp_path).edit(w, "red hair", 0.1, params)
        expected, expected_mask = variant(drawn, made).edit(w, "red hair", 0.1, params)
        assert_close_to_max(image, expected, 0.01)
        assert (mask is None) == (expected_mask is None) == (variant is WithoutAttention)


def test_a_variant_finds_its_doses_where_the_world_does(drawn, tmp_path):
    made = build_editor(variant_config(WithoutAttention, drawn), drawn, WithoutAttention.regions(drawn))
    tensors = {name: value for name, value in made.state_dict().items() if name.startswith(WithoutAttention.saved)}
    write_safetensors(tmp_path / "no_attention.safetensors", tensors,
                      {"kind": EDITOR_KIND, "generator_hash": drawn.generator_hash})
    for dosed in (False, True):
        world = World(replace(drawn.entry, dosed=dosed), drawn.generator, drawn.generator_hash, drawn.device)
        assert (load_variant(WithoutAttention, world, tmp_path).judge is not None) == dosed


def test_a_fit_that_was_stopped_goes_on_and_one_of_other_steps_begins_anew(world, tmp_path):
    def made(steps, resume="auto"):
        config = fit.FitConfig(folder=tmp_path, run=tmp_path / "run", step=steps, resume=resume)
        (tmp_path / "run").mkdir(exist_ok=True)
        with safe_open(fit.fit("mapper", config, world), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, float(file.metadata()["minutes"])  # noqa: SIM118

    whole, _ = made(3, resume=None)
    (tmp_path / "run/mapper/01.safetensors").unlink()                           # the second prompt's, as after a stop
    (tmp_path / "run/mapper.minutes").write_text("7.5")
    before = (tmp_path / "run/mapper/00.safetensors").stat().st_mtime_ns
    again, minutes = made(3)
    assert all(torch.equal(again[name], value) for name, value in whole.items()) and 7.5 <= minutes < 8.5
    assert (tmp_path / "run/mapper/00.safetensors").stat().st_mtime_ns == before
    other, _ = made(4)
    assert any(not torch.equal(other[name], value) for name, value in whole.items() if name.startswith("0."))
    for text in ("some", "nan", "-3", "inf", "1" * 400):
        (tmp_path / "run/mapper.minutes").write_text(text)
        with pytest.raises(UserError, match=r"mapper.minutes should say the minutes .* delete it, or leave --resume out"):
            made(4)


def test_a_missing_a_cut_and_a_foreign_file_are_one_sentence_with_the_command(drawn, tmp_path):
    for key in TRAINED:
        path = tmp_path / f"{key}.safetensors"
        kind = {"mapper": "where2edit latent mappers", "directions": "where2edit channel directions"}.get(key, EDITOR_KIND)

        def refused(told, key=key):
            with pytest.raises(UserError, match=f"{told}.*fit --only {key} --domain \\S+ --overwrite$"):
                METHODS[key](drawn, tmp_path)

        refused(f"{key}.safetensors is not a file")
        path.write_bytes(b"half a file")
        refused(f"{key}.safetensors is not a complete safetensors file")
        write_safetensors(path, {"odd": torch.zeros(2)}, {"kind": kind, "generator_hash": "abc"})
        refused("the generator abc")
        write_safetensors(path, {"odd": torch.zeros(2)}, {"kind": kind, "generator_hash": drawn.generator_hash})
        refused(f"{key}.safetensors ")


def test_a_world_without_a_shipped_editor_and_one_of_another_generator_are_one_sentence(world, editor):
    bare = World(replace(world.entry, editor=None), editor.generator, "", torch.device("cpu"))
    for key in ("ours", "true_part"):
        with pytest.raises(UserError, match=f"no editor is shipped for the world drawn, but {key} .*drawn, faces$"):
            METHODS[key](bare, FOLDER)
        with pytest.raises(UserError, match=f"but drawn has of the tests; leave {key} out"):
            METHODS[key](world, FOLDER)


def test_every_world_has_folders_of_its_own():
    for domain, name in (("drawn", "drawn"), ("my/cars.toml", "cars")):
        config = parse_config(fit.FitConfig, ["--domain", domain], None, fit.own_folders)
        assert config.folder == FOLDER / name and config.run.name == name


def test_a_variant_that_was_stopped_in_training_is_not_shipped(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(regional, "train", lambda config, *_: config.run)       # returns early, as after Ctrl-C
    with pytest.raises(UserError, match=r"before its 1000 steps.*fit --only pixels --domain drawn --overwrite$"):
        fit.fit("pixels", fit.FitConfig(folder=tmp_path, run=tmp_path / "runs"), drawn)
    assert not (tmp_path / "pixels.safetensors").exists()


def test_a_fit_replaces_nothing_of_an_earlier_one_unasked(tmp_path):
    config = fit.FitConfig(folder=tmp_path, run=tmp_path / "runs")
    (tmp_path / "runs/mapper").mkdir(parents=True)
    fit.refuse_earlier("mapper", config)
    (tmp_path / "runs/mapper/00.safetensors").touch()
    with pytest.raises(UserError, match=r"runs/mapper holds parts of an earlier fit; .*--resume auto, .*--overwrite"):
        fit.refuse_earlier("mapper", config)
    fit.refuse_earlier("mapper", config.replaced(resume="auto"))
    (tmp_path / "mapper.safetensors").touch()
    with pytest.raises(UserError, match=r"mapper\.safetensors is there already, and would be replaced"):
        fit.refuse_earlier("mapper", config)
    fit.refuse_earlier("mapper", config.replaced(overwrite=True))


def test_a_fit_that_goes_on_leaves_methods_that_are_done_as_they_are(tmp_path):
    for name in fit.FITS:
        (tmp_path / f"{name}.safetensors").write_text(name)
    with pytest.warns(UserWarning, match=r"mapper\.safetensors is there already, and stays"):
        files = fit.main(["--resume", "auto", "--folder", str(tmp_path), "--run", str(tmp_path / "runs")])
    assert [file.read_text() for file in files] == list(fit.FITS)


def test_a_part_of_a_fit_that_holds_something_else_is_refused(tmp_path):
    config, path = fit.FitConfig(folder=tmp_path, run=tmp_path, resume="auto"), tmp_path / "00.safetensors"
    like = {"directions": torch.zeros(3, 2)}
    assert fit.piece(path, config, {"faces": "1"}, like, lambda: like).keys() == like.keys()
    for other in ({"directions": torch.zeros(3, 4)}, {"others": torch.zeros(3, 2)}):
        with pytest.raises(UserError, match=r"00\.safetensors does not hold what this fit makes; delete it"):
            fit.piece(path, config, {"faces": "1"}, other, lambda: {})
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"00\.safetensors is not a complete .*attention\.baselines\.fit --overwrite$"):
        fit.piece(path, config, {"faces": "1"}, like, lambda: {})


@pytest.mark.slow
@pytest.mark.parametrize("key", ["pixels", "no_attention"])
def test_a_variant_is_trained_by_our_own_loop_from_the_command(key, drawn, tmp_path):
    fit.main(["--only", key, "--step", "2", "--folder", str(tmp_path), "--run", str(tmp_path / "runs")])
    trained = load_variant(TRAINED[key], drawn, tmp_path)
    fresh = build_editor(variant_config(TRAINED[key], drawn), drawn, TRAINED[key].regions(drawn))
    assert any((value - trained.mapper.get_parameter(name)).abs().max() > 1e-4
               for name, value in fresh.mapper.named_parameters() if name.endswith("bias"))
