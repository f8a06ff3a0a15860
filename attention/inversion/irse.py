"""The one IR-SE body of 50 layers, which e4e and the face recogniser share, and the recogniser itself."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.files.published import RECOGNISER_FILE
from attention.files.tensors import bare
from attention.files.torch_files import fill_frozen, read_tensors

STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))               # of the 50 layers: width and units of each stage
SE_REDUCTION = 16
FACE_SIDE, FRAME_SIDE = 112, 256                                # the recogniser's input; the frame that is cropped
CROP_ROWS, CROP_COLUMNS = slice(35, 223), slice(32, 220)        # of that frame, published


class ChannelGate(nn.Module):
    """Squeeze and excitation: scales every channel by a factor in (0, 1) that all channel means decide together."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // SE_REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(width // SE_REDUCTION, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)                                 # (B, C, 1, 1)
        return x * self.fc2(self.fc1(means).relu()).sigmoid()


class IRSEUnit(nn.Module):
    """A residual unit with a channel gate: (B, Cin, H, W) -> (B, Cout, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        widened = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
        # A pool with windows of one pixel is a strided slice.
        self.shortcut_layer = nn.MaxPool2d(1, stride) if in_channels == out_channels else widened
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False), nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels),
            ChannelGate(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IRSEBody(nn.Module):
    """The convolutional part, to inherit from: published files keep `input_layer` and `body` beside the heads.

    Args:
        stages: width and number of units of every stage; the first unit of each halves the map.
    Source: Deng et al. 2019 (ArcFace); names and shapes of InsightFace_Pytorch's Backbone(50, mode "ir_se").
    """

    def __init__(self, stages: Sequence[tuple[int, int]] = STAGES):
        super().__init__()
        widths, counts = zip(*stages, strict=True)
        self.input_layer = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]),
                                         nn.PReLU(widths[0]))
        units = []
        for before, (width, count) in zip((widths[0], *widths), stages, strict=False):
            units += [IRSEUnit(before, width, stride=2), *(IRSEUnit(width, width, stride=1) for _ in range(count - 1))]
        self.body = nn.Sequential(*units)
        self.stage_ends = tuple(accumulate(counts, initial=0))

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """The last map of every stage: (B, 3, H, W) -> (B, C_s, H / 2^s, W / 2^s) for s = 1, 2, ..."""
        x = self.input_layer(images)                                             # (B, C_1, H, W)
        maps = []
        for start, end in pairwise(self.stage_ends):
            x = self.body[start:end](x)                                          # (B, C_s, H / 2^s, W / 2^s)
            maps.append(x)
        return maps


class IRSE50(IRSEBody):
    """The face recogniser: aligned faces (B, 3, 112, 112) in [-1, 1] -> (B, 512) embeddings of length 1.

    Args:
        stages: see IRSEBody; the embedding is as wide as the last stage.
    """

    def __init__(self, stages: Sequence[tuple[int, int]] = STAGES):
        super().__init__(stages)
        width, side = stages[-1][0], FACE_SIDE >> len(stages)
        self.output_layer = nn.Sequential(nn.BatchNorm2d(width), nn.Dropout(0.6), nn.Flatten(),
                                          nn.Linear(width * side * side, width), nn.BatchNorm1d(width))

    def forward(self, faces: Tensor) -> Tensor:
        return F.normalize(self.output_layer(self.stage_maps(faces)[-1]), dim=1)            # (B, 512)


def require_square(images: Tensor) -> None:
    """Raise ValueError for pictures that a resize would squash: a squashed face is another face."""
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"images are {height}x{width} but must be square: align or crop them first")


def face_crop(images: Tensor) -> Tensor:
    """The recogniser's view of pictures framed as FFHQ frames them: (B, C, R, R) -> (B, C, 112, 112), same range.

    Raises:
        ValueError: the pictures are not square.
    Source: the published ID loss: area means to 256 px, a crop of 188 px, area means to 112 px.
    """
    require_square(images)
    if images.shape[-1] != FRAME_SIDE:
        images = F.adaptive_avg_pool2d(images, FRAME_SIDE)                       # (B, C, 256, 256)
    return F.adaptive_avg_pool2d(images[..., CROP_ROWS, CROP_COLUMNS], FACE_SIDE)


def identity_similarity(recogniser: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """How alike the faces of two batches are, pair by pair; the published ID loss is the mean of 1 minus this.

    Args:
        recogniser: faces (B, 3, 112, 112) -> (B, D) embeddings of length 1, see `load_recogniser`.
        a, b: (B, 3, R, R) pictures in [-1, 1], framed as FFHQ frames them; a batch of 1 is compared with all.
    Returns:
        (B,) cosines in [-1, 1].
    """
    cosines = (recogniser(face_crop(a)) * recogniser(face_crop(b))).sum(dim=1)
    return cosines.clamp(-1, 1)                                                  # rounding can pass 1 by a little


def load_recogniser(path: Path) -> IRSE50:
    """The recogniser of a local file in the published layout (a bare state dict), frozen, in evaluation mode.

    Raises:
        UserError: the file is missing, cut short or of another kind.
    """
    state = bare(read_tensors(path))
    with torch.device("meta"):
        recogniser = IRSE50()
    return fill_frozen(recogniser, state, path, RECOGNISER_FILE)
