"""Whole training steps: the published program's own, and one result for any number of processes."""

import math
import socket
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max
from second_process import joint_gradient, tiny_step
from tiny import LinearCLIP, tiny_world
from warm import Program

from attention.config import TrainConfig
from attention.devices import _has_bf16, _tell_imitated, autocast, rough
from attention.errors import UserError
from attention.files.published import SHIPPED
from attention.generator import StyleGAN2
from attention.images import area_resize
from attention.method import losses
from attention.method.editor import RegionEditor
from attention.method.mapper import StyleMapper
from attention.method.regions import RegionClusters
from attention.processes import own_rows
from attention.training import distributed
from attention.training.captions import PhraseSampler
from attention.training.loop import compiled
from attention.training.runs import load_run
from attention.training.step import Draw, Learner, backward_at_once, draw, gradients
from attention.worlds.registry import configured

# --- the published loop


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
    config = configured(TrainConfig, domain="ffhq", recipe="released", step=steps)
    assert [config.lambda_ess, config.lambda_sec, config.lambda_id, config.lambda_delta] == pytest.approx(
        data["config/lambda_ess_sec_id_delta"].tolist())
    assert config.lr == float(data["config/lr"]) and config.attention_start == float(data["config/freeze_until"])
    world = tiny_world(editor.generator, LinearCLIP(data["stub/clip_matrix"], 8, 10), perceptual=lambda image: F.relu(
        F.conv2d(area_resize(image, 224), data["stub/vgg_weight"], stride=8)))
    learner = Learner.of(config, world, editor)
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
        values = backward_at_once(learner, Draw(t, source, target, where, where[:0], [0] * len(where)))
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

def gradient_of(learner):
    return torch.cat([value.grad.flatten() for value in learner.editor.parameters()])


@pytest.mark.parametrize("micro_batch", (1, 2, 3))
def test_parts_of_a_batch_give_the_gradient_and_the_values_of_the_whole(micro_batch):
    (whole, draw), (parted, same) = tiny_step(views="noisy"), tiny_step(views="noisy", micro_batch=micro_batch)
    assert gradients(parted, same) == pytest.approx(gradients(whole, draw), rel=1e-4)
    for one, other in zip(whole.editor.parameters(), parted.editor.parameters(), strict=True):
        assert_close_to_max(other.grad, one.grad, 1e-4)
    assert (gradient_of(parted) - gradient_of(whole)).norm() <= 1e-5 * gradient_of(whole).norm()


def test_parts_need_no_other_loss_than_the_contrastive_one():
    learner, draw = tiny_step(micro_batch=1, **{term.flag: 0.0 for term in losses.TERMS.values() if not term.joint})
    values = gradients(learner, draw)
    assert values["total"] == values["clip_contrastive"] > 0


def test_a_draw_depends_on_seed_and_number_alone_and_gradients_on_the_draw_alone():
    editor, world, config = load_run(SHIPPED, device="cpu")
    learner = Learner.of(config.replaced(batch_size=2, micro_batch=2), world, editor.requires_grad_(True))
    sampler = PhraseSampler(world.prompts, seed=1)
    first, other, again = (draw(learner, sampler, number) for number in (3, 4, 3))
    assert torch.equal(first.target, again.target) and first.seeds == again.seeds and first.t == again.t
    assert torch.equal(first.source.image, again.source.image) and not torch.equal(first.target, other.target)
    values = [gradients(learner, one) for one in (first, other, again)]
    assert values[0] == values[2] != values[1]


# --- precision

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def step_in(precision, **settings):
    """The tiny step in half precision, which tiny tensors do not mind on a CPU."""
    learner, draw = tiny_step(precision=precision, **settings)
    cast = partial(torch.autocast, "cpu", HALF.get(precision), enabled=precision in HALF)
    return Learner(learner.config, learner.world, learner.editor, learner.editor, cast), draw


def gradients_in(precision, **settings):
    learner, draw = step_in(precision, **settings)
    values = gradients(learner, draw)
    return gradient_of(learner), values


@pytest.mark.parametrize("precision", HALF)
def test_gradients_in_half_precision_are_finite_and_near_those_in_float32(precision):
    whole, _ = gradients_in("fp32")
    half, values = gradients_in(precision)
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    assert F.cosine_similarity(half, whole, dim=0) > 0.99
    assert values["gradient_norm"] == pytest.approx(float(whole.norm()), rel=0.05)


