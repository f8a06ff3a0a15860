"""The authors' files: converted they compute what the published program does, and nothing else is taken for them."""

import dataclasses
import json
import os
import pickle
import pickletools
import resource
import signal
from collections import OrderedDict
from io import BytesIO

import pytest
import torch
from conftest import assert_close_to_max, published_tensors
from tiny import tiny_editor
from torch import nn

from attention.checkpoints import main
from attention.clip_models import CLIP_MODELS
from attention.errors import UserError, exit_with_message
from attention.files.authors import from_released, to_released
from attention.files.cluster_pickle import read_cluster_pickle, regions_from_pickle
from attention.files.regions import regions_from_metadata
from attention.files.safetensors import read_safetensors, write_safetensors
from attention.method.editor import Place
from attention.method.losses import attention_budget, region_consistency, style_delta
from attention.method.regions import RegionClusters, pool_by_region
from attention.training.convert import NOISE_KEY
from attention.training.folder import claimed
from attention.training.runs import KIND, load_run
from attention.worlds.base import Part
from attention.worlds.registry import WORLDS

GOLDEN_FILES = ("mapper_a7c7", "mapper_a7c10_empty", "mapper_a9c4")
FORMATS = ("mapper_256_cm1_a13_k20", "mapper_1024_cm2_a13_k20")


def published(editor):
    """An editor's weights as the authors' file has them, those that they never use and the noise included."""
    parts = {"mapper": editor.mapper, "attention": editor.attention}
    state = {theirs: module.get_parameter(ours).detach() for module in parts.values()
             for ours, theirs in module.released_names().items()}
    for name in [name for name in state if name.endswith(".conv.weight")]:
        state[name] = state[name][None, :, :, None, None]
        state[name.replace("conv", "noise")] = torch.zeros(1)
        state[name.replace("weight", "modulation.bias")] = torch.ones(state[name].shape[2])
    state["mapper_textca_0.fc.bias"] = torch.zeros(3)
    return {f"module.{name}": value for name, value in (state | {"initial_state": editor.regions.centroids}).items()}


@pytest.fixture(scope="module")
def editor():
    return tiny_editor().requires_grad_(False)


@pytest.fixture
def mapper_file(editor, tmp_path):
    torch.save(published(editor), tmp_path / "final_mapper.pt")
    return tmp_path / "final_mapper.pt"


def published_state(data):
    return {name.removeprefix("sd/"): torch.as_tensor(value) for name, value in data.items() if name.startswith("sd/")}


# --- the numbers

