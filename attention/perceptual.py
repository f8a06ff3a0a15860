"""What the perceptual loss compares: VGG-16 features on photographs, plain pixels on drawn faces."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from attention.checkpoints import read_torch_file
from attention.clip_models.base import preprocess
from attention.domains import WEIGHTS, Domain

VGG_WEIGHTS = WEIGHTS / "vgg16-397923af.pth"
VGG_SIDE, RELU2_2 = 224, 9      # input side; features.0 to .8 end at relu2_2


def perceptual_features(domain: Domain) -> Callable[[Tensor], Tensor]:
    """The feature function of a domain, frozen: image (B, 3, R, R) in [-1, 1] -> (B, C, h, w).

    Drawn faces are compared pixel by pixel: VGG's photographs say nothing about them, and nothing is downloaded.
    """
    if domain.name == "drawn":
        return lambda images: images
    network = vgg_relu2_2(read_torch_file(VGG_WEIGHTS)).to(domain.device)
    return lambda images: network(preprocess(images, VGG_SIDE))         # as published: no ImageNet normalisation


def vgg_relu2_2(state: dict) -> nn.Module:
    """VGG-16 up to relu2_2 with torchvision's weights."""
    with torch.device("meta"):
        network = vgg16().features[:RELU2_2]
    network = network.to_empty(device="cpu")
    network.load_state_dict({name.removeprefix("features."): state[name] for name in
                             (f"features.{key}" for key in network.state_dict())})
    return network.requires_grad_(False).eval()
