"""Losses: parity with the released ones, closed forms, and their schedules."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max

from attention.errors import UserError
from attention.method.losses import (
    ATTENTION_FROZEN_UNTIL,
    PERCEPTUAL_RAMP,
    REGION_RAMP,
    attention_area,
    attention_budget,
    clip_contrastive,
    learning_rate,
    perceptual,
    ramp,
    region_consistency,
    style_delta,
)

MAPPER_FILES = ("mapper_a7c7", "mapper_a7c10_empty", "mapper_a9c4")


# --- contrastive

def test_contrastive_loss_is_the_released_one(golden):
    data = golden("infonce")
    for case in ("c0", "c1"):
        generated = data[f"{case}/generated"].requires_grad_()
        loss = clip_contrastive(generated, data[f"{case}/target"])
        loss.backward()
        assert_close_to_max(loss, data[f"{case}/loss"], 2e-5)
        assert_close_to_max(generated.grad, data[f"{case}/grad_generated"], 1e-4)


def test_contrastive_loss_of_orthogonal_targets_has_a_closed_form():
    """At temperature 0.1, rows on their targets: -log(e^10 / (e^10 + 2)); rows on the next: -log(1 / (e^10 + 2))."""
    eye, rest = torch.eye(3), torch.tensor(10.0).exp() + 2
    torch.testing.assert_close(clip_contrastive(5 * eye, 2 * eye, temperature=0.1), rest.log() - 10)
    torch.testing.assert_close(clip_contrastive(eye.roll(1, 0), eye, temperature=0.1), rest.log())


def test_further_texts_are_wrong_answers_of_every_edit():
    """Five orthogonal texts, three of them asked for, at temperature 0.1: -log(e^10 / (e^10 + 4))."""
    eye = torch.eye(5)
    torch.testing.assert_close(clip_contrastive(eye[:3], eye, temperature=0.1), (torch.tensor(10.0).exp() + 4).log() - 10)


def test_contrastive_loss_is_not_rounded_under_autocast():
    generated, target = torch.randn(4, 32), torch.randn(4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = clip_contrastive(generated, target)
    assert torch.equal(rounded, clip_contrastive(generated, target))


def test_one_prompt_cannot_be_contrasted():
    with pytest.raises(UserError, match="at least 2"):
        clip_contrastive(torch.randn(1, 8), torch.randn(1, 8))


# --- regions

@pytest.mark.parametrize("name", MAPPER_FILES)
def test_losses_of_regions_and_styles_are_the_released_ones(name, golden):
    data = golden(name)
    attention, num_regions = data["each_attention_map"][:, None], int(data["config/clusters"])
    labels = data["choice"] - num_regions * torch.arange(len(attention))[:, None, None]
    assert_close_to_max(attention_budget(attention, labels, num_regions), data["loss_reg"][0], 2e-5)
    assert_close_to_max(region_consistency(attention, labels, num_regions), data["loss_tv"], 2e-5)
    before, after = ([data[f"{prefix}style_{index:02}"].flatten(1) for index in range(int(data["config/mapper_layer"]))]
                     for prefix in ("", "new_"))
    assert_close_to_max(style_delta(after, before), data["loss_delta"], 2e-5)


def test_budget_counts_regions_not_pixels():
    """Regions of 12 and 4 pixels at 0.9, an empty one: twice 0.2, whatever their sizes."""
    attention, labels = torch.full((2, 1, 4, 4), 0.9), torch.zeros(2, 4, 4, dtype=torch.int64)
    labels[:, 0] = 1
    torch.testing.assert_close(attention_budget(attention, labels, 3), torch.tensor(0.4))


def test_budget_is_free_up_to_the_allowed_mean():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert attention_budget(torch.full((1, 1, 4, 4), 0.69), labels, 1) == 0


def test_consistency_is_the_variance_within_regions():
    labels = torch.tensor([[[0, 0], [1, 1]]])
    attention = torch.tensor([[[[0.2, 0.6], [0.5, 0.5]]]])
    torch.testing.assert_close(region_consistency(attention, labels, 2), torch.tensor(2 * 0.2**2 / 4))


def test_consistency_pulls_pixels_to_their_region_mean():
    labels, attention = torch.zeros(1, 1, 2, dtype=torch.int64), torch.tensor([[[[0.2, 0.6]]]], requires_grad=True)
    region_consistency(attention, labels, 1).backward()
    torch.testing.assert_close(attention.grad, torch.tensor([[[[-0.2, 0.2]]]]))


def test_area_counts_relative_to_the_mask_image_by_image():
    """Half a picture and a hundredth: the roots 0.71 and 0.1; a further speck weighs seven times as much in the second."""
    half, speck = torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20)
    half[..., :10, :], speck[..., :2, :2] = 1, 1
    attention = torch.cat([half, speck]).requires_grad_()
    area = attention_area(attention)
    torch.testing.assert_close(area, torch.tensor((0.5**0.5 + 0.1) / 2), rtol=1e-2, atol=0)
    area.backward()
    assert float(attention.grad[1, 0, 9, 9] / attention.grad[0, 0, 9, 9]) == pytest.approx(50**0.5, rel=1e-2)
    empty = torch.zeros(1, 1, 4, 4, requires_grad=True)
    attention_area(empty).backward()
    assert empty.grad.isfinite().all()


# --- features and styles

def test_one_source_serves_all_edits():
    edited, source = torch.randn(3, 4, 5, 5), torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(perceptual(edited, source), F.mse_loss(edited, source.expand(3, -1, -1, -1)))


def test_style_delta_averages_layers_of_any_width_equally():
    before, after = [torch.zeros(2, 4), torch.zeros(2, 1)], [torch.ones(2, 4), torch.tensor([[3.0], [-1.0]])]
    torch.testing.assert_close(style_delta(after, before), torch.tensor((2 + 2) / 2.0))


def test_style_delta_of_no_change_has_a_finite_gradient():
    style = torch.randn(2, 4, requires_grad=True)
    style_delta([style], [style.detach().clone()]).backward()
    assert style.grad.isfinite().all()


# --- schedules

def test_learning_rate_is_the_released_schedule(golden):
    data = golden("schedule")
    rates = [learning_rate(float(t), float(data["initial_lr"])) for t in data["t"]]
    assert rates == pytest.approx([float(rate) for rate in data["lr"]], abs=1e-9)


def test_ramps_are_the_released_ones_and_attention_starts_to_learn_with_its_own(golden):
    data = golden("schedule")
    for key, period in (("ramp_id", PERCEPTUAL_RAMP), ("ramp_tv_reg", REGION_RAMP)):
        assert [ramp(float(t), period) for t in data["t"]] == pytest.approx([float(r) for r in data[key]], abs=1e-9), key
    assert REGION_RAMP[0] == ATTENTION_FROZEN_UNTIL
    frozen = [float(t) < ATTENTION_FROZEN_UNTIL for t in data["t"]]
    assert frozen == [bool(f) for f in data["attention_frozen_as_probably_meant"]]