@pytest.mark.parametrize("prefix", ("", "module."))
@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_a_converted_mapper_computes_the_published_styles_and_masks(name, prefix, golden):
    """At the level of the modules: two of the files have regions of another layer than the blend's."""
    data = {key: torch.as_tensor(value) for key, value in golden(name).items()}
    state = {prefix + key: value for key, value in published_state(data).items()}
    parts, centroids = from_released(state, name)
    assert parts.blend == data["config/attention_layer"] - 1 and parts.attention.map_size == data["config/blend_size"]

    styles = [data[f"style_{layer.index:02}"].flatten(1) for layer in parts.layers]
    for change, strength in (("", None), ("demo/", float(data["demo/strength_alpha"]))):
        for index, style in enumerate(parts.mapper(styles, data["text"], strength)[:int(data["config/mapper_layer"])]):
            assert_close_to_max(style, data[f"{change}new_style_{index:02}"].flatten(1), 2e-5)

    features = {layer.index: data[f"feature_{layer.index:02}"] for layer in parts.layers if layer.kind == "conv"}
    raw = parts.attention(data["const_input"], features, data.get("attention_text", data["text"])).sigmoid()
    assert_close_to_max(raw[:, 0], data["each_attention_map"], 2e-5)
    layer = int(data["config/cluster_layer"]) - 1
    labels = RegionClusters(centroids, layer, "ffhq").assign(features[layer], parts.attention.map_size)
    pooled = pool_by_region(raw, labels, len(centroids))
    assert_close_to_max(Place.of(raw, pooled).mask, data["final_attention_map"], 2e-5)
    threshold = float(data["demo/attention_threshold"])
    assert_close_to_max(Place.of(raw, pooled, threshold).mask, data["demo/final_attention_map"], 2e-5)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_gradients_of_losses_and_masks_are_the_published_ones(name, golden):
    """S1 = style delta + attention budget + region consistency; S2 = given weights over mask and new styles."""
    data = {key: torch.as_tensor(value) for key, value in golden(name).items()}
    parts, centroids = from_released(published_state(data), name)
    styles = [data[f"style_{layer.index:02}"].flatten(1) for layer in parts.layers]
    features = {layer.index: data[f"feature_{layer.index:02}"] for layer in parts.layers if layer.kind == "conv"}
    layer, count, regions = int(data["config/cluster_layer"]) - 1, int(data["config/mapper_layer"]), len(centroids)
    labels = RegionClusters(centroids, layer, "ffhq").assign(features[layer], parts.attention.map_size)
    edited = parts.mapper(styles, data["text"])[:count]
    raw = parts.attention(data["const_input"], features, data.get("attention_text", data["text"])).sigmoid()
    mask = Place.of(raw, pool_by_region(raw, labels, regions), straight_through=True).mask
    sums = {"S1": style_delta(edited, styles[:count]) + attention_budget(raw, labels, regions)
            + region_consistency(raw, labels, regions),
            "S2": (mask * data["weight_final"]).sum() + sum((style * data[f"weight_style_{index:02}"].flatten(1)).sum()
                                                            for index, style in enumerate(edited))}
    for which, total in sums.items():
        assert_close_to_max(total, data[which], 2e-5)
        parts.zero_grad()
        total.backward(retain_graph=True)
        compared = 0
        for ours, theirs in parts.names.items():
            if (expected := data.get(f"grad_{which}/{theirs}")) is not None:
                gradient = parts.get_parameter(ours).grad
                gradient = torch.zeros(expected.shape) if gradient is None else gradient.view(expected.shape)
                if expected.any():
                    assert_close_to_max(gradient, expected, 1e-4)
                else:
                    assert not gradient.any(), theirs
                compared += 1
        assert compared == sum(key.startswith(f"grad_{which}/") for key in data) > 10


class EightNumbers(nn.Module):
    dim = 8


@pytest.fixture
def world(editor, tmp_path, monkeypatch):
    """FFHQ with a tiny generator and a CLIP of the tiny width -> the generator's file."""
    path = tmp_path / "stylegan2.pt"
    torch.save({"g_ema": editor.generator.state_dict(), "latent_avg": torch.zeros(16)}, path)
    monkeypatch.setitem(CLIP_MODELS, "eight", lambda source, trust: EightNumbers())
    monkeypatch.setitem(WORLDS, "ffhq", dataclasses.replace(WORLDS["ffhq"], generator=path, clip=Part("eight", "")))
    return path


@pytest.mark.parametrize("generator", ("given", "unknown"))
def test_a_converted_file_loads_as_an_editor_with_the_same_edits(generator, editor, mapper_file, world):
    main(["convert", str(mapper_file), *(["--generator", str(world)] if generator == "given" else [])])
    converted, world, config = load_run(mapper_file.with_suffix(""), "cpu")
    assert converted.regions.generator_hash == (world.generator_hash if generator == "given" else "")
    assert (config.attention_layer, config.cluster_num, config.max_change) == (7, 5, 0)
    text = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    edits = [each(each.source(world.sample_w(2, seed=0)), text, text, threshold=0.5) for each in (editor, converted)]
    assert torch.equal(edits[0].image, edits[1].image) and torch.equal(edits[0].mask, edits[1].mask)


# --- names and shapes

@pytest.fixture(params=FORMATS)
def published_format(request):
    """Name -> shape and use of every tensor of a published file."""
    return published_tensors(request.param)


