"""Spatial attention and its gate: parity with the released ones, and what an edit may rely on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max
from scipy import ndimage
from tiny import tiny_editor

from attention.errors import UserError
from attention.generator import synthesis_layers
from attention.method.editor import Place
from attention.method.losses import attention_budget, region_consistency
from attention.method.regions import pool_by_region
from attention.method.spatial_attention import (
    ISLAND,
    NEAR,
    ROWS,
    SpatialAttention,
    TextConv,
    between_rows,
    blur_mask,
    near_sure,
    threshold_attention,
    threshold_for,
    without_islands,
)

GOLDEN_FILES = ("mapper_a7c7", "mapper_a7c10_empty", "mapper_a9c4")
CHANNELS = {4: 12, 8: 10, 16: 8, 32: 6}
LAYERS = synthesis_layers(32, CHANNELS)
TEXT_DIM = 14


def random_inputs(batch=1, texts=1):
    features = [torch.randn(batch, layer.out_channels, layer.resolution, layer.resolution) for layer in LAYERS]
    return torch.randn(1, 12, 4, 4), features, torch.randn(texts, TEXT_DIM)


def small_attention(map_size=16):
    torch.manual_seed(0)
    return SpatialAttention(LAYERS, 12, TEXT_DIM, map_size)


class Released:
    """Our attention with a golden file's weights and inputs, run up to the mask."""

    def __init__(self, data):
        self.data = data
        channels = {side: data[f"feature_{index:02}"].shape[1] for side, index in ((4, 0), (8, 2), (16, 5), (32, 8))}
        layers = synthesis_layers(int(data["config/size"]), channels)
        self.module = SpatialAttention(layers, data["const_input"].shape[1], int(data["config/clip_dim"]),
                                       int(data["config/blend_size"]))
        shapes = {name: value.shape for name, value in self.module.state_dict().items()}
        self.names = self.module.released_names()
        self.module.load_state_dict({ours: data[f"sd/{theirs}"].reshape(shapes[ours])
                                     for ours, theirs in self.names.items()})
        features = {layer.index: data[f"feature_{layer.index:02}"] for layer in layers if layer.kind == "conv"}
        self.attention = self.module(data["const_input"], features, data.get("attention_text", data["text"])).sigmoid()
        self.num_regions = int(data["config/clusters"])
        self.labels = data["choice"] - self.num_regions * torch.arange(len(self.attention))[:, None, None]
        self.pooled = pool_by_region(self.attention, self.labels, self.num_regions)

    def compare_gradients(self, kind):
        gradients = {theirs: self.module.get_parameter(ours).grad for ours, theirs in self.names.items()}
        compared = [key for key in self.data if key.removeprefix(f"grad_{kind}/") in gradients]
        assert len(compared) == 10
        for key in compared:
            gradient = gradients[key.removeprefix(f"grad_{kind}/")]
            assert_close_to_max(gradient, self.data[key].reshape(gradient.shape), 1e-4)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_attention_masks_gradients_and_the_names_of_weights_are_the_released_ones(name, golden):
    released = Released(golden(name))
    theirs = [key[3:] for key in released.data if key.startswith(("sd/attention_", "sd/initial_bias"))]
    assert set(released.names) == set(released.module.state_dict())
    assert sorted(released.names.values()) == sorted(key for key in theirs if not key.endswith("noise.weight"))
    assert_close_to_max(released.attention[:, 0], released.data["each_attention_map"], 2e-5)
    mask = Place.of(released.pooled, released.pooled, straight_through=True).mask
    assert_close_to_max(mask, released.data["final_attention_map"], 2e-5)
    in_demo = Place.of(released.pooled, released.pooled, float(released.data["demo/attention_threshold"])).mask
    assert_close_to_max(in_demo, released.data["demo/final_attention_map"], 2e-5)

    (mask * released.data["weight_final"]).sum().backward(retain_graph=True)
    released.compare_gradients("S2")
    released.module.zero_grad()
    (attention_budget(released.attention, released.labels, released.num_regions)
     + region_consistency(released.attention, released.labels, released.num_regions)).backward()
    released.compare_gradients("S1")


# --- the module

def test_text_convolution_is_the_formula():
    """One text, one pixel at a time: modulate, scale to unit norm, dot product, bias, leaky ReLU, gain."""
    conv, x, text = TextConv(5, 3, TEXT_DIM), torch.randn(2, 5, 2, 4), torch.randn(2, TEXT_DIM)
    torch.nn.init.normal_(conv.bias)
    expected = torch.empty(2, 3, 2, 4)
    for b in range(2):
        kernel = conv.weight * conv.style(text[b:b + 1]) / 5**0.5
        kernel = kernel / (kernel.square().sum(1, keepdim=True) + 1e-8).sqrt()
        for y in range(2):
            for column in range(4):
                expected[b, :, y, column] = F.leaky_relu(kernel @ x[b, :, y, column] + conv.bias, 0.2) * 2**0.5
    torch.testing.assert_close(conv(x, text), expected)


