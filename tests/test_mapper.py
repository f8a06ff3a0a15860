"""The mapper: parity with the released one, and the contract that every entry of MAPPERS keeps."""

import copy

import numpy as np
import pytest
import torch
from conftest import assert_close_to_max

import attention.method.mapper as mapper_module
from attention.errors import UserError
from attention.generator import edited_layers, synthesis_layers
from attention.method.mapper import MAPPERS, NaturalMapper, StyleMapper

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
    mapper, styles, text = MAPPERS[name](EDITED, TEXT_DIM, faces=many_faces()), random_styles(3), torch.randn(3, TEXT_DIM)
    with torch.no_grad():                                   # as after a step: some begin by changing nothing
        for parameter in mapper.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    edited = mapper(styles, text)
    still = copy.deepcopy(mapper)
    still.strength = 0.0
    for before, *after in zip(styles, mapper(styles, text, strength=0.0), still(styles, text), strict=True):
        assert all(torch.equal(before, style) for style in after), "strength 0 changes something"
    for told, own in zip(mapper(styles, text, strength=0.3), still(styles, text, strength=0.3), strict=True):
        assert torch.equal(told, own), "the mapper's own strength counts where another is said"
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


def bounded_mapper(faces, max_change=2.0):
    """A bounded and an unbounded mapper with the same weights."""
    bounded, free = StyleMapper(EDITED, TEXT_DIM, faces=faces, max_change=max_change), StyleMapper(EDITED, TEXT_DIM)
    free.load_state_dict({key: value for key, value in bounded.state_dict().items() if not key.startswith("limit_")})
    return bounded, free


def many_faces(scale=1.0):
    """The edited layers' styles of 200 faces, each channel with a spread of its own, some of them moving together."""
    return [scale * torch.randn(200, layer.in_channels) @ torch.randn(layer.in_channels, layer.in_channels)
            for layer in EDITED]


def test_no_style_moves_further_than_its_spread_allows():
    faces = many_faces(0.02)
    bounded, free = bounded_mapper(faces)
    styles, text = [100 * style for style in random_styles(2)], torch.randn(2, TEXT_DIM)
    for i, style in enumerate(faces):
        moved, wanted = bounded.change(i, styles[i], text), free.change(i, styles[i], text)
        deviation = style.double().std(dim=0)
        assert (moved.abs() <= 2.0 * deviation * (1 + 1e-6)).all()
        assert (wanted.abs() > 2.0 * deviation).any() and (moved * wanted >= 0).all()


