"""Whole training steps: the published program's own, and one result for any number of processes."""

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max, tiny_editor

from attention.config import GENERAL, RECIPES, TrainConfig, resolve
from attention.errors import UserError
from attention.files.published import SHIPPED
from attention.generator import StyleGAN2
from attention.images import area_resize
from attention.method import losses
from attention.method.editor import RegionEditor, autocast
from attention.method.mapper import StyleMapper
from attention.method.regions import RegionClusters
from attention.run_attention import compiled
from attention.training import distributed
from attention.training import loop as training
from attention.training.runs import load_run
from attention.training.step import Step, backward_at_once, backward_by_parts, ramps_at
from attention.worlds.drawn.fit.clip import augment

# --- the published loop


class StubCLIP:
    """What the golden file has in CLIP's place: average-pooled pixels times a fixed matrix."""

    def __init__(self, matrix):
        self.matrix = matrix

    def encode_image(self, images):
        return F.avg_pool2d(area_resize(images, 224), 28).flatten(1) @ self.matrix * 10


def world(clip):
    return SimpleNamespace(entry=SimpleNamespace(views=None), clip=clip, device=torch.device("cpu"))


def published_editor(data):
    """The golden loop's generator, mapper and attention in our classes."""
    channels = {int(side): int(width) for side, width in data["config/channels"].tolist()}
    generator = StyleGAN2(int(data["config/size"]), style_dim=8, mapping_layers=1, channels=channels)
    weights = {key[4:]: value for key, value in data.items() if key.startswith("gen/")}
    assert set(weights) <= set(generator.state_dict())
    generator.load_state_dict({**generator.state_dict(), **weights})        # mapping and affine layers stay unused
    generator.requires_grad_(False)
    layer, width = int(data["config/attention_layer"]) - 1, int(data["config/clip_dim"])
    editor = RegionEditor(generator, RegionClusters(data["init/initial_state"], layer, "golden"), layer, width)
    editor.mapper = StyleMapper(editor.edited, width, hidden=int(data["config/text_hidden"]))
    for part in (editor.mapper, editor.attention):
        part.load_state_dict({ours: data[f"init/{theirs}"].view_as(part.get_parameter(ours))
                              for ours, theirs in part.released_names().items()})
    return editor


def parameters(editor):
    """Published name -> our parameter."""
    return {theirs: part.get_parameter(ours) for part in (editor.mapper, editor.attention)
            for ours, theirs in part.released_names().items()}


def test_eight_steps_of_the_released_recipe_are_the_published_ones(golden):
    data = golden("train_loop_released")
    editor, steps = published_editor(data), int(data["config/total_steps"])
    config = resolve(TrainConfig(recipe="released", step=steps), {**RECIPES["released"], "lambda_clip": 1.0}, GENERAL)
    assert [config.lambda_ess, config.lambda_sec, config.lambda_id, config.lambda_delta] == pytest.approx(
        data["config/lambda_ess_sec_id_delta"].tolist())
    assert config.lr == float(data["config/lr"]) and config.attention_start == float(data["config/freeze_until"])
    domain = world(StubCLIP(data["stub/clip_matrix"]))
    optimiser = torch.optim.Adam(editor.parameters())
    named = parameters(editor)
    names = {"clip_contrastive": "consist", "region_consistency": "essence", "attention_budget": "secphase",
             "perceptual": "identity", "style_delta": "delta", "total": "total"}
    for step in range(int(data["config/recorded_steps"])):
        t = step / steps
        editor.attention.requires_grad_(t >= config.attention_start)
        row = int(data["pick_source"][step, 0])
        source = editor.source_of([data[f"styles_{index:02}"][row].flatten(1) for index in range(11)])
        target, where = data["log/target_features"][step], data["log/attention_text"][step]
        optimiser.zero_grad()
        values = backward_at_once(Step(
            config, world, editor, editor, source, target, where, [0] * len(where), ramps_at(t),
            lambda image: F.relu(F.conv2d(area_resize(image, 224), data["stub/vgg_weight"], stride=8))))
        optimiser.param_groups[0]["lr"] = losses.learning_rate(t, config.lr)
        with torch.no_grad():
            edit = editor(source, target, where)
        optimiser.step()
        for ours, theirs in names.items():
            assert values[ours] == pytest.approx(float(data[f"log/{theirs}"][step]), rel=1e-3), (step, ours)
        for name in [key.split("/")[1] for key in data if key.startswith(f"has_grad_step{step}/")]:
            assert (named[name].grad is not None) == bool(data[f"has_grad_step{step}/{name}"]), name
        for key in [key for key in data if key.startswith(f"after_step{step}/")]:
            assert_close_to_max(named[key.split("/")[1]].data.view_as(data[key]), data[key], 1e-3)
        for key in [key for key in data if key.startswith(f"grad_step{step}/")]:
            gradient = named[key.split("/")[1]].grad
            if gradient is not None:
                assert_close_to_max(gradient.view_as(data[key]), data[key], 1e-2)
        moment = {0: "first", int(data["config/recorded_steps"]) - 1: "last"}.get(step)
        if moment:
            assert_close_to_max(edit.image, data[f"log/image_{moment}_step"], 1e-3)
            assert_close_to_max(edit.mask, data[f"log/attention_map_{moment}_step"], 1e-3)