def of_format(tensors):
    """A state dict of the listed shapes that takes no memory."""
    return {name: torch.zeros(()).expand(entry["shape"]) for name, entry in tensors.items()}


def test_every_published_name_and_shape_converts_and_comes_back(published_format):
    parts, centroids = from_released(of_format(published_format), "file")
    assert parts.blend == 12 and parts.attention.map_size == 64
    restored = to_released(parts, centroids)
    assert {name: list(value.shape) for name, value in restored.items()} == {
        name: entry["shape"] for name, entry in published_format.items()}
    assert {value.dtype for value in restored.values()} == {torch.float32}


def test_only_what_the_published_program_never_uses_may_be_missing(published_format):
    needed = {name: entry for name, entry in published_format.items() if entry["used_in_forward"]}
    assert len(needed) < len(published_format)
    from_released(of_format(needed), "file")
    for name in list(needed)[::9]:          # every kind of tensor; all of them take longer
        with pytest.raises(UserError, match=f"file .*missing {name.removeprefix('module.')}"):
            from_released(of_format({other: needed[other] for other in needed if other != name}), "file")


def test_regions_of_another_layer_than_the_blend_keep_theirs(golden, tmp_path):
    state = published_state(golden("mapper_a9c4"))
    torch.save(state, tmp_path / "mapper.pt")
    written = main(["convert", str(tmp_path / "mapper.pt"), "--cluster_layer", "4"])
    tensors, metadata = read_safetensors(written, "where2edit editor", "")
    regions = regions_from_metadata(tensors["regions.centroids"], json.loads(metadata["regions"]), written)
    assert regions.layer == 3 and torch.equal(regions.centroids, state["initial_state"])
    config = json.loads(metadata["config"])
    assert (config["attention_layer"], config["cluster_layer"], config["cluster_num"]) == (9, 4, 4)


def test_there_and_back_keeps_every_bit_that_is_used(editor, mapper_file):
    folder = main(["convert", str(mapper_file), "--output", str(mapper_file.parent / "run")]).parent
    before = torch.load(mapper_file, weights_only=True)
    after = torch.load(main(["convert", str(folder), "--back"]), weights_only=True)
    used = [name for name in before if "modulation" not in name and "textca_0.fc" not in name]
    assert all(torch.equal(before[name], after[name]) for name in used)
    assert not any(value.any() for name, value in after.items() if name not in used) and set(before) < set(after)


@pytest.mark.parametrize("said", ['{"attention_0.noise.weight": "nan"}', '{"attention_0.noise.weight": 1e300}',
                                  '{"attention_0.noise.weight": true}', '{"a": 0.5}', '{"a": 1' + "0" * 400 + "}"])
def test_noise_that_is_no_strength_is_refused(said, mapper_file):
    folder = main(["convert", str(mapper_file), "--output", str(mapper_file.parent / "run")]).parent
    tensors, metadata = read_safetensors(folder / "editor.safetensors", KIND, "")
    write_safetensors(folder / "editor.safetensors", tensors, metadata | {NOISE_KEY: said})
    with pytest.raises(UserError, match="does not hold a whole editor"):
        main(["convert", str(folder), "--back"])
    assert not (folder / "final_mapper.pt").exists()


def test_a_conversion_replaces_nothing_and_waits_for_nobody(mapper_file):
    run = mapper_file.parent / "run"
    main(["convert", str(mapper_file), "--output", str(run)])
    back = main(["convert", str(run), "--back"])
    before = {path: path.read_bytes() for path in (run / "editor.safetensors", back)}
    for flags in ([str(mapper_file), "--output", str(run)], [str(run), "--back"]):
        with pytest.raises(UserError, match=r"is there already, and would be replaced; .*--output"):
            main(["convert", *flags])
    assert {path: path.read_bytes() for path in before} == before
    (run / "editor.safetensors").unlink()
    with claimed(run), pytest.raises(UserError, match=r"--output \S+ is being written by process"):
        main(["convert", str(mapper_file), "--output", str(run)])


