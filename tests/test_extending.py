"""Every example of docs/extending.md is run as it stands there, as one file of a user, and takes part."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_generator_contract import PROMISES
from tiny import tiny_toml, world_file

from attention import clustering_feature, run_attention
from attention.baselines import METHODS
from attention.baselines.base import Method
from attention.clip_models import CLIP_MODELS
from attention.clip_models.base import TextImageModel
from attention.config import ClusterConfig, TrainConfig
from attention.errors import UserError
from attention.evaluation.metrics import METRICS, Asked, measure, table
from attention.files.generator import GENERATORS, load_generator
from attention.files.published import ROOT, SHIPPED
from attention.method.editor import RegionEditor
from attention.method.losses import TERMS
from attention.method.mapper import MAPPERS
from attention.training.clustering import fit_regions
from attention.training.runs import load_run
from attention.worlds.parts import VIEWS
from attention.worlds.registry import WORLDS, configured, load_world

REGISTRIES = (TERMS, MAPPERS, CLIP_MODELS, GENERATORS, WORLDS, VIEWS, METRICS, METHODS)
# Name of a section -> its first block of Python.
EXAMPLES = dict(re.findall(r"^## An? (.+?)\n.*?^```python\n(.*?)^```", (ROOT / "docs/extending.md").read_text(),
                           flags=re.MULTILINE | re.DOTALL))


@pytest.fixture(autouse=True)
def registries():
    """What an example enters is taken out again."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def example(tmp_path):
    """example("loss") imports the block of that section from a file of its own, as `import my_loss` does."""

    def run(name):
        path = write(name, tmp_path)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module                 # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield run
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def write(name: str, folder: Path) -> Path:
    path = folder / re.match(r'"""(my_\w+\.py):', EXAMPLES[name]).group(1)
    path.write_text(EXAMPLES[name])
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a world of random weights, tiny.toml, and its regions."""
    folder = tmp_path_factory.mktemp("tiny")
    world = tiny_toml(folder)
    clustering_feature.main(["--domain", str(world), "--run", str(folder / "run"), "--step", "1"])
    return folder


def train(domain: Path | str, run: Path, regions: Path, *flags: str) -> Path:
    return run_attention.main(["--domain", str(domain), "--run", str(run), "--cluster_path", str(regions), "--step", "1",
                               "--batch_size", "2", "--device", "cpu", *flags])


def test_there_is_an_example_of_every_kind():
    assert list(EXAMPLES) == ["loss", "mapper", "CLIP backend", "generator", "world", "metric", "baseline"]


def test_the_loss_has_a_flag_is_logged_under_its_name_and_changes_gradients(tiny, tmp_path):
    program = write("loss", tmp_path)
    flags = ["--domain", str(tiny / "tiny.toml"), "--cluster_path", str(tiny / "run/regions.safetensors"), "--step", "1",
             "--batch_size", "2", "--device", "cpu", "--attention_start", "0"]
    twice = (f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
             f"import {program.stem}\n"
             "from attention.run_attention import main\n"
             "for weight in '05':\n"
             f"    main([*{flags!r}, '--run', {str(tmp_path)!r} + '/' + weight, '--lambda_decided', weight])")
    subprocess.run([sys.executable, "-c", twice], check=True, timeout=120)
    without, with_it = (json.loads((tmp_path / weight / "metrics.jsonl").read_text()) for weight in "05")
    assert "attention_decided" not in without and 0 < with_it["attention_decided"] <= 0.25
    assert with_it["total"] == pytest.approx(without["total"] + 5 * with_it["attention_decided"], rel=1e-4)
    assert with_it["gradient_norm"] != pytest.approx(without["gradient_norm"], rel=1e-3)


def test_the_mapper_is_chosen_by_its_flag_trained_and_edits(tiny, tmp_path, example):
    module = example("mapper")
    run = train(tiny / "tiny.toml", tmp_path / "run", tiny / "run/regions.safetensors", "--mapper", "direction")
    editor, world, _ = load_run(run, "cpu")
    assert type(editor.mapper) is module.DirectionMapper
    source, text = editor.source(world.sample_w(1, seed=1)), world.clip.encode_text(["red hair"])
    styles = editor.mapper(source.styles, text)
    changed = [not torch.equal(after, before) for after, before in zip(styles, source.styles, strict=True)]
    assert changed == [layer < len(editor.edited) for layer in range(len(changed))]
    everywhere = torch.ones(1, 1, 16, 16)
    assert not torch.equal(editor.apply(source, styles, everywhere).image, source.image)
    assert torch.equal(editor.apply(source, editor.mapper(source.styles, text, 0.0), everywhere).image, source.image)


def test_the_clip_backend_is_loaded_by_a_world_that_names_it_and_trains(tiny, tmp_path, example):
    example("CLIP backend")
    (tiny / "palette.json").write_text(json.dumps({"red": [1, -1, -1], "blue": [-1, -1, 1]}))
    path = world_file(tiny, "colours", 'kind = "palette", source = "palette.json"')
    clip = load_world(str(path), device="cpu").clip
    assert isinstance(clip, TextImageModel) and clip.words == {"red", "blue"}
    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 32, 32).clone().requires_grad_()
    near, far = torch.cosine_similarity(clip.encode_image(red), clip.encode_text(["red hair", "blue eyes"]))
    assert near.item() == pytest.approx(1) and far < 0
    assert torch.autograd.grad(far, red)[0].isfinite().all()
    run = train(path, tmp_path / "run", tiny / "run/regions.safetensors")
    assert load_run(run, "cpu")[0].attention.last.style.weight.shape[1] == clip.dim


@pytest.mark.parametrize("promise", PROMISES)
def test_the_generator_keeps_every_promise_of_the_contract(promise, example):
    torch.manual_seed(0)
    generator = example("generator").PlainGenerator(12, {4: 8, 8: 6, 16: 6, 32: 4, 64: 4})
    PROMISES[promise](generator.requires_grad_(False).eval())


def test_the_generator_is_built_of_its_file_and_edits_in_a_world(tiny, tmp_path, example):
    module = example("generator")
    original = module.PlainGenerator(12, {4: 8, 8: 16, 16: 16, 32: 8})
    save_file(original.state_dict(), tiny / "plain.safetensors")
    loaded, _ = load_generator(tiny / "plain.safetensors")
    assert type(loaded) is module.PlainGenerator and loaded.layers == original.layers
    path = world_file(tiny, "plain", 'kind = "tiny", source = "clip.safetensors"', "plain.safetensors", layer=3)
    regions = clustering_feature.main(["--domain", str(path), "--run", str(tmp_path), "--step", "1", "--device", "cpu"])
    editor, world, _ = load_run(train(path, tmp_path, regions), "cpu")
    assert_edits_inside_a_mask(editor, world)
    with pytest.raises(UserError, match="not a whole plain generator"):
        GENERATORS["plain"].build({name: tensor for name, tensor in original.state_dict().items() if name != "constant"})


def test_weights_that_nobody_recognises_are_told_as_before(tmp_path):
    save_file({"anything": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors: these weights are not a StyleGAN2 generator"):
        load_generator(tmp_path / "other.safetensors")


def test_the_world_edits(example):
    example("world")
    world = load_world("dusk", device="cpu")
    assert configured(TrainConfig, domain="dusk").cluster_num == 16
    assert torch.equal(world.views(torch.ones(1, 3, 2, 2), [0]), torch.zeros(1, 3, 2, 2))
    config = configured(ClusterConfig, domain="dusk", step=1, batch_size=2, cluster_num=4)
    regions = fit_regions(world, config)
    editor = RegionEditor(world.generator, regions, config.attention_layer - 1, world.clip.dim).requires_grad_(False)
    assert_edits_inside_a_mask(editor, world)


def assert_edits_inside_a_mask(editor, world):
    """The editor changes the left half of a face and not the pixels at its right edge."""
    torch.manual_seed(0)
    source, text = editor.source(world.sample_w(1, seed=1)), world.clip.encode_text(["red hair"])
    side = editor.attention.map_size
    mask = torch.zeros(1, 1, side, side)
    mask[..., :side // 2] = 1
    edit = editor.apply(source, editor.mapper(source.styles, text, 1.0), mask)
    assert not torch.equal(edit.image, source.image)
    assert torch.equal(edit.image[..., -4:], source.image[..., -4:])


def test_the_metric_has_a_value_and_a_column(example):
    example("metric")
    world = load_world("drawn", device="cpu")
    z = torch.randn(2, world.generator.style_dim, generator=torch.Generator().manual_seed(0))
    before = world.picture(world.w_from_z(z))
    blurred = torch.nn.functional.avg_pool2d(before, 5, stride=1, padding=2)
    figures = measure(before, blurred, None, Asked.of(world.truth, world.truth.faces(z), "red hair"), world.clip)
    assert 0 < figures["sharpness"] < 0.9
    assert f"{figures['sharpness']:.2f}" in table({"blurred": figures}, "method")
    assert table({"blurred": figures}, "method").splitlines()[0].endswith("| sharpness |")


def test_the_baseline_is_a_method_and_edits(example):
    example("baseline")
    world = load_world("drawn", device="cpu")
    method = METHODS["neighbours"](world, SHIPPED)
    assert isinstance(method, Method) and method.key == "neighbours" and method.strength in method.strengths
    z = torch.randn(2, world.generator.style_dim, generator=torch.Generator().manual_seed(1))
    w, faces = world.w_from_z(z), world.truth.faces(z)
    source, (same, mask) = world.picture(w), method.edit(w, "red hair", 0.0, faces)
    assert mask is None and torch.equal(same, source)
    edited, _ = method.edit(w, "red hair", method.strengths[-1], faces)
    text = world.clip.encode_text(["red hair"])
    before, after = (torch.cosine_similarity(world.clip.encode_image(images), text).mean() for images in (source, edited))
    assert after > before + 0.02