def test_small_changes_are_not_bounded():
    bounded, free = bounded_mapper(many_faces(1e4))
    styles, text = random_styles(2), torch.randn(2, TEXT_DIM)
    for a, b in zip(bounded(styles, text), free(styles, text), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", MAPPERS)
def test_a_style_that_never_varies_stays_and_gives_finite_gradients(name):
    mapper = MAPPERS[name](EDITED, TEXT_DIM, faces=[torch.zeros(9, layer.in_channels) for layer in EDITED])
    styles = random_styles(2)
    edited = mapper(styles, torch.randn(2, TEXT_DIM))
    sum(style.square().sum() for style in edited).backward()
    for before, after in zip(styles, edited, strict=True):
        torch.testing.assert_close(before, after)
    assert all(parameter.grad.isfinite().all() for parameter in mapper.parameters())


@pytest.mark.parametrize("name", MAPPERS)
def test_faces_of_other_widths_are_refused(name):
    with pytest.raises(ValueError, match="of each edited layer"):
        MAPPERS[name](EDITED, TEXT_DIM, faces=many_faces()[:-1])


# --- as faces differ

def trained_natural(faces, max_change, scale):
    """A NaturalMapper with random weights of this scale."""
    mapper = NaturalMapper(EDITED, TEXT_DIM, faces=faces, max_change=max_change)
    with torch.no_grad():
        for parameter in mapper.to_change.parameters():
            parameter.normal_().mul_(scale)
    return mapper


def test_a_natural_change_lies_in_the_first_directions_and_within_its_length(monkeypatch):
    """Against numpy's singular vectors, and lengths by the covariance's inverse."""
    monkeypatch.setattr(mapper_module, "DIRECTIONS", 4)
    faces, styles, text = many_faces(), random_styles(3), torch.randn(3, TEXT_DIM)
    bounded = trained_natural(faces, 2.5, scale=100)
    free = trained_natural(faces, 1e6, scale=0.1)
    for i, style in enumerate(faces):
        away = style.double().numpy() - style.double().numpy().mean(axis=0)
        rest = np.linalg.svd(away)[2][4:]
        inverse = np.linalg.inv(np.cov(away.T))
        for mapper, length in ((bounded, 2.5), (free, None)):
            moved = mapper.change(i, styles[i], text).detach().double().numpy()
            assert np.abs(moved @ rest.T).max() < 1e-4 * np.abs(moved).max()
            lengths = np.sqrt(np.einsum("bi,ij,bj->b", moved, inverse, moved))
            before, after = (mapper.coordinates([*styles[:i], it, *styles[i + 1:]])[i].detach().numpy()
                             for it in (styles[i], styles[i] + torch.from_numpy(moved).float()))
            np.testing.assert_allclose(np.linalg.norm(after - before, axis=1), lengths, rtol=1e-3)
            if length is not None:
                np.testing.assert_allclose(lengths, length, rtol=1e-2)


def test_a_natural_mapper_begins_by_changing_nothing():
    styles = random_styles(2)
    for before, after in zip(styles, NaturalMapper(EDITED, TEXT_DIM, faces=many_faces())(styles, torch.randn(2, TEXT_DIM)),
                             strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_a_natural_mapper_moves_faces_apart_by_one_text_otherwise_than_by_another():
    """Brown hair is darker than blonde and lighter than black: what a text does must be able to depend on the face."""
    mapper, styles, texts = NaturalMapper(EDITED, TEXT_DIM, faces=many_faces()), random_styles(2), torch.randn(2, TEXT_DIM)
    with torch.no_grad():
        for layer in mapper.to_change:
            layer.weight.add_(0.1 * torch.randn_like(layer.weight))
    gaps = []
    for text in texts:
        first, second = mapper.change(0, styles[0], text[None])
        gaps.append(second - first)
    assert not torch.allclose(*gaps, rtol=0.1, atol=1e-3)


def test_a_natural_mapper_without_a_bound_is_refused():
    with pytest.raises(UserError, match="--max_change is 0"):
        NaturalMapper(EDITED, TEXT_DIM)


@pytest.mark.parametrize("name", MAPPERS)
def test_a_calibrated_text_moves_by_what_suits_it_and_an_unlike_one_as_before(name):
    mapper, styles = MAPPERS[name](EDITED, TEXT_DIM, faces=many_faces()), random_styles(1)
    with torch.no_grad():                                   # as after a step: some begin by changing nothing
        for parameter in mapper.parameters():
            parameter.add_(torch.randn_like(parameter))
    texts = torch.linalg.qr(torch.randn(TEXT_DIM, TEXT_DIM))[0][:4]                         # at right angles to each other
    plain = mapper(styles, texts, 0.1)
    mapper.amount.set(5 * texts[:3], torch.tensor([[0.5], [1.0], [2.0]]))                   # their lengths play no part
    moved = mapper(styles, texts, 0.1)
    for style, before, after in zip(styles[:len(mapper.layers)], plain, moved, strict=False):
        ratio = (after - style).norm(dim=1) / (before - style).norm(dim=1)
        assert ratio.tolist() == pytest.approx([0.5, 1, 2, 1], rel=0.03)
    mapper.amount.forget()
    assert all(torch.equal(*pair) for pair in zip(mapper(styles, texts, 0.1), plain, strict=True))
    assert not [key for key in mapper.state_dict() if "amount" in key]                      # files are as they were


@pytest.mark.parametrize("name", MAPPERS)
@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 0), (3, 0), (0, 2), (1, 1), (3, 3)])
def test_layers_that_a_text_keeps_are_those_of_the_source_to_the_last_bit(name, first, last):
    mapper, styles = MAPPERS[name](EDITED, TEXT_DIM, faces=many_faces()), random_styles(1)
    with torch.no_grad():
        for parameter in mapper.parameters():
            parameter.add_(torch.randn_like(parameter))
    text = torch.randn(1, TEXT_DIM)
    plain = mapper(styles, text, 0.1)
    mapper.kept.otherwise, mapper.kept_last.otherwise = float(first), float(last)           # of every text
    moved = mapper(styles, text, 0.1)
    for i, (style, before, after) in enumerate(zip(styles[:len(mapper.layers)], plain, moved, strict=False)):
        assert torch.equal(after, before if first <= i < len(mapper.layers) - last else style)
