"""The mapper: parity with the released one, and the contract that every entry of MAPPERS keeps."""

import pytest
import torch
from conftest import assert_close_to_max

from attention.generator import edited_layers, synthesis_layers
from attention.method.mapper import MAPPERS, StyleMapper

GOLDEN_FILES = ("mapper_a7c7", "mapper_a7c10_empty", "mapper_a9c4")
LAYERS = synthesis_layers(32, {4: 12, 8: 10, 16: 8, 32: 6})
EDITED = edited_layers(LAYERS, 6)
TEXT_DIM = 14


def random_styles(batch):
    return [torch.randn(batch, layer.in_channels) for layer in LAYERS]


def released_mapper(data):
    """Our mapper with a golden file's weights, and its inputs -> mapper, styles, text."""
    channels = {side: data[f"feature_{index:02}"].shape[1] for side, index in ((4, 0), (8, 2), (16, 5), (32, 8))}
    layers = synthesis_layers(int(data["config/size"]), channels)
    edited = edited_layers(layers, int(data["config/attention_layer"]) - 1)
    mapper = StyleMapper(edited, int(data["config/clip_dim"]), hidden=int(data["config/text_hidden"]))
    mapper.load_state_dict({ours: data[f"sd/{theirs}"] for ours, theirs in mapper.released_names().items()})
    return mapper, [data[f"style_{layer.index:02}"].flatten(1) for layer in layers], data["text"]


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_new_styles_their_gradients_and_the_names_of_weights_are_the_released_ones(name, golden):
    data = golden(name)
    mapper, styles, text = released_mapper(data)
    edited_count, names = int(data["config/mapper_layer"]), mapper.released_names()
    assert set(names) == set(mapper.state_dict())
    assert sorted(names.values()) == sorted(key[3:] for key in data if key.startswith("sd/mapper_"))
    for prefix, strength in (("", None), ("demo/", float(data["demo/strength_alpha"]))):
        edited = mapper(styles, text, strength)
        for index in range(edited_count):
            assert_close_to_max(edited[index], data[f"{prefix}new_style_{index:02}"].flatten(1), 2e-5)
    edited = mapper(styles, text)
    sum((edited[index] * data[f"weight_style_{index:02}"].flatten(1)).sum() for index in range(edited_count)).backward()
    gradients = {f"grad_S2/{theirs}": mapper.get_parameter(ours).grad for ours, theirs in names.items()}
    compared = [key for key in data if key in gradients]
    assert len(compared) == 8
    for key in compared:
        assert_close_to_max(gradients[key], data[key], 1e-4)


# --- the contract

@pytest.mark.parametrize("name", MAPPERS)
def test_every_mapper_keeps_the_contract(name):
    mapper, styles, text = MAPPERS[name](EDITED, TEXT_DIM), random_styles(3), torch.randn(3, TEXT_DIM)
    with torch.no_grad():                                   # as after a step: some begin by changing nothing
        for parameter in mapper.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    edited = mapper(styles, text)
    for before, after in zip(styles, mapper(styles, text, strength=0.0), strict=True):
        assert torch.equal(before, after), "strength 0 changes something"
    same = [before is after for before, after in zip(styles, edited, strict=True)]
    assert same == [False] * len(EDITED) + [True] * (len(LAYERS) - len(EDITED)), "layers past the blend are other tensors"
    one_face, one_text = [style[:1] for style in styles], text[:1]
    for few, repeated in ((mapper(one_face, text), mapper([style.expand(3, -1) for style in one_face], text)),
                          (mapper(styles, one_text), mapper(styles, one_text.expand(3, -1)))):
        for once, thrice in zip(few[:len(EDITED)], repeated, strict=False):
            torch.testing.assert_close(once, thrice)
    sum(style.square().sum() for style in edited).backward()
    assert all(parameter.grad.any() for parameter in mapper.parameters()), "a weight does not learn"


# --- strength and bounds

def test_the_change_is_proportional_to_strength():
    mapper, styles, text = StyleMapper(EDITED, TEXT_DIM), random_styles(2), torch.randn(2, TEXT_DIM)
    weak, strong = mapper(styles, text, strength=0.1), mapper(styles, text, strength=0.3)
    for style, a, b in zip(styles, weak, strong, strict=True):
        torch.testing.assert_close(3 * (a - style), b - style, rtol=1e-4, atol=1e-5)


def bounded_mapper(spread, max_change=2.0):
    """A bounded and an unbounded mapper with the same weights."""
    bounded, free = StyleMapper(EDITED, TEXT_DIM, spread=spread, max_change=max_change), StyleMapper(EDITED, TEXT_DIM)
    free.load_state_dict({key: value for key, value in bounded.state_dict().items() if not key.startswith("limit_")})
    return bounded, free


def test_no_style_moves_further_than_its_spread_allows():
    spread = [0.01 + torch.rand(layer.in_channels) for layer in EDITED]
    bounded, free = bounded_mapper(spread)
    styles, text = [100 * style for style in random_styles(2)], torch.randn(2, TEXT_DIM)
    for i, deviation in enumerate(spread):
        moved, wanted = bounded.change(i, styles[i], text), free.change(i, styles[i], text)
        assert (moved.abs() <= 2.0 * deviation * (1 + 1e-6)).all()
        assert (wanted.abs() > 2.0 * deviation).any() and (moved * wanted >= 0).all()


def test_small_changes_are_not_bounded():
    bounded, free = bounded_mapper([torch.full((layer.in_channels,), 1e4) for layer in EDITED])
    styles, text = random_styles(2), torch.randn(2, TEXT_DIM)
    for a, b in zip(bounded(styles, text), free(styles, text), strict=True):
        torch.testing.assert_close(a, b)


def test_a_style_that_never_varies_stays_and_gives_finite_gradients():
    mapper = StyleMapper(EDITED, TEXT_DIM, spread=[torch.zeros(layer.in_channels) for layer in EDITED])
    styles = random_styles(2)
    edited = mapper(styles, torch.randn(2, TEXT_DIM))
    sum(style.square().sum() for style in edited).backward()
    for before, after in zip(styles, edited, strict=True):
        torch.testing.assert_close(before, after)
    assert all(parameter.grad.isfinite().all() for parameter in mapper.parameters())


def test_spread_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="one vector for each style"):
        StyleMapper(EDITED, TEXT_DIM, spread=[torch.ones(x.in_channels) for x in EDITED[:-1]])
