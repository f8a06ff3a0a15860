"""What the perceptual loss compares: VGG-16 features on photographs, plain pixels on drawn faces."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from attention.checkpoints import fill_frozen, read_torch_file
from attention.clip_models.base import preprocess
from attention.domains import Domain
from attention.published import WEIGHTS

VGG_WEIGHTS = WEIGHTS / "vgg16-397923af.pth"
VGG_SIDE, RELU2_2 = 224, 9      # input side; features.0 to .8 end at relu2_2


def perceptual_features(domain: Domain) -> Callable[[Tensor], Tensor]:
    """The feature function of a domain, frozen: image (B, 3, R, R) in [-1, 1] -> (B, C, h, w).

    Drawn faces are compared pixel by pixel: VGG's photographs say nothing about them, and nothing is downloaded.

    Raises:
        UserError: the file of VGG-16 is missing, cut short or of another kind.
    """
    if domain.entry.drawn:
        return lambda images: images
    network = vgg_relu2_2(read_torch_file(VGG_WEIGHTS)).to(domain.device)
    return lambda images: network(preprocess(images, VGG_SIDE))         # as published: no ImageNet normalisation


def vgg_relu2_2(state: dict) -> nn.Module:
    """VGG-16 up to relu2_2, frozen: (B, 3, H, W) -> (B, 128, H // 2, W // 2).

    Args:
        state: torchvision's state dict, as VGG_WEIGHTS holds it; its layers past relu2_2 are not used.
    Raises:
        UserError: a tensor that is used is missing or has another shape.
    """
    with torch.device("meta"):
        network = vgg16().features[:RELU2_2]
    used = {f"features.{name}" for name in network.state_dict()}
    tensors = {name: tensor for name, tensor in state.items() if name in used}
    return fill_frozen(network, tensors, VGG_WEIGHTS, VGG_WEIGHTS.name, prefix="features.")