def test_small_gradients_do_not_vanish_in_fp16():
    # At 1024 px a pixel's gradient is about this small; half precision has no numbers between 0 and 6e-8.
    small = {term.flag: 1e-6 if term.joint else 0.0 for term in losses.TERMS.values()}
    whole, _ = gradients_in("fp32", **small)
    half, _ = gradients_in("fp16", **small)
    assert F.cosine_similarity(half, whole, dim=0) > 0.99


def test_a_step_that_overflows_in_fp16_is_done_again_with_smaller_gradients():
    learner, draw = step_in("fp16")
    seen = []

    def overflow_once(gradient):
        seen.append(float(gradient))
        return torch.full_like(gradient, torch.inf) if len(seen) == 1 else gradient

    learner.editor.attention.initial.register_hook(overflow_once)
    values = gradients(learner, draw)
    assert len(seen) == 2 and seen[0] == pytest.approx(2.0**6 * seen[1], rel=0.05)
    assert math.isfinite(values["gradient_norm"])


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match=r"--precision is fp16.*use --precision bf16"):
        autocast("fp16", torch.device("cpu"))


def test_a_processor_without_bf16_takes_fp32_in_its_place_and_says_so_once(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    _has_bf16.cache_clear()
    _tell_imitated.cache_clear()
    convolution, image = torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4)
    with rough(image.device):                                           # nobody asked for it, so nothing is told
        assert convolution(image).dtype == torch.float32
    with pytest.warns(UserWarning, match="no bf16.* fp32 is taken") as told:
        for _ in range(2):
            with autocast("bf16", image.device):
                assert convolution(image).dtype == torch.float32
    assert len(told) == 1
    _has_bf16.cache_clear()


def test_edits_of_the_shipped_editor_in_bf16_equal_those_in_float32_to_40_db(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)       # or imitated: here it is slow
    _has_bf16.cache_clear()
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
    _has_bf16.cache_clear()


@pytest.mark.slow
def test_compiled_synthesis_trains_as_the_plain_one():
    found = []
    for wrap in (lambda synthesis: synthesis, compiled):
        learner, draw = tiny_step()
        learner.editor.generator.synthesis = wrap(learner.editor.generator.synthesis)
        gradients(learner, draw)
        found.append(gradient_of(learner))
    assert_close_to_max(found[1], found[0], 1e-4)


def run_in(processes, folder):
    """Joint gradients of so many processes, each told by the environment which it is, as torchrun tells it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": f"{processes}", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    programs = [Program.of_code("import os, sys; sys.path[:0] = ['tests', '.']\n"
                        f"os.environ |= {together | {'RANK': f'{number}', 'LOCAL_RANK': f'{number}'}}\n"
                        f"import second_process; second_process.joint_gradient({str(folder)!r})",
                        [], folder / f"said by {number}") for number in range(processes)]
    for program in programs:
        _, errors = program.communicate(timeout=120)
        assert program.returncode == 0, errors


@pytest.mark.parametrize("processes", (2, *(pytest.param(count, marks=pytest.mark.slow) for count in (4, 8))))
def test_the_gradient_does_not_depend_on_the_number_of_processes(processes, tmp_path):
    joint_gradient(tmp_path)
    run_in(processes, tmp_path)
    alone = torch.load(tmp_path / "1_0.pt", weights_only=True)
    for number in range(processes):
        together = torch.load(tmp_path / f"{processes}_{number}.pt", weights_only=True)
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
    for number in range(4):
        monkeypatch.setenv("RANK", str(number))
        parts += own_rows(rows)
    assert parts == rows


@pytest.mark.parametrize(("gpus", "all_gpus", "count"),
                         [(None, False, 1), ("0", True, 1), ("0,1,2", True, 3), ("0,1", False, 1)])
def test_the_published_flags_say_how_many_processes(gpus, all_gpus, count, recwarn):
    assert distributed.process_count(gpus, torch.device("cpu"), all_gpus) == count
    assert [str(one.message) for one in recwarn] == [
        "--gpu_id names 2 GPUs, but without --multiprocessing-distributed only 0 trains"] * (gpus == "0,1" and not all_gpus)


@pytest.mark.parametrize("gpus", ("0,0", "a", "0;1", "", "0,²", "0, 0", "-1"))
def test_a_wrong_gpu_id_is_named(gpus):
    with pytest.raises(ValueError, match="--gpu_id"):
        distributed.process_count(gpus, torch.device("cpu"), True)
