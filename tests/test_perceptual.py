"""The perceptual loss and LPIPS from end to end, through files in torchvision's layout; and wrong files."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max

from attention.errors import UserError
from attention.inversion import perceptual
from attention.method import losses
from attention.worlds.parts import PERCEPTUAL

CPU = torch.device("cpu")
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
    features = PERCEPTUAL["vgg16"](CPU)
    image = arrays["image1"].requires_grad_()
    edited = features(image)
    loss = losses.perceptual(edited, features(arrays["image2"]))
    loss.backward()
    assert edited.shape == tuple(arrays["relu2_2_shape"])
    assert_close_to_max(edited[0, :16, :8, :8], arrays["relu2_2_image1_crop"], 2e-5)
    assert_close_to_max(loss, arrays["loss"], 2e-5)
    assert_close_to_max(image.grad, arrays["grad_image1"], 1e-4)


def test_the_network_is_frozen_for_evaluation(vgg_file, golden):
    torch.save(golden_state(golden("perceptual_64")), vgg_file)
    network = perceptual.vgg_features(vgg_file, perceptual.RELU2_2)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_a_missing_vgg_names_the_download(vgg_file):
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth is missing .*attention.download vgg16-397923af\.pth"):
        PERCEPTUAL["vgg16"](CPU)


def test_a_file_of_another_kind_is_named_with_what_it_lacks(vgg_file):
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3), "fc.weight": torch.zeros(1)}, vgg_file)
    with pytest.raises(UserError, match=r"7 missing: features\.0\.bias.*features\.0\.weight \(64, 1, 3, 3\) instead of "
                       r"\(64, 3, 3, 3\).*" + COMMAND):
        PERCEPTUAL["vgg16"](CPU)


def test_pixels_are_compared_without_a_file(vgg_file):
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(PERCEPTUAL["pixels"](CPU)(images), images)


# --- LPIPS

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))      # of VGG-16, by stage


@pytest.fixture(scope="module")
def random_vgg(tmp_path_factory):
    """A file in torchvision's layout with random weights, and its (weight, bias) by stage."""
    random, state, stages, index, before = torch.Generator().manual_seed(0), {"classifier.0.bias": torch.zeros(1)}, [], 0, 3
    for widths in WIDTHS:
        stages.append([])
        for width in widths:
            weight = torch.randn(width, before, 3, 3, generator=random) * (2 / (9 * before)) ** 0.5
            stages[-1].append((weight, torch.randn(width, generator=random) * 0.1))
            state |= dict(zip((f"features.{index}.weight", f"features.{index}.bias"), stages[-1][-1], strict=True))
            index, before = index + 2, width                    # a ReLU follows every convolution,
        index += 1                                              # and a pooling layer every stage
    path = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    torch.save(state, path)
    return path, stages


def naive_lpips(stages, first, second):
    """The formula in float64, its weights read where torchmetrics keeps them."""
    package = importlib.util.find_spec("torchmetrics").submodule_search_locations[0]
    heads = torch.load(f"{package}/functional/image/lpips_models/vgg.pth", map_location="cpu", weights_only=True)
    shift, scale = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
                    for values in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    x, total = (torch.cat([first, second]).double() - shift) / scale, 0
    for number, layers in enumerate(stages):
        x = x if number == 0 else F.max_pool2d(x, 2)
        for weight, bias in layers:
            x = F.conv2d(x, weight.double(), bias.double(), padding=1).clamp(min=0)
        unit = F.normalize(x, dim=1)
        difference = (unit[:len(first)] - unit[len(first):]).square()
        total = total + (difference * heads[f"lin{number}.model.1.weight"].double()).sum(dim=1).mean(dim=(1, 2))
    return total


def test_lpips_is_the_formula_and_its_gradient(random_vgg):
    path, stages = random_vgg
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    first, second = images[:2].clone().requires_grad_(), images[2:]
    found, expected = perceptual.load_lpips(path)(first, second), naive_lpips(stages, first, second)
    assert found.shape == (2,) and found.dtype == torch.float32
    assert_close_to_max(found, expected, 2e-5)
    [gradient], [right] = (torch.autograd.grad(values.sum(), first) for values in (found, expected))
    assert_close_to_max(gradient, right, 1e-4)


def test_equal_pictures_have_no_distance_and_either_may_come_first(random_vgg):
    distance, images = perceptual.load_lpips(random_vgg[0]), torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(distance(images, images), torch.zeros(2))
    torch.testing.assert_close(distance(images, -images), distance(-images, images))


def test_lpips_without_its_weights_or_package_says_how_to_get_them(vgg_file, monkeypatch):
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth is missing .*attention.download vgg16-397923af\.pth"):
        perceptual.load_lpips(vgg_file)
    assert not perceptual.lpips_available()
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install torchmetrics$"):
        perceptual.load_lpips(vgg_file)
