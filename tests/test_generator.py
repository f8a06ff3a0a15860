"""The generator: the published values, names, shapes and layer table; blending; sizes read off the weights."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max, published_tensors
from torch import nn

from attention.errors import UserError
from attention.generator import (
    Blend,
    LayerSpec,
    StyleGAN2,
    blended_layers,
    conv_layers,
    edited_layers,
    mix,
    published_channels,
    synthesis_layers,
)
from attention.generator.layers import (
    EqualLinear,
    ModulatedConv2d,
    PixelNorm,
    StyledConv,
    ToRGB,
    fir_kernel,
    modulated_conv2d,
)
from attention.ops import upfirdn2d_reference

GOLDEN_FILES = ["generator_32", "generator_32_mul"]
CHANNELS = {4: 10, 8: 8, 16: 6, 32: 4}

# index, kind, side, in, out, row of w+: the 26 style layers of the published 1024 px generator
PUBLISHED_1024 = [
    (0, "conv", 4, 512, 512, 0), (1, "rgb", 4, 512, 3, 1),
    (2, "conv", 8, 512, 512, 1), (3, "conv", 8, 512, 512, 2), (4, "rgb", 8, 512, 3, 3),
    (5, "conv", 16, 512, 512, 3), (6, "conv", 16, 512, 512, 4), (7, "rgb", 16, 512, 3, 5),
    (8, "conv", 32, 512, 512, 5), (9, "conv", 32, 512, 512, 6), (10, "rgb", 32, 512, 3, 7),
    (11, "conv", 64, 512, 512, 7), (12, "conv", 64, 512, 512, 8), (13, "rgb", 64, 512, 3, 9),
    (14, "conv", 128, 512, 256, 9), (15, "conv", 128, 256, 256, 10), (16, "rgb", 128, 256, 3, 11),
    (17, "conv", 256, 256, 128, 11), (18, "conv", 256, 128, 128, 12), (19, "rgb", 256, 128, 3, 13),
    (20, "conv", 512, 128, 64, 13), (21, "conv", 512, 64, 64, 14), (22, "rgb", 512, 64, 3, 15),
    (23, "conv", 1024, 64, 32, 15), (24, "conv", 1024, 32, 32, 16), (25, "rgb", 1024, 32, 3, 17),
]


def weights(arrays, prefix="sd/"):
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def load(arrays):
    return StyleGAN2.from_state_dict(weights(arrays), float(arrays["config/lr_mlp"]))


def stored_styles(arrays, prefix):
    return [arrays[name].flatten(1) for name in sorted(arrays) if name.startswith(f"{prefix}/style_")]


@pytest.fixture(scope="module")
def tiny():
    """A 32 px generator whose noise and biases are not zero."""
    torch.manual_seed(0)
    generator = StyleGAN2(32, style_dim=12, mapping_layers=2, channels=CHANNELS)
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise.weight", "activate.bias")) or (name.startswith("to_rgb") and name.endswith(".bias")):
            nn.init.normal_(parameter)
    return generator.requires_grad_(False)


# --- the published program

@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_mapping_truncation_and_mixing_are_the_published_ones(name, golden):
    arrays = golden(name)
    generator = load(arrays)
    assert_close_to_max(generator.mapping(arrays["z"]), arrays["w"], 2e-5)
    mixed = mix(generator.mapping(arrays["z"]), generator.mapping(arrays["A2/z2"]), int(arrays["A2/inject_index"]),
                generator.n_latent)
    assert_close_to_max(mixed, arrays["A2/latent"], 2e-5)
    assert_close_to_max(generator.synthesis(generator.styles(mixed)).image, arrays["A2/image"], 2e-5)
    generator.mean_w = arrays["mean_w"][0]
    truncated = generator.mapping(arrays["z"], float(arrays["A/truncation"]))
    assert_close_to_max(truncated, arrays["A/latent"][:, 0], 2e-5)
    assert_close_to_max(generator.synthesis(generator.styles(truncated)).image, arrays["A/image"], 2e-5)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_styles_features_and_images_are_the_published_ones(name, golden):
    arrays = golden(name)
    generator = load(arrays)
    styles = generator.styles(arrays["B/wplus"])
    image, features = generator.synthesis(styles)
    assert_close_to_max(image, arrays["B/image"], 2e-5)
    for index, (style, feature) in enumerate(zip(styles, features, strict=True)):
        assert_close_to_max(style, arrays[f"B/style_{index:02d}"].flatten(1), 2e-5)
        assert_close_to_max(feature, arrays[f"B/feature_{index:02d}"], 2e-5)
    noise = [arrays[f"B2/noise_{number}"] for number in range(7)]
    assert_close_to_max(generator.synthesis(styles, noise=noise).image, arrays["B2/image"], 2e-5)
    assert_close_to_max(generator.synthesis(stored_styles(arrays, "C")).image, arrays["C/image"], 2e-5)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_float64_synthesis_is_the_published_one(name, golden):
    arrays = golden(name)
    generator = load(arrays).double()
    source = generator.synthesis(generator.styles(arrays["B/wplus"].double()))
    assert_close_to_max(source.image, arrays["B/image64"], 1e-9)
    for index in range(5):
        if f"B/feature64_{index:02d}" in arrays:
            assert_close_to_max(source.features[index], arrays[f"B/feature64_{index:02d}"], 1e-9)
    styles = [style.double() for style in stored_styles(arrays, "C")]
    assert_close_to_max(generator.synthesis(styles).image, arrays["C/image64"], 1e-9)
    features = [arrays[f"B/feature_{index:02d}"].double() for index in range(11)]      # recorded with a float32 source
    blend = Blend(int(arrays["D0/attention_layer"]) - 1, arrays["D0/attention_map"].double(), features)
    assert_close_to_max(generator.synthesis(styles, blend=blend).image, arrays["D0/image64"], 1e-9)


@pytest.mark.parametrize(("name", "cases"), [("generator_32", 3), ("generator_32_mul", 2)])
def test_blends_and_their_gradients_are_the_published_ones(name, cases, golden):
    arrays = golden(name)
    generator = load(arrays).requires_grad_(False)
    source = generator.synthesis(generator.styles(arrays["B/wplus"])).features
    for case in range(cases):
        styles = [style.requires_grad_() for style in stored_styles(arrays, "C")]
        mask = arrays[f"D{case}/attention_map"].requires_grad_()
        blend = Blend(int(arrays[f"D{case}/attention_layer"]) - 1, mask, source)
        image, features = generator.synthesis(styles, blend=blend)
        assert_close_to_max(image, arrays[f"D{case}/image"], 2e-5)
        for index, feature in enumerate(features):
            if f"D{case}/feature_{index:02d}" in arrays:
                assert_close_to_max(feature, arrays[f"D{case}/feature_{index:02d}"], 2e-5)
        *gradients, mask_gradient = torch.autograd.grad((image * arrays["D/image_weight"]).sum(), [*styles, mask])
        assert_close_to_max(mask_gradient, arrays[f"D{case}/grad_attention_map"], 1e-4)
        for index, gradient in enumerate(gradients):
            assert_close_to_max(gradient, arrays[f"D{case}/grad_style_{index:02d}"].flatten(1), 1e-4)


def test_equal_linear_and_pixel_norm_are_the_published_ones(golden):
    for case in range(3):
        arrays = weights(golden("ops_layers"), f"lin{case}/")
        layer = EqualLinear(12, 14, lr_mul=float(arrays["lr_mul"]), activation=bool(arrays["fused_lrelu"]))
        layer.load_state_dict({"weight": arrays["weight"], "bias": arrays["bias"]})
        assert_close_to_max(layer(arrays["x"]), arrays["y"], 2e-5)
    arrays = weights(golden("ops_layers"), "pixelnorm/")
    assert_close_to_max(PixelNorm()(arrays["x"]), arrays["y_dim1"], 2e-5)


def test_modulated_convolution_is_the_published_one(golden):
    for case, out_channels, kernel_size, options in (("plain3", 14, 3, {}), ("up3", 14, 3, {"upsample": True}),
                                                     ("rgb1", 3, 1, {"demodulate": False})):
        arrays = weights(golden("ops_layers"), f"mod_{case}/")
        layer = ModulatedConv2d(10, out_channels, kernel_size, 12, **options)
        layer.load_state_dict({**layer.state_dict(), "weight": arrays["weight"], "modulation.weight": arrays["mod_weight"],
                               "modulation.bias": arrays["mod_bias"]})
        x, style = arrays["x"].requires_grad_(), arrays["style"].flatten(1).requires_grad_()
        assert_close_to_max(layer.modulation(arrays["w"]), style, 2e-5)
        y = layer(x, style)
        assert_close_to_max(y, arrays["y"], 2e-5)
        for gradient, name in zip(torch.autograd.grad(y, [x, style, layer.weight], arrays["grad_y"]),
                                  ("grad_x", "grad_style", "grad_weight"), strict=True):
            assert_close_to_max(gradient.flatten(1), arrays[name].flatten(1), 1e-4)


def test_styled_convolution_and_to_rgb_are_the_published_ones(golden):
    arrays = golden("ops_layers")
    styled = StyledConv(10, 14, 12, upsample=True)
    styled.load_state_dict(weights(arrays, "styledconv/sd/"))
    style = styled.conv.modulation(arrays["styledconv/w"])
    assert_close_to_max(styled(arrays["styledconv/x"], style, arrays["styledconv/noise"]), arrays["styledconv/y"], 2e-5)
    to_rgb = ToRGB(10, 12)
    to_rgb.load_state_dict(weights(arrays, "torgb/sd/"))
    style = to_rgb.conv.modulation(arrays["torgb/w"])
    assert_close_to_max(to_rgb(arrays["torgb/x"], style, arrays["torgb/skip"]), arrays["torgb/y"], 2e-5)


def test_state_dict_has_the_published_names_and_shapes():
    for resolution, multiplier in ((1024, 2), (256, 2), (256, 1)):
        published = published_tensors(f"generator_{resolution}_cm{multiplier}")
        expected = {key: entry["shape"] for key, entry in published.items()}
        with torch.device("meta"):
            generator = StyleGAN2(resolution, channels=published_channels(resolution, multiplier))
        assert {key: list(tensor.shape) for key, tensor in generator.state_dict().items()} == expected


# --- the layer table

def test_layer_table_of_1024_px_is_the_published_one():
    assert synthesis_layers(1024, published_channels(1024)) == [LayerSpec(*entry) for entry in PUBLISHED_1024]


def test_published_layer_13_edits_14_styles_and_feeds_layer_14():
    layers = synthesis_layers(1024, published_channels(1024))
    assert (blended_layers(layers, 12), len(edited_layers(layers, 12))) == ([12, 13], 14)


def test_a_blend_between_two_convolutions_leaves_the_later_one_unedited():
    layers = synthesis_layers(32, CHANNELS)
    assert [layer.index for layer in edited_layers(layers, 8)] == list(range(9))    # as the golden mapper_a9c4


def test_only_conv_layers_can_blend_and_the_message_lists_them(tiny):
    styles = tiny.styles(torch.randn(1, 12))
    for index in (1, 4, -1, 11):
        blend = Blend(index, torch.zeros(1, 1, 8, 8), tiny.synthesis(styles).features)
        with pytest.raises(UserError, match=r"conv layers 1, 3, 4, 6, 7, 9, 10$"):
            tiny.synthesis(styles, blend=blend)


def test_impossible_resolutions_and_sides_without_channels_are_refused():
    for resolution, words in ((0, "power of two"), (4, "power of two"), (48, "power of two"), (64, r"sides \[64\]")):
        with pytest.raises(ValueError, match=words):
            synthesis_layers(resolution, CHANNELS)


# --- what synthesis promises

def test_an_empty_mask_gives_the_source_and_a_full_one_the_edit_to_the_bit(tiny):
    for layer in conv_layers(tiny.layers):
        source_styles, other = (tiny.styles(torch.randn(2, 12)) for _ in range(2))
        edited = len(edited_layers(tiny.layers, layer.index))
        styles = other[:edited] + source_styles[edited:]
        source, edit = tiny.synthesis(source_styles), tiny.synthesis(styles)
        assert not torch.equal(source.image, edit.image)
        for value, expected in [(0.0, source), (1.0, edit)]:
            blend = Blend(layer.index, torch.full((2, 1, 16, 16), value), source.features)
            assert torch.equal(tiny.synthesis(styles, blend=blend).image, expected.image), layer


def test_one_source_serves_a_whole_batch(tiny):
    source, styles = tiny.synthesis(tiny.styles(torch.randn(1, 12))).features, tiny.styles(torch.randn(3, 12))
    mask = torch.rand(3, 1, 8, 8)
    together = tiny.synthesis(styles, blend=Blend(6, mask, source))
    repeated = tiny.synthesis(styles, blend=Blend(6, mask, [feature.expand(3, -1, -1, -1) for feature in source]))
    torch.testing.assert_close(together.image, repeated.image)


def test_one_style_serves_a_whole_batch(tiny):
    first, second = tiny.styles(torch.randn(3, 12)), tiny.styles(torch.randn(1, 12))
    together = tiny.synthesis(first[:5] + second[5:]).image
    repeated = tiny.synthesis(first[:5] + [style.expand(3, -1) for style in second[5:]]).image
    torch.testing.assert_close(together, repeated)


@pytest.mark.parametrize("kernel_size, up", [(3, False), (3, True), (1, False)])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("styles, side", [(1, 16), (1, 2), (2, 16)])
def test_scales_on_weights_or_pixels_equal_grouped_weights_of_every_image(kernel_size, up, learns, styles, side):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, side, side).double(), torch.randn(4, 5, kernel_size, kernel_size).double()
    style = torch.randn(styles, 5).double().requires_grad_(learns)
    kernel = fir_kernel(4).double() if up else None
    grouped = weight * style.expand(2, -1)[:, None, :, None, None]                          # (2, 4, 5, k, k)
    grouped = 3 * grouped * torch.rsqrt(grouped.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    if up:
        expected = torch.cat([upfirdn2d_reference(F.conv_transpose2d(one[None], own.transpose(0, 1), stride=2), kernel,
                                                  pad=(1, 1)) for one, own in zip(x, grouped, strict=True)])
    else:
        expected = F.conv2d(x.view(1, 10, side, side), grouped.flatten(0, 1), padding=kernel_size // 2, groups=2)
    expected = expected.view(2, 4, *expected.shape[2:])
    actual = modulated_conv2d(x, weight, style, up_kernel=kernel, gain=3)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    if learns:
        factor = torch.randn_like(expected)
        torch.testing.assert_close(*(torch.autograd.grad((y * factor).sum(), style)[0] for y in (actual, expected)))


def test_a_generator_with_weights_in_half_precision_runs_in_it(tiny):
    half = copy.deepcopy(tiny).to(torch.bfloat16)
    for w in (torch.randn(1, 12), torch.randn(2, 12)):              # one picture takes another way than several
        image = half.synthesis(half.styles(w)).image
        assert image.dtype == torch.bfloat16
        assert_close_to_max(image.float(), tiny.synthesis(tiny.styles(w)).image, 0.1)


def test_features_are_shrunk_to_what_is_asked_for_and_the_picture_stays(tiny):
    styles = tiny.styles(torch.randn(2, 12))
    whole, small, none = (tiny.synthesis(styles, feature_side=side) for side in (None, 8, 0))
    assert torch.equal(small.image, whole.image) and torch.equal(none.image, whole.image) and none.features == []
    for kept, feature in zip(small.features, whole.features, strict=True):
        step = max(1, feature.shape[-1] // 8)
        assert torch.equal(kept, feature[:, :, ::step, ::step])


def test_stopping_early_gives_the_same_features_and_no_image(tiny):
    styles = tiny.styles(torch.randn(1, 12))
    short, full = tiny.synthesis(styles[:7], until=6), tiny.synthesis(styles)
    assert short.image is None and len(short.features) == 7
    assert all(torch.equal(a, b) for a, b in zip(short.features, full.features, strict=False))


def test_const_noise_repeats_and_random_noise_does_not(tiny):
    styles = tiny.styles(torch.randn(1, 12))
    images = {noise: [tiny.synthesis(styles, noise=noise).image for _ in range(2)] for noise in ("const", "random")}
    assert torch.equal(*images["const"]) and not torch.equal(*images["random"])


def test_wrong_arguments_are_refused(tiny):
    styles = tiny.styles(torch.randn(1, 12))
    for options in ({"noise": "off"}, {"noise": [torch.zeros(1, 1, 4, 4)]}, {"until": 11}, {"until": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            tiny.synthesis(styles, **options)
    with pytest.raises(ValueError, match="got 10 styles for the 11 layers"):
        tiny.synthesis(styles[:-1])
    for shape in ((1, 11), (1, 7, 12), (12,)):
        with pytest.raises(ValueError, match=r"takes \(B, 12\) or \(B, 8, 12\)"):
            tiny.styles(torch.randn(shape))


def test_mean_w_is_seeded_and_truncation_zero_is_exactly_it(tiny):
    tiny.mean_w = None
    w = tiny.mapping(torch.randn(2, 12), truncation=0.0)
    first = tiny.mean_w
    torch.testing.assert_close(w, first.expand(2, -1))
    tiny.set_mean_w()
    assert torch.equal(first, tiny.mean_w) and "mean_w" not in tiny.state_dict()


def test_bfloat16_autocast_stays_close_and_reaches_the_styles(tiny):
    styles = [style.requires_grad_() for style in tiny.styles(torch.randn(2, 12))]
    with torch.autocast("cpu", torch.bfloat16):
        image = tiny.synthesis(styles).image
    assert image.dtype == torch.float32                                         # the picture adds up in float32
    assert_close_to_max(image, tiny.synthesis(styles).image, 0.05)
    gradients = torch.autograd.grad(image.square().sum(), styles)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


def test_synthesis_can_be_differentiated_twice():
    generator = StyleGAN2(8, style_dim=4, mapping_layers=1, channels={4: 3, 8: 2}).double()
    styles = [style.detach().requires_grad_() for style in generator.styles(torch.randn(1, 4))]
    assert torch.autograd.gradgradcheck(lambda *styles: generator.synthesis(styles).image, styles, fast_mode=True)


# --- sizes read off the weights

def test_sizes_are_read_off_the_weights():
    channels = {4: 5, 8: 7, 16: 3, 32: 6, 64: 2}
    for resolution, style_dim, depth in ((16, 6, 3), (32, 12, 1), (64, 5, 8)):
        original = StyleGAN2(resolution, style_dim, depth, channels)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = StyleGAN2.from_state_dict(original.state_dict())
        assert loaded.layers == original.layers
        z = torch.randn(1, style_dim)
        for generator in (original, loaded):
            generator.eval()
        assert torch.equal(*(g.synthesis(g.styles(g.mapping(z))).image for g in (original, loaded)))


def test_loading_copies_the_weights(tiny):
    state = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    loaded = StyleGAN2.from_state_dict(state)
    state["input.input"].zero_()
    assert loaded.input.input.abs().sum() > 0


def test_missing_noise_maps_warn_and_are_seeded(tiny):
    state = {name: tensor for name, tensor in tiny.state_dict().items() if not name.startswith("noises.")}
    with pytest.warns(UserWarning, match="7 noise maps"):
        first = StyleGAN2.from_state_dict(state)
    with pytest.warns(UserWarning, match="7 noise maps"):
        second = StyleGAN2.from_state_dict(state)
    assert torch.equal(first.noises.noise_6, second.noises.noise_6) and first.noises.noise_6.std() > 0.9


def broken(state, kind):
    state = dict(state)
    if kind == "missing":
        del state["convs.3.conv.weight"]
    elif kind == "unexpected":
        state["latent_in"] = torch.zeros(1)
    elif kind == "shape":
        state["conv1.activate.bias"] = torch.zeros(11)
    elif kind == "another kind":
        state = {"visual.proj": torch.zeros(2, 2)}
    elif kind == "whole file":
        state = {"g_ema": state}
    return state


def test_wrong_weights_are_named(tiny):
    for kind, message in (
            ("missing", "missing convs.3.conv.weight"), ("unexpected", "unexpected latent_in"),
            ("shape", r"conv1.activate.bias is \(11,\) instead of \(10,\)"), ("another kind", "they hold visual.proj"),
            ("whole file", "under the key g_ema")):
        with pytest.raises(UserError, match=message):
            StyleGAN2.from_state_dict(broken(tiny.state_dict(), kind))
