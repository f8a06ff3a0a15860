"""The small encoder of real-looking faces (inversion/small.py)."""

from types import SimpleNamespace

import pytest
import torch
from plain_faces import small_generator
from torch.nn import functional as F

from attention.errors import UserError
from attention.inversion.invert import CORRECTION, LOOKS, _refine, guess, invert
from attention.inversion.small import STARTS, SmallEncoder, load_small


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return SmallEncoder(torch.randn(8), torch.rand(8) + 0.5, 20).eval().requires_grad_(False)


@pytest.fixture
def photos():
    return torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_rows_share_one_w_and_middle_and_fine_ones_have_their_own_beside_it(encoder):
    changes = torch.randn(2, 3, 8)
    rows = encoder.rows(changes)
    assert rows.shape == (2, 20, 8)
    for row in range(20):
        group = sum(row >= start for start in STARTS)
        wanted = changes[:, 0] + (changes[:, group] if group else 0)
        torch.testing.assert_close(rows[:, row], encoder.mean + wanted * encoder.spread)


def test_an_encoder_that_has_learned_nothing_gives_all_rows_one_w_and_sees_pictures_at_its_side(encoder, photos):
    found = encoder(photos)
    torch.testing.assert_close(found, found[:, :1].expand(-1, 20, -1))
    torch.testing.assert_close(encoder(F.avg_pool2d(photos, 2)), found, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder(photos[1:]), found[1:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], rtol=0, atol=1e-6)


def test_a_photo_is_inverted_to_rows_and_refined_from_there(encoder, photos):
    generator = small_generator()[1]
    faces = generator.mapping(torch.randn(64, 8, generator=torch.Generator().manual_seed(2))).detach()
    shown = F.avg_pool2d(photos[:1], 2)
    found, refined = (invert(generator, encoder, shown, faces, steps) for steps in (0, 6))
    assert torch.equal(found.w, guess(generator, encoder, shown)[0]) and torch.equal(found.before, found.after)
    assert refined.w.shape == (1, 20, 8) and refined.psnr_after > refined.psnr_before == found.psnr_before


@pytest.mark.parametrize(("seen", "left"), [
    (0.5, (1 - 0.5 * CORRECTION) ** LOOKS * 0.5),           # of what is there; what is missing shrinks with every look
    (1.0, 0.0),
    (6.0, 5.0),                                             # a correction leads further away, and is not taken
])
def test_a_guess_is_corrected_by_what_is_seen_otherwise_in_its_own_picture_if_that_comes_nearer(seen, left):
    """By a generator whose pictures show w, and an encoder that sees so much of it."""
    generator = SimpleNamespace(style_dim=3, n_latent=20, styles=lambda w: w,
                                picture=lambda w: w[:, :, None, None].expand(-1, -1, 8, 8))
    wanted = torch.tensor([[0.1, -0.2, 0.05]], dtype=torch.float64)
    found, made = guess(generator, lambda image: seen * image.mean(dim=(2, 3)), generator.picture(wanted))
    torch.testing.assert_close((found - wanted).abs(), left * wanted.abs())
    torch.testing.assert_close(made, generator.picture(found).clamp(-1, 1))


def test_refinement_takes_back_what_rows_of_a_guess_have_of_their_own_where_nothing_asks_for_it():
    """By a generator whose pictures show the mean of all rows alone."""
    generator = SimpleNamespace(style_dim=8, n_latent=20, styles=lambda w: w.mean(dim=1),
                                picture=lambda w: w[:, :3, None, None].expand(-1, -1, 16, 16))
    faces = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    guess = faces[:1, None] + torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(3))
    image = generator.picture(generator.styles(guess))
    found = _refine([generator, generator], image, guess, faces, 12, ())
    own, left = ((w - w.mean(dim=1, keepdim=True)).square().mean() for w in (guess, found))
    assert left < 0.6 * own


def test_its_file_gives_it_back_and_broken_and_other_files_are_told(encoder, photos, tmp_path):
    path = tmp_path / "encoder.safetensors"
    encoder.save(path, torch.int8)
    again = load_small(path)
    torch.testing.assert_close(again(photos), encoder(photos), atol=0.05, rtol=0.05)                    # eight bits
    assert not any(weight.requires_grad for weight in again.parameters())
    whole = path.read_bytes()
    told = r"encoder\.safetensors.*worlds\.faces\.build --part encoder"
    for broken in (whole[:len(whole) // 2], whole.replace(b"small encoder 1", b"drawn encoder 1"),
                   *(whole.replace(rb'\"n_latent\": 20', rb'\"n_latent\":' + said) for said in (b" -3", b"  0", b"2.5"))):
        assert broken != whole
        path.write_bytes(broken)
        with pytest.raises(UserError, match=told):
            load_small(path)