def test_resizing_early_equals_resizing_late():
    for map_size in (4, 16, 32):
        attention = small_attention(map_size)
        constant, features, text = random_inputs(texts=2)
        maps = [constant] + [feature for layer, feature in zip(LAYERS, features, strict=True) if layer.kind == "conv"]
        late = [F.interpolate(head(x, text), size=map_size, mode="nearest")
                for head, x in zip(attention.heads, maps, strict=True)]
        expected = attention.last(torch.cat(late, dim=1), text) + attention.initial
        torch.testing.assert_close(attention(constant, features, text), expected)


def test_one_source_with_many_texts_is_that_source_repeated():
    constant, features, text = random_inputs(texts=3)
    repeated = small_attention()(constant, [feature.expand(3, -1, -1, -1) for feature in features], text)
    torch.testing.assert_close(small_attention()(constant, features, text), repeated)


def test_untrained_attention_says_everywhere():
    attention = small_attention()(*random_inputs(texts=4)).sigmoid()
    assert attention.shape == (4, 1, 16, 16) and attention.min() > 0.95


def test_attention_draws_no_noise():
    attention, inputs = small_attention(), random_inputs()
    assert torch.equal(attention(*inputs), attention(*inputs))


def test_attention_depends_on_the_text():
    constant, features, text = random_inputs(texts=2)
    one, other = small_attention()(constant, features, text)
    assert (one - other).abs().max() > 0.1


def test_attention_runs_in_float32_under_autocast():
    attention, inputs = small_attention(), random_inputs(texts=2)
    expected = attention(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention(*inputs), expected)


def test_rgb_layers_are_never_read():
    constant, features, text = random_inputs()
    without = {layer.index: features[layer.index] for layer in LAYERS if layer.kind == "conv"}
    assert torch.equal(small_attention()(constant, features, text), small_attention()(constant, without, text))


def test_every_weight_of_the_attention_learns():
    attention = small_attention()
    attention(*random_inputs(texts=2)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in attention.parameters())


# --- the gate

def test_attention_below_the_threshold_becomes_zero_and_the_rest_stays():
    attention, expected = torch.tensor([0.79, 0.8, 0.81, 1.0]), torch.tensor([0, 0.8, 0.81, 1.0])
    for straight_through in (False, True):
        assert torch.equal(threshold_attention(attention, 0.8, straight_through), expected)


def test_only_straight_through_lets_gradient_pass_below_the_threshold():
    for straight_through, gradient in ((True, [1, 1]), (False, [0, 1])):
        attention = torch.tensor([[[[0.1, 0.9]]]], requires_grad=True)
        threshold_attention(attention, 0.8, straight_through).sum().backward()
        assert attention.grad.flatten().tolist() == gradient


def test_islands_are_the_small_ones_of_the_parts_that_a_library_finds():
    masks = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(3))
    masks = masks * (masks > torch.tensor([0.0, 0.6, 0.7, 2.0])[:, None, None, None])
    masks[1, :, :9, :9], masks[2, :, 12:, 12:] = 1, 1
    found = without_islands(masks)
    for mask, kept in zip(masks[:, 0].numpy(), found[:, 0].numpy(), strict=True):
        labels, count = ndimage.label(mask > 0, np.ones((3, 3)))                        # corners hang together too
        sizes = ndimage.sum(mask > 0, labels, range(count + 1))
        expected = np.where(sizes[labels] >= ISLAND * (mask > 0).sum(), mask, 0)
        assert np.array_equal(kept, expected)
    assert 0 < (found[1] > 0).sum() < (masks[1] > 0).sum()


@torch.no_grad()
def test_an_editor_that_follows_edges_leaves_islands_out_at_every_coverage():
    attention = torch.zeros(1, 1, 16, 16)
    attention[..., :8], attention[..., 12, 12] = 0.9, 0.95
    whole, plain = (Place.of(attention, attention, 0.85, whole=whole) for whole in (True, False))
    assert whole.gated[..., 12, 12] == whole.mask[..., 12, 12] == 0
    assert torch.equal(whole.gated[..., :8], attention[..., :8])
    assert torch.equal(plain.gated, attention)
    assert whole.at(0.8).gated[..., 12, 12] == 0 and plain.at(0.8).gated[..., 12, 12] > 0
    assert whole.at(0.92).gated[..., 12, 12] > 0                                        # there it is all
    editor = tiny_editor()
    source, text = editor.source(torch.randn(1, 16)), torch.randn(1, 8)
    assert not editor.locate(source, text).whole
    editor.follows_edges = True
    assert editor.locate(source, text).whole and not editor.locate(source, text, straight_through=True).whole


