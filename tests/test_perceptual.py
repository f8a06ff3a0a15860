"""The perceptual loss from end to end: published values through a file in torchvision's layout, and wrong files."""

from types import SimpleNamespace

import pytest
import torch
from conftest import assert_close_to_max

from attention import losses, perceptual
from attention.errors import UserError

# All of a domain that is asked for.
PHOTOS = SimpleNamespace(entry=SimpleNamespace(drawn=False), device=torch.device("cpu"))
COMMAND = r"python -m attention\.download vgg16-397923af\.pth$"


@pytest.fixture
def vgg_file(tmp_path, monkeypatch):
    """Where the program will look for VGG-16; a test writes it."""
    path = tmp_path / "vgg16-397923af.pth"
    monkeypatch.setattr(perceptual, "VGG_WEIGHTS", path)
    return path


def golden_state(arrays):
    """The golden VGG weights under torchvision's names, with some of the layers that nothing needs."""
    state = {name.removeprefix("vgg_q/"): array.float() * arrays[name.replace("vgg_q", "vgg_scale")]
             for name, array in arrays.items() if name.startswith("vgg_q/")}
    return {**state, "features.10.weight": torch.zeros(1), "classifier.6.bias": torch.zeros(1)}


def test_loss_gradient_and_features_are_the_published_ones(vgg_file, golden):
    arrays = golden("perceptual_64")
    torch.save(golden_state(arrays), vgg_file)
    features = perceptual.perceptual_features(PHOTOS)
    image = arrays["image1"].requires_grad_()
    edited = features(image)
    loss = losses.perceptual(edited, features(arrays["image2"]))
    loss.backward()
    assert edited.shape == tuple(arrays["relu2_2_shape"])
    assert_close_to_max(edited[0, :16, :8, :8], arrays["relu2_2_image1_crop"], 2e-5)
    assert_close_to_max(loss, arrays["loss"], 2e-5)
    assert_close_to_max(image.grad, arrays["grad_image1"], 1e-4)


def test_the_network_is_frozen_for_evaluation(golden):
    network = perceptual.vgg_relu2_2(golden_state(golden("perceptual_64")))
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_a_missing_vgg_names_the_download(vgg_file):
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth is missing .*attention.download vgg16-397923af\.pth"):
        perceptual.perceptual_features(PHOTOS)


def test_a_file_of_another_kind_is_named_with_what_it_lacks(vgg_file):
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3), "fc.weight": torch.zeros(1)}, vgg_file)
    with pytest.raises(UserError, match=r"7 missing: features\.0\.bias.*features\.0\.weight \(64, 1, 3, 3\) instead of "
                       r"\(64, 3, 3, 3\).*" + COMMAND):
        perceptual.perceptual_features(PHOTOS)


def test_drawn_faces_are_compared_pixel_by_pixel_without_a_file(vgg_file):
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(perceptual.perceptual_features(SimpleNamespace(entry=SimpleNamespace(drawn=True)))(images), images)