def test_noise_comes_back_as_it_came_and_changes_no_edit(editor, mapper_file, world):
    before = torch.load(mapper_file, weights_only=True)
    noise = {name: torch.full((1,), 0.1 * number) for number, name in enumerate(before) if name.endswith(".noise.weight")}
    torch.save(before | noise, mapper_file)
    with pytest.warns(UserWarning, match=r"not 0, so the published attention maps are random.*--back"):
        folder = main(["convert", str(mapper_file), "--output", str(mapper_file.parent / "run")]).parent
    after = torch.load(main(["convert", str(folder), "--back"]), weights_only=True)
    assert all(torch.equal(after[name], strength) for name, strength in noise.items()) and len(noise) > 2
    converted, world, _ = load_run(folder, "cpu")
    text = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    edits = [each(each.source(world.sample_w(1, seed=0)), text, text, threshold=0.5) for each in (editor, converted)]
    assert torch.equal(edits[0].mask, edits[1].mask)


def test_a_conversion_that_is_killed_leaves_nothing_that_loads(mapper_file):
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))          # the system kills who writes more
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        main(["convert", str(mapper_file)])
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not list(mapper_file.with_suffix("").glob("[!.]*"))
    with pytest.raises(UserError, match="is not a file"):
        load_run(mapper_file.with_suffix(""), "cpu")
    main(["convert", str(mapper_file)])
    assert (mapper_file.with_suffix("") / "editor.safetensors").exists()


def test_a_conversion_never_writes_over_what_it_reads(editor, mapper_file):
    file = mapper_file.with_name("a.safetensors")
    write_safetensors(file, published(editor), {})
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"--output would overwrite .*a\.safetensors"):
        main(["convert", str(file), "--output", str(file)])
    assert file.read_bytes() == before


# --- what is refused

# Changes to the published tensors (None: taken out) and what must be said of them.
SPOILED = {"lacks": ({"attention_textca_5.bias": None}, "missing attention_textca_5.bias"),
           "lacks a layer": ({f"attention_{kind}": None for kind in ("6.conv.weight", "6.noise.weight", "6.activate.bias")},
                             "missing attention_6.conv.weight"),
           "extra": ({"mapper_all_99.weight": torch.zeros(2)}, "unexpected mapper_all_99.weight"),
           "half a layer": ({"mapper_8.weight": torch.zeros(16, 16)}, "missing mapper_8.bias"),
           "shape": ({"mapper_3.bias": torch.zeros(3)}, r"mapper_3.bias is \(3,\) instead of \(16,\)"),
           "flat": ({"attention_6.conv.weight": torch.zeros(5)}, r"attention_6.conv.weight is \(5,\)"),
           "whole numbers": ({"initial_bias": torch.zeros(1).long()}, "initial_bias is no tensor of floats"),
           "regions": ({"initial_state": torch.zeros(5, 12)}, "regions of width 12, .*layer 7 need 18.*--cluster_layer")}
OTHER_FILES = ("missing", "truncated", "empty", "text", "hostile", "generator", "bare generator")


