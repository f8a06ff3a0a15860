"""How alike pictures look: VGG-16's features, which the perceptual loss compares, and LPIPS."""

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.errors import UserError
from attention.files.published import VGG_FILE, WEIGHTS
from attention.files.tensors import bare
from attention.files.torch_files import fill_frozen, read_tensors, read_torch_file
from attention.images import area_resize

VGG_WEIGHTS = WEIGHTS / VGG_FILE
VGG_SIDE, RELU2_2 = 224, 9      # input side; features.0 to .8 end at relu2_2
# LPIPS: its five stages end at relu1_2, 2_2, 3_3, 4_3 and 5_3; pictures are shifted and scaled by colour first.
LPIPS_ENDS, LPIPS_SHIFT, LPIPS_SCALE = (4, RELU2_2, 16, 23, 30), (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LPIPS_HEADS = "functional/image/lpips_models/vgg.pth"           # in the package torchmetrics
TINY = 1e-8                     # keeps the length of an empty feature from being 0


def vgg_features_of_pictures(device: torch.device) -> Callable[[Tensor], Tensor]:
    """What the published perceptual loss compares, frozen: (B, 3, R, R) in [-1, 1] -> relu2_2 (B, 128, 112, 112).

    Raises:
        UserError: the file of VGG-16 is missing, cut short or of another kind.
    """
    network = vgg_features(VGG_WEIGHTS, RELU2_2).to(device)
    return lambda images: network(area_resize(images, VGG_SIDE))        # as published: no ImageNet normalisation


def vgg_features(path: Path, length: int) -> nn.Sequential:
    """The first layers of VGG-16's features, frozen; RELU2_2 of them make (B, 3, H, W) -> (B, 128, H // 2, W // 2).

    Args:
        path: torchvision's state dict, as VGG_WEIGHTS holds it; tensors of later layers are not used.
    Raises:
        UserError: the file is missing, cut short, or a tensor that is used is missing or has another shape.
    """
    from torchvision.models import vgg16  # noqa: PLC0415  (a second and a half, which drawn faces need not wait for)

    with torch.device("meta"):
        network = nn.Sequential(*vgg16().features[:length])
    used = {f"features.{name}" for name in network.state_dict()}
    tensors = {name: tensor for name, tensor in bare(read_tensors(path)).items() if name in used}
    return fill_frozen(network, tensors, path, VGG_FILE, prefix="features.")


def lpips_available() -> bool:
    """Whether load_lpips has its file and its package here."""
    return os.path.isfile(VGG_WEIGHTS) and find_spec("torchmetrics") is not None


@lru_cache(maxsize=2)
def load_lpips(weights: Path = VGG_WEIGHTS, device: str | torch.device = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS 0.1 with VGG-16: two batches of pictures (B, 3, R, R) in [-1, 1], R at least 16 -> (B,); 0 for equal ones.

    Differentiable in the pictures. The features' weights come of `weights`, how they are weighed from the package
    torchmetrics, which brings that along; nothing is downloaded.

    Raises:
        UserError: the file is missing, cut short or of another kind, or torchmetrics is not installed.
    Source: Zhang et al. 2018, section 3.
    """
    package = find_spec("torchmetrics")
    if package is None:
        raise UserError("LPIPS needs the package torchmetrics, which is not installed; install it with: "
                        "pip install torchmetrics")
    network = vgg_features(weights, LPIPS_ENDS[-1]).to(device)
    stages = [network[start:end] for start, end in zip((0, *LPIPS_ENDS), LPIPS_ENDS, strict=False)]
    weighed = read_torch_file(Path(str(package.origin)).parent / LPIPS_HEADS)
    heads = [weighed[f"lin{index}.model.1.weight"].to(device) for index in range(len(stages))]        # (1, C, 1, 1) each
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1) for values in (LPIPS_SHIFT, LPIPS_SCALE))

    def distance(first: Tensor, second: Tensor) -> Tensor:
        x, y = ((images - shift) / scale for images in (first, second))
        total = x.new_zeros(len(x))
        for stage, head in zip(stages, heads, strict=True):
            x, y = stage(x), stage(y)                                                               # (B, C, h, w)
            total = total + F.conv2d((_directions(x) - _directions(y)).square(), head).mean(dim=(1, 2, 3))
        return total

    return distance


def _directions(features: Tensor) -> Tensor:
    """Features (B, C, h, w), each pixel's scaled to length 1."""
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + TINY)