# --- several processes, several parts

PROMPTS = 8
SETTINGS = resolve(TrainConfig(temperature=0.1, relative=True, lambda_area=0.3), GENERAL)


def tiny_step():
    """An editor, a source, and what and where of PROMPTS prompts, in a world with a linear CLIP."""
    editor = tiny_editor()
    random = torch.Generator().manual_seed(1)
    source = editor.source(torch.randn(1, 16, generator=random))
    target, where = (torch.randn(PROMPTS, 8, generator=random) for _ in range(2))
    matrix = torch.randn(3 * 8 * 8, 8, generator=random)
    clip = SimpleNamespace(encode_image=lambda images: F.avg_pool2d(images, 4).flatten(1) @ matrix)
    return world(clip), editor, source, target, where


def run_backward(backward, config, world, editor, edit, source, target, where):
    return backward(Step(config, world, editor, edit, source, target, where, list(range(len(where))), ramps_at(0.5),
                         lambda image: image))


def joint_gradient(folder):
    """One step's gradients of the tiny editor, all prompts together; in a group, each process takes its own rows."""
    with distributed.group(torch.device("cpu")):
        world, editor, source, target, where = tiny_step()
        wrapped = distributed.parallel(editor)
        run_backward(backward_at_once, SETTINGS, world, editor, wrapped, source, distributed.own_rows(target),
                     distributed.own_rows(where))
        gradients = {name: value.grad for name, value in editor.named_parameters()}
        torch.save(gradients, f"{folder}/{distributed.world_size()}_{distributed.rank()}.pt")


@pytest.mark.parametrize("micro_batch", (1, 2, 3))
def test_parts_of_a_batch_give_the_gradient_and_the_values_of_the_whole(micro_batch):
    whole, parted = tiny_step(), tiny_step()
    values = run_backward(backward_at_once, SETTINGS, whole[0], whole[1], *whole[1:])
    same = run_backward(backward_by_parts, replace(SETTINGS, micro_batch=micro_batch), parted[0], parted[1], *parted[1:])
    assert same == pytest.approx(values, rel=1e-5)
    for one, other in zip(whole[1].parameters(), parted[1].parameters(), strict=True):
        assert_close_to_max(other.grad, one.grad, 1e-4)
    vectors = [torch.cat([value.grad.flatten() for value in step[1].parameters()]) for step in (whole, parted)]
    assert (vectors[1] - vectors[0]).norm() <= 1e-5 * vectors[0].norm()