def test_attention_falls_to_nothing_where_a_part_never_is():
    """Row by row, as it is drawn on paper: of 16 rows a half lies above, an eighth below; nothing is known of the other."""
    attention = torch.rand(2, 1, 16, 5)
    found = between_rows(attention, torch.tensor([[0.5], [0.0]]), torch.tensor([[0.125], [0.0]]))
    assert torch.equal(found[1], attention[1])
    for row in range(16):
        beyond = max(8 - (row + 0.5), row + 0.5 - 14, 0)
        torch.testing.assert_close(found[0, 0, row], attention[0, 0, row] * max(0, 1 - beyond / ROWS))
    assert (found[0, 0, :4] == 0).all() and torch.equal(found[0, 0, 8:14], attention[0, 0, 8:14])


@torch.no_grad()
def test_a_text_is_about_nothing_beyond_the_rows_of_its_part():
    """Of a region, too, that lies there as well; and of a photo, whose places are found in two faces."""
    editor = tiny_editor()
    source, (lips, other) = editor.source(torch.randn(1, 16)), torch.eye(8)[:2, None]
    source = replace(source, labels=torch.zeros_like(source.labels), shared=editor.source(torch.randn(1, 16)))
    before = [editor.locate(source, text, 0.0) for text in (lips, other)]
    assert all((place.mask > 0).all() for place in before)
    height = before[0].mask.shape[-2]
    editor.attention.above.set(torch.cat([lips, other]), torch.tensor([[0.75], [0.0]]))
    after = [editor.locate(source, text, 0.01) for text in (lips, other)]
    free = int(0.75 * height) - ROWS
    assert (after[0].gated[..., :free, :] == 0).all() and (after[0].gated[..., -2:, :] > 0).all()
    assert torch.equal(after[0].raw, before[0].raw)             # what is trained stays what it is
    torch.testing.assert_close(after[1].gated, before[1].gated, rtol=0, atol=0.01)


def test_what_passes_a_gate_lies_near_what_passes_a_narrower_one_at_every_threshold():
    attention, surely = torch.rand(2, 3, 1, 20, 20).unbind()
    surely = attention * surely**6                                                          # seldom
    found = near_sure(attention, surely)
    for threshold in (0.3, 0.6, 0.9):
        near = ndimage.binary_dilation((surely >= threshold)[:, 0].numpy(), np.ones((1, 2 * NEAR + 1, 2 * NEAR + 1)))
        assert np.array_equal((found >= threshold)[:, 0].numpy(), (attention >= threshold)[:, 0].numpy() & near)
    assert torch.equal(near_sure(attention, attention), attention)


@torch.no_grad()
def test_a_text_that_asks_for_more_nearby_loses_what_lies_far_from_it():
    """Regions that pass are nearly sure on the left, and just pass on the right."""
    editor = tiny_editor()
    source, (wall, other) = editor.source(torch.randn(1, 16)), torch.eye(8)[:2, None]
    logits = torch.full((1, 1, *source.labels.shape[-2:]), 1.6)                             # of 0.83
    logits[..., :4] = 4.0
    source = replace(source, labels=(logits[:, 0] > 2).long())
    editor.attention.surer.set(torch.cat([wall, other]), torch.tensor([[2.0], [0.0]]))
    asked, not_asked = (editor.place(source, logits, text, 0.8).gated > 0 for text in (wall, other))
    assert not_asked.all() and asked[..., :4 + NEAR].all() and not asked[..., 4 + NEAR:].any()


def test_blur_is_a_gaussian_of_sigma_1_1():
    spike = torch.zeros(1, 1, 9, 9)
    spike[..., 4, 4] = 1
    blurred = blur_mask(spike)[0, 0]
    offsets = torch.arange(-2, 3).float()
    weights = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.1**2))
    torch.testing.assert_close(blurred[2:7, 2:7], weights / weights.sum())
    torch.testing.assert_close(blurred.sum(), torch.tensor(1.0))


def test_a_mask_that_is_constant_stays_so_up_to_its_edges():
    torch.testing.assert_close(blur_mask(torch.ones(2, 1, 6, 4)), torch.ones(2, 1, 6, 4))


def test_coverage_moves_the_threshold_from_1_to_three_quarters():
    assert [threshold_for(coverage) for coverage in (0, 0.8, 1)] == pytest.approx([1, 0.8, 0.75])


def test_coverage_outside_its_range_is_refused():
    for coverage in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="coverage"):
            threshold_for(coverage)
