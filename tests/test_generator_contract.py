"""What the method relies on, of every generator architecture: a new one is one line in GENERATORS."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attention.generator import Blend, Generator, MobileStyleGAN, StyleGAN2, conv_layers, edited_layers, nearest
from attention.generator.early import EarlyGenerator, EarlyHead


def stylegan2() -> Generator:
    generator = StyleGAN2(64, style_dim=12, mapping_layers=2, channels={4: 10, 8: 8, 16: 6, 32: 4, 64: 4})
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise.weight", "bias")):                 # zeros at birth, which would hide a missing term
            torch.nn.init.normal_(parameter)
    return generator


def mobile() -> Generator:
    generator = MobileStyleGAN((16, 12, 8, 8), style_dim=12, mapping_layers=2)                      # 64 px
    for name, value in generator.state_dict().items():
        if name.endswith(("noise", "bias")):                        # zeros at birth, which would hide a missing term
            torch.nn.init.normal_(value)
    return generator


def early() -> Generator:
    """The first two blocks of a network of three, and a head that reads the second."""
    whole = MobileStyleGAN((16, 12, 8, 8), style_dim=12, mapping_layers=2)
    head = EarlyHead(6, whole.layers[6].out_channels, 12, width=6)
    for value in (head.modulation.weight, head.colours.weight):
        torch.nn.init.normal_(value)
    return EarlyGenerator(whole, head)


# Name -> what makes a small generator of random weights, the picture at least 8 times as large as an early map.
GENERATORS: dict[str, Callable[[], Generator]] = {"stylegan2": stylegan2, "mobile": mobile, "early": early}


def edit_of(generator: Generator, layer: int, batch: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    """The styles of `batch` sources, and the same with other styles in the layers that an edit at `layer` changes."""
    source, other = (generator.styles(generator.mapping(torch.randn(batch, generator.style_dim))) for _ in range(2))
    count = len(edited_layers(generator.layers, layer))
    return source, other[:count] + source[count:]


def reach(generator: Generator, layer: int) -> int:
    """Pixels of the picture that a change of one pixel at `layer` may touch on each side of it, at most.

    Each later convolution is 3x3; where it doubles the map, a filter of four taps follows: 2 px at its own side.
    """
    side, pixels = generator.layers[layer].resolution, 0
    for later in conv_layers(generator.layers):
        if later.index > layer:
            pixels = pixels * later.resolution // side + 2
            side = later.resolution
    return pixels * generator.resolution // side


def check_zero_mask(generator: Generator) -> None:
    for layer, batch in itertools.product(conv_layers(generator.layers), (1, 2)):
        styles, edited = edit_of(generator, layer.index, batch)
        source, mask = generator.synthesis(styles), torch.zeros(batch, 1, layer.resolution, layer.resolution)
        assert not torch.equal(generator.synthesis(edited).image, source.image)
        for even in (False, True):
            made = generator.synthesis(edited, blend=Blend(layer.index, mask, source.features, even))
            assert torch.equal(made.image, source.image), f"layer {layer.index}"


def check_full_mask(generator: Generator) -> None:
    for layer in conv_layers(generator.layers):
        styles, edited = edit_of(generator, layer.index)
        source, mask = generator.synthesis(styles), torch.ones(2, 1, layer.resolution, layer.resolution)
        made = generator.synthesis(edited, blend=Blend(layer.index, mask, source.features))
        assert torch.equal(made.image, generator.synthesis(edited).image), f"layer {layer.index}"


def check_single(generator: Generator) -> None:
    styles, edited = edit_of(generator, conv_layers(generator.layers)[2].index, batch=3)
    source, mask = generator.synthesis(styles), torch.rand(3, 1, 8, 8)
    layer = conv_layers(generator.layers)[2].index
    together = generator.synthesis(edited, blend=Blend(layer, mask, source.features)).image
    for row in range(3):
        own = [feature[row:row + 1] for feature in source.features]
        alone = generator.synthesis([style[row:row + 1] for style in edited],
                                    blend=Blend(layer, mask[row:row + 1], own)).image
        torch.testing.assert_close(alone, together[row:row + 1], rtol=1e-4, atol=1e-5)


def check_gradient(generator: Generator) -> None:
    layer = conv_layers(generator.layers)[2].index
    styles, edited = edit_of(generator, layer)
    edited = [style.detach().requires_grad_() for style in edited]
    mask = torch.full((2, 1, 8, 8), 0.5, requires_grad=True)
    blend = Blend(layer, mask, generator.synthesis(styles).features)
    image = generator.synthesis(edited, blend=blend).image
    for gradient in torch.autograd.grad(image.square().sum(), [*edited, mask]):
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def check_reach(generator: Generator) -> None:
    layer = next(layer for layer in conv_layers(generator.layers) if layer.resolution == 8)
    touched = generator.resolution // 8 + reach(generator, layer.index)
    assert touched < generator.resolution, "the promise would be empty"
    for batch in (1, 2):
        styles, edited = edit_of(generator, layer.index, batch)
        source, mask = generator.synthesis(styles), torch.zeros(batch, 1, 8, 8)
        mask[:, :, 0, 0] = 1
        for even in (False, True):
            made = generator.synthesis(edited, blend=Blend(layer.index, mask, source.features, even)).image
            assert not torch.equal(made, source.image)
            assert torch.equal(made[:, :, touched:], source.image[:, :, touched:])
            assert torch.equal(made[:, :, :, touched:], source.image[:, :, :, touched:])


def check_features(generator: Generator) -> None:
    styles = edit_of(generator, conv_layers(generator.layers)[2].index)[0]
    whole, small, none = (generator.synthesis(styles, feature_side=side) for side in (None, 8, 0))
    assert torch.equal(small.image, whole.image) and torch.equal(none.image, whole.image) and none.features == []
    assert torch.equal(generator.picture(styles), whole.image)
    for kept, feature, layer in zip(small.features, whole.features, generator.layers, strict=True):
        assert feature.shape[1:] == (layer.out_channels, layer.resolution, layer.resolution)
        assert torch.equal(kept, nearest(feature, min(8, layer.resolution)))


def check_stop(generator: Generator) -> None:
    styles = edit_of(generator, conv_layers(generator.layers)[2].index)[0]
    short, full = generator.synthesis(styles, until=2), generator.synthesis(styles)
    assert short.image is None and len(short.features) == 3
    assert all(torch.equal(a, b) for a, b in zip(short.features, full.features[:3], strict=True))


def check_table(generator: Generator) -> None:
    assert [layer.index for layer in generator.layers] == list(range(len(generator.layers)))
    w = generator.mapping(torch.randn(2, generator.style_dim))
    styles = generator.styles(w)
    assert [style.shape for style in styles] == [(2, layer.in_channels) for layer in generator.layers]
    for one, other in zip(styles, generator.styles(w[:, None].expand(-1, generator.n_latent, -1)), strict=True):
        torch.testing.assert_close(one, other)


def check_graph(generator: Generator) -> None:
    torch.compiler.reset()
    styles = edit_of(generator, conv_layers(generator.layers)[2].index, batch=1)[0]
    traced = torch.compile(generator.synthesis, backend="eager", fullgraph=True)(styles)
    torch.testing.assert_close(traced.image, generator.synthesis(styles).image, rtol=1e-5, atol=1e-5)


PROMISES: dict[str, Callable[[Generator], None]] = {
    "a zero mask gives the source to the bit": check_zero_mask,
    "a mask of ones gives the plain edit to the bit": check_full_mask,
    "a batch of one equals its row of a batch": check_single,
    "the gradient reaches every style and the mask": check_gradient,
    "pixels beyond the later layers' reach are equal to the bit": check_reach,
    "features shrink to what is asked for and the picture stays": check_features,
    "stopping early gives the same features and no picture": check_stop,
    "synthesis can be compiled as one graph": check_graph,
    "styles fit the table of layers, of w and of w+": check_table}


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_keeps_its_promises(name, promise):
    torch.manual_seed(0)
    PROMISES[promise](GENERATORS[name]().requires_grad_(False).eval())