def spoil(kind, path, editor):
    """Put another file in the mapper's place; returns words that the message must have."""
    whole = path.read_bytes()
    path.unlink()
    if kind in SPOILED:
        changes, words = SPOILED[kind]
        state = published(editor) | {f"module.{name}": value for name, value in changes.items()}
        torch.save({name: value for name, value in state.items() if value is not None}, path)
        return words
    if "generator" in kind:
        state = editor.generator.state_dict()
        torch.save({"g_ema": state} if kind == "generator" else state, path)
        return "g_ema is no tensor" if kind == "generator" else "missing attention_0.conv.weight among"
    if kind != "missing":
        path.write_bytes({"truncated": whole[:len(whole) // 2], "empty": b"", "text": b"not weights",
                          "hostile": pickle.dumps({"module.initial_bias": Hostile(path.parent)}, protocol=2)}[kind])
    return "is missing" if kind == "missing" else "not a whole torch file"


class Hostile:
    """Unpickling this creates the file `made` in a folder."""

    def __init__(self, folder, function=os.system):
        self.call = {os.system: (os.system, (f"touch {folder}/made",)), open: (open, (f"{folder}/made", "w")),
                     eval: (eval, (f"open('{folder}/made', 'w')",))}[function]

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("kind", (*OTHER_FILES, *SPOILED))
def test_another_file_is_refused_in_one_sentence_and_nothing_is_written(kind, mapper_file, editor, capsys):
    words = spoil(kind, mapper_file, editor)
    before = sorted(mapper_file.parent.rglob("*"))
    with pytest.raises(UserError, match=f"(?s)final_mapper.pt .*{words}"):
        main(["convert", str(mapper_file)])
    with pytest.raises(SystemExit) as exit_:
        exit_with_message(lambda: main(["convert", str(mapper_file)]))
    assert exit_.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert sorted(mapper_file.parent.rglob("*")) == before


def test_noise_that_the_published_attention_would_draw_is_warned_about(editor):
    state = published(editor)
    state["module.attention_3.noise.weight"] = torch.full((1,), 0.1)
    with pytest.warns(UserWarning, match=r"attention_3.noise.weight not 0.*random"):
        from_released(state, "file")


def test_a_generator_of_other_channels_is_refused(editor, mapper_file, tmp_path):
    other = {name: value for name, value in editor.generator.state_dict().items()
             if not name.startswith(("convs.4.", "convs.5.", "to_rgbs.2.", "noises."))}      # one resolution less
    torch.save({"g_ema": other}, tmp_path / "small.pt")
    with pytest.warns(UserWarning, match="noise maps"), pytest.raises(UserError, match=r"small.pt .*16: 16}, .*32: 8"):
        main(["convert", str(mapper_file), "--generator", str(tmp_path / "small.pt")])
    assert not mapper_file.with_suffix("").exists()


@pytest.mark.parametrize(("kind", "words"), [("bounded", "train with --max_change 0"), ("weighed", r"positions by 0\.6"),
                                             ("regions", "marked 'where2edit regions'"),
                                             ("cut", r"mapper\.to_target\.3\.bias.*train it again: python -m")])
def test_an_editor_that_the_authors_program_cannot_apply_is_refused(kind, words, editor, tmp_path):
    regions = RegionClusters(editor.regions.centroids, 6, "tiny", position_weight=0.6 if kind == "weighed" else 1.0)
    tensors = editor.state_dict() | ({"mapper.limit_0": torch.ones(16)} if kind == "bounded" else {})
    if kind == "cut":
        del tensors["mapper.to_target.3.bias"]
    write_safetensors(tmp_path / "editor.safetensors", tensors,
                      {"kind": "where2edit regions" if kind == "regions" else "where2edit editor",
                       "regions": json.dumps(regions.metadata)})
    with pytest.raises(UserError, match=rf"editor\.safetensors .*{words}"):
        main(["convert", str(tmp_path), "--back"])
    assert [path.name for path in tmp_path.iterdir()] == ["editor.safetensors"]


@pytest.mark.parametrize("words", ([], ["convert"], ["restore", "x.pt"], ["convert", "x.pt", "y.pt"], ["--back"]))
def test_other_words_are_told_the_usage(words):
    with pytest.raises(UserError, match=r"expected: (convert )?FILE"):
        main(words)


# --- the pickle of the regions

CENTROIDS = torch.arange(40.0).reshape(2, 20)
WHOLE = pickle.dumps(CENTROIDS)
STORAGE = next(content for _, content, _ in pickletools.genops(WHOLE) if isinstance(content, bytes))    # torch's archive


def pickled(payload, size=(2, 20), stride=(20, 1)):
    """The pickle of a tensor whose storage is the torch.save archive `payload`."""
    class Call:
        def __init__(self, *call):
            self.call = call

        def __reduce__(self):
            return self.call

    storage = Call(torch.storage._load_from_bytes, (payload,))
    return pickle.dumps(Call(torch._utils._rebuild_tensor_v2, (storage, 0, size, stride, False, OrderedDict())))


def archive(content, **options):
    buffer = BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", (3, 4, 5, "zip", "cuda", "transposed"))
def test_a_pickled_tensor_is_read(kind, tmp_path):
    path = tmp_path / "k_means.pkl"
    if isinstance(kind, int):
        path.write_bytes(pickle.dumps(CENTROIDS, protocol=kind))
    else:
        on_cuda = STORAGE.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
        assert on_cuda != STORAGE
        path.write_bytes({"zip": pickled(archive(CENTROIDS.storage())), "cuda": pickled(on_cuda),
                          "transposed": pickled(STORAGE, (20, 2), (1, 20))}[kind])
    assert torch.equal(read_cluster_pickle(path), CENTROIDS.t() if kind == "transposed" else CENTROIDS)


HOSTILE = {"os.system": "posix.system", "open": r"io\.open", "eval": "builtins.eval", "nested": "posix.system",
           "nested zip": "posix.system", "in a list": "posix.system"}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_named_and_not_run(kind, tmp_path):
    path, hostile = tmp_path / "k_means.pkl", Hostile(tmp_path, {"open": open, "eval": eval}.get(kind, os.system))
    path.write_bytes({"nested": lambda: pickled(archive(hostile, _use_new_zipfile_serialization=False)),
                      "nested zip": lambda: pickled(archive(hostile)),
                      "in a list": lambda: pickle.dumps([CENTROIDS, hostile])}.get(kind, lambda: pickle.dumps(hostile))())
    with pytest.raises(UserError, match=rf"k_means\.pkl .*{HOSTILE[kind]}") as error:
        read_cluster_pickle(path)
    assert not (tmp_path / "made").exists() and "\n" not in str(error.value)


NOT_CENTROIDS = {"truncated": (WHOLE[:100], "cannot be read"), "cut at the end": (WHOLE[:-3], "cannot be read"),
                 "empty": (b"", "cannot be read"), "text": (b"not a pickle", "cannot be read"),
                 "torch.save": (archive(CENTROIDS), "cannot be read"), "list": (pickle.dumps([1.0]), "holds a list"),
                 "dict": (pickle.dumps({"a": CENTROIDS}), "holds a dict"),
                 "parameter": (pickle.dumps(nn.Parameter(CENTROIDS)), "_rebuild_parameter"),
                 "whole numbers": (pickle.dumps(CENTROIDS.long()), r"holds torch.int64 \(2, 20\)"),
                 "flat": (pickle.dumps(CENTROIDS.flatten()), r"holds torch.float32 \(40,\)"),
                 "larger than its numbers": (pickled(STORAGE, (2**40, 20), (0, 0)), "needs more than the 40 numbers")}


@pytest.mark.parametrize("kind", ("missing", *NOT_CENTROIDS))
def test_a_pickle_of_anything_else_is_refused(kind, tmp_path):
    path, (content, words) = tmp_path / "k_means.pkl", NOT_CENTROIDS.get(kind, (None, "is missing"))
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"k_means\.pkl .*{words}.*clustering_feature"):
        read_cluster_pickle(path)


def test_pickled_regions_are_those_of_the_published_fit(tmp_path):
    path = tmp_path / "k_means.pkl"
    path.write_bytes(pickle.dumps(CENTROIDS))
    regions = regions_from_pickle(path, layer=12, domain="ffhq")
    assert torch.equal(regions.centroids, CENTROIDS)
    assert (regions.layer, regions.domain, regions.position_weight, regions.enlarge) == (12, "ffhq", 1, 2)
    regions.check(layer=12, generator_hash="any", num_regions=2)
    with pytest.raises(UserError, match=r"k_means\.pkl"):
        regions.check(layer=12, generator_hash="any", channels=512)
