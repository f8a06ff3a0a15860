"""The method's exact promises, on a tiny random generator."""

import numpy as np
import pytest
import torch
from tiny import tiny_editor

from attention.evaluation.metrics import grow


@pytest.fixture(scope="module")
def world():
    editor = tiny_editor()
    with torch.no_grad():
        source = editor.source(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)))
        text = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    return editor, source, text


@torch.no_grad()
def test_a_zero_mask_gives_the_source_bit_for_bit(world):
    editor, source, text = world
    edit = editor.apply(source, editor.mapper(source.styles, text, 1.0), torch.zeros(3, 1, 16, 16))
    assert torch.equal(edit.image, source.image)


@torch.no_grad()
def test_strength_zero_gives_the_source_bit_for_bit(world):
    editor, source, text = world
    edit = editor(source, text, text, strength=0.0, threshold=0.0)
    assert edit.mask.min() > 0.5
    assert torch.equal(edit.image, source.image)


@torch.no_grad()
def test_a_mask_of_ones_gives_the_plain_edit_bit_for_bit(world):
    editor, source, text = world
    styles = editor.mapper(source.styles, text, 0.5)
    edit = editor.apply(source, styles, torch.ones(3, 1, 16, 16))
    plain = editor.generator.synthesis(styles).image
    assert torch.equal(edit.image, plain) and not torch.equal(edit.image, source.image)


@torch.no_grad()
def test_pixels_beyond_the_reach_of_later_layers_do_not_change_at_all(world):
    editor, source, text = world
    mask = torch.zeros(3, 1, 16, 16)
    mask[:, :, 2:5, 2:5] = 1
    edit = editor.apply(source, editor.mapper(source.styles, text, 1.0), mask)
    changed = (edit.image != source.image).any(dim=1)
    # From 16 to 32 px: one up-convolution with its blur and one 3x3 convolution reach 4 px; the skip's blur less.
    possible = grow(torch.nn.functional.interpolate(mask, scale_factor=2)[:, 0] > 0, 4)
    assert changed.any() and not (changed & ~possible).any()


@torch.no_grad()
def test_one_source_with_many_texts_equals_one_edit_each(world):
    editor, _, text = world
    single = editor.source(torch.randn(1, 16, generator=torch.Generator().manual_seed(3)))
    together = editor(single, text, text, threshold=0.5).image
    for row in range(3):
        alone = editor(single, text[row:row + 1], text[row:row + 1], threshold=0.5).image
        torch.testing.assert_close(together[row:row + 1], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_places_in_a_photo_are_those_in_it_and_in_the_face_of_its_mean_row_together(world):
    editor, _, text = world
    rows = torch.randn(1, editor.generator.n_latent, 16, generator=torch.Generator().manual_seed(5))
    photo, *faces = editor.source_of_photo(rows), editor.source(rows), editor.source(rows.mean(dim=1))
    assert not torch.equal(faces[0].labels, faces[1].labels)
    found, (own, shared) = editor.locate(photo, text, 0.5), (editor.locate(face, text, 0.5) for face in faces)
    assert (own.gated > shared.gated).any() and (own.gated < shared.gated).any()
    assert torch.equal(found.gated, torch.maximum(own.gated, shared.gated))
    styles = editor.mapper(photo.styles, text, 0.5)             # what is edited is the photo alone
    assert torch.equal(editor.apply(photo, styles, found.mask).image, editor.apply(faces[0], styles, found.mask).image)
    assert editor.source_of_photo(rows[:, 0]).shared is None


def test_straight_through_trains_attention_even_below_the_threshold(world):
    editor, source, text = world
    edit = editor(source, text, text, strength=1.0, threshold=1.1, straight_through=True)
    assert edit.place.gated.abs().max() < 1e-6
    (edit.image * torch.linspace(-1, 1, 32)).sum().backward()
    assert editor.attention.initial.grad.abs() > 0
    editor.zero_grad(set_to_none=True)


@torch.no_grad()
def test_attention_is_constant_inside_every_region(world):
    editor, source, text = world
    attention = editor.locate(source, text).attention
    for values, labels in zip(attention[:, 0].numpy(), source.labels.numpy(), strict=True):
        assert max(np.ptp(values[labels == region]) for region in np.unique(labels)) == 0