@pytest.mark.parametrize("micro_batch", (1, 3))
def test_parts_see_the_augmented_views_of_the_whole(micro_batch):
    gradients = []
    for backward, config in ((backward_at_once, SETTINGS), (backward_by_parts, replace(SETTINGS, micro_batch=micro_batch))):
        world, editor, source, target, where = tiny_step()
        world.entry.views = augment
        run_backward(backward, config, world, editor, editor, source, target, where)
        gradients.append(torch.cat([value.grad.flatten() for value in editor.parameters()]))
    assert (gradients[1] - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_parts_need_no_other_loss_than_the_contrastive_one():
    world, editor, source, target, where = tiny_step()
    config = replace(SETTINGS, micro_batch=1, lambda_ess=0.0, lambda_sec=0.0, lambda_area=0.0, lambda_id=0.0,
                     lambda_delta=0.0)
    values = run_backward(backward_by_parts, config, world, editor, editor, source, target, where)
    assert values["total"] == values["clip_contrastive"] > 0


# --- precision

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def allow_half_on_cpu(monkeypatch):
    """fp16 is refused on a CPU because it is slow there; tiny tensors do not mind."""
    monkeypatch.setattr(training, "autocast", lambda precision, device: torch.autocast(
        device.type, HALF.get(precision), enabled=precision in HALF))


def gradients_in(precision, monkeypatch, **settings):
    """Gradients of the tiny step, through find_gradients; also the scales that it tried."""
    allow_half_on_cpu(monkeypatch)
    world, editor, source, target, where = tiny_step()
    editor.source = lambda w: source
    world.sample_w = lambda count, seed: None
    monkeypatch.setattr(training, "conditions", lambda *arguments: (target, where))
    config = replace(SETTINGS, precision=precision, batch_size=PROMPTS, **settings)
    values = training.find_gradients(config, world, editor, editor, config.step // 2, None, lambda image: image)
    return torch.cat([value.grad.flatten() for value in editor.parameters()]), values


@pytest.mark.parametrize("precision", HALF)
def test_gradients_in_half_precision_are_finite_and_near_those_in_float32(precision, monkeypatch):
    whole, _ = gradients_in("fp32", monkeypatch)
    half, values = gradients_in(precision, monkeypatch)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    assert F.cosine_similarity(half, whole, dim=0) > 0.99
    assert values["gradient_norm"] == pytest.approx(float(whole.norm()), rel=0.05)


def test_small_gradients_do_not_vanish_in_fp16(monkeypatch):
    # At 1024 px a pixel's gradient is about this small; half precision has no numbers between 0 and 6e-8.
    small = dict(lambda_clip=1e-6, lambda_ess=0.0, lambda_sec=0.0, lambda_area=0.0, lambda_id=0.0, lambda_delta=0.0)
    whole, _ = gradients_in("fp32", monkeypatch, **small)
    half, _ = gradients_in("fp16", monkeypatch, **small)
    assert F.cosine_similarity(half, whole, dim=0) > 0.99


def test_a_step_that_overflows_in_fp16_is_done_again_with_smaller_gradients(monkeypatch):
    scales, real = [], training.backward_at_once

    def overflowing(step):
        scales.append(step.scale)
        values = real(step)
        if step.scale > 100:
            step.editor.attention.initial.grad.fill_(torch.inf)
        return values

    monkeypatch.setattr(training, "backward_at_once", overflowing)
    _, values = gradients_in("fp16", monkeypatch)
    assert scales == [2.0**12, 2.0**6] and math.isfinite(values["gradient_norm"])


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match=r"--precision is fp16.*use --precision bf16"):
        autocast("fp16", torch.device("cpu"))


def test_edits_of_the_shipped_editor_in_bf16_equal_those_in_float32_to_40_db():
    editor, world, _ = load_run(SHIPPED, device="cpu")
    text = world.clip.encode_text(["blonde hair", "beard", "rosy cheeks", "glasses"])
    edits = {}
    for precision in ("fp32", "bf16"):
        with torch.no_grad(), autocast(precision, world.device):
            source = editor.source(world.sample_w(4, seed=77))
            edits[precision] = editor(source, text, text)
    assert torch.equal(edits["bf16"].mask, edits["fp32"].mask)          # nothing that decides is rounded
    error = (edits["bf16"].image.clamp(-1, 1) - edits["fp32"].image.clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(4 / error)).min() >= 40


@pytest.mark.slow
def test_compiled_synthesis_trains_as_the_plain_one():
    gradients = []
    for wrap in (lambda synthesis: synthesis, compiled):
        world, editor, source, target, where = tiny_step()
        editor.generator.synthesis = wrap(editor.generator.synthesis)
        run_backward(backward_at_once, SETTINGS, world, editor, editor, source, target, where)
        gradients.append(torch.cat([value.grad.flatten() for value in editor.parameters()]))
    assert_close_to_max(gradients[1], gradients[0], 1e-4)


def run_in(processes, folder):
    command = [sys.executable, "-c", "import sys; sys.path[:0] = ['tests', '.']\n"
               "from functools import partial\nfrom attention import distributed\nimport test_training\n"
               f"distributed.start({processes}, None, partial(test_training.joint_gradient, {str(folder)!r}))"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("processes", (2, 4, pytest.param(8, marks=pytest.mark.slow)))
def test_the_gradient_does_not_depend_on_the_number_of_processes(processes, tmp_path):
    joint_gradient(tmp_path)
    run_in(processes, tmp_path)
    alone = torch.load(tmp_path / "1_0.pt", weights_only=True)
    for rank in range(processes):
        together = torch.load(tmp_path / f"{processes}_{rank}.pt", weights_only=True)
        errors = {name: (together[name] - value).norm() for name, value in alone.items()}
        whole, error = (torch.stack(list(values)).norm() for values in ([value.norm() for value in alone.values()],
                                                                        errors.values()))
        assert error <= 1e-5 * whole
        for name, value in alone.items():               # no tensor is lost in the sum; tiny ones round more
            assert errors[name] <= 1e-4 * value.norm(), name


def test_one_prompt_in_all_processes_together_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        losses.clip_contrastive(torch.randn(1, 8), torch.randn(1, 8))


def test_own_rows_lose_no_prompt_and_give_none_twice(monkeypatch):
    rows = list(range(12))
    monkeypatch.setenv("WORLD_SIZE", "4")
    parts = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        parts += distributed.own_rows(rows)
    assert parts == rows


@pytest.mark.parametrize(("gpus", "all_gpus", "count"),
                         [(None, False, 1), ("0", True, 1), ("0,1,2", True, 3), ("0,1", False, 1)])
def test_the_published_flags_say_how_many_processes(gpus, all_gpus, count):
    assert distributed.process_count(gpus, torch.device("cpu"), all_gpus) == count


@pytest.mark.parametrize("gpus", ("0,0", "a", "0;1", ""))
def test_a_wrong_gpu_id_is_named(gpus):
    with pytest.raises(ValueError, match="--gpu_id"):
        distributed.process_count(gpus, torch.device("cpu"), True)
