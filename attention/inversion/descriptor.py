"""dlib's recogniser in torch, so that a picture can be brought nearer to a person by descent; its weights are read from the
package face-recognition-models.

Source: D. King, dlib's dnn_face_recognition_ex.cpp, which names the layers; He et al. 2016.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.files.reading import readable
from attention.inversion.dlib_models import RECOGNISER, broken_package, package_file

CHIP = 150                                  # px, of the picture of a face that it was trained on
# Where that picture lies in a face framed as FFHQ's are: its left, upper, right and lower edge, shares of the side; the
# mean of how dlib cuts generated faces out (tests/test_faces.py).
FACE_IN_FRAME = (0.154, 0.259, 0.848, 0.953)
MEAN_COLOUR, SCALE = (122.782, 117.001, 104.298), 256.0         # of its training; of levels from 0 to 255
STEM = 32                                   # channels after the first convolution
STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))       # channels, residual blocks; all but the first stage halve
FILE_BYTES = 30_000_000
TENSOR_VERSION = 2                          # of dlib's files: values lie as they are in memory


class Affine(nn.Module):
    """Maps (B, C, h, w) -> the same, each channel scaled and shifted: what is left of a batch norm after training."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Block(nn.Module):
    """Maps (B, C, h, h) -> (B, C', h', h'): what two convolutions add to it, or to its means of 2 x 2 where it halves."""

    def __init__(self, width: int, out: int, halves: bool):
        super().__init__()
        self.halves = halves
        first = nn.Conv2d(width, out, 3, 2) if halves else nn.Conv2d(width, out, 3, padding=1)
        self.added = nn.Sequential(first, Affine(out), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1), Affine(out))

    def forward(self, x: Tensor) -> Tensor:
        added = self.added(x)                                                                   # (B, C', h', h')
        kept = F.avg_pool2d(x, 2) if self.halves else x
        # dlib adds tensors of two sizes as if the smaller went on with zeros, in channels, down and to the right.
        sizes = [max(pair) for pair in zip(added.shape, kept.shape, strict=True)]
        added, kept = (F.pad(part, [edge for axis in (3, 2, 1) for edge in (0, sizes[axis] - part.shape[axis])])
                       for part in (added, kept))
        return F.relu(added + kept)


class Descriptor(nn.Module):
    """Maps faces (B, 3, CHIP, CHIP) of levels from 0 to 255 -> (B, 128), under 0.6 apart where they are one person's."""

    mean_colour: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = [(STEM, False)] + [(width, index > 0 and first == 0)
                                    for index, (width, blocks) in enumerate(STAGES) for first in range(blocks)]
        self.stem = nn.Sequential(nn.Conv2d(3, STEM, 7, 2), Affine(STEM), nn.ReLU(), nn.MaxPool2d(3, 2))
        self.blocks = nn.Sequential(*(Block(before, width, halves) for (before, _), (width, halves) in pairwise(widths)))
        self.dense = nn.Linear(STAGES[-1][0], 128, bias=False)
        self.register_buffer("mean_colour", torch.tensor(MEAN_COLOUR)[:, None, None])

    def forward(self, faces: Tensor) -> Tensor:
        features = self.blocks(self.stem((faces - self.mean_colour) / SCALE))                   # (B, 256, 2, 2)
        return self.dense(features.mean(dim=(2, 3)))


@lru_cache(maxsize=2)
def load_descriptor(device: torch.device) -> Descriptor:
    """The published weights, frozen.

    Raises:
        UserError: the package is missing, or its file is cut short or another one.
    """
    network, path = Descriptor(), package_file(RECOGNISER, "looking at who a face is")
    file = _File(readable(path, "dlib's recogniser", FILE_BYTES).read_bytes())
    try:
        with torch.no_grad():
            for layer in network.modules():             # in the order of the file: from the picture on
                if isinstance(layer, nn.Conv2d | Affine) and layer.bias is not None:
                    sizes = [layer.weight.numel(), layer.bias.numel()]
                    values = file.tensor("affine_" if isinstance(layer, Affine) else "con_4", (), (sum(sizes), 1))
                    weight, bias = values.split(sizes)
                    layer.weight.copy_(weight.view_as(layer.weight))
                    layer.bias.copy_(bias)
            outputs, inputs = network.dense.weight.shape
            network.dense.weight.copy_(file.tensor("fc_2", (outputs, inputs), (inputs, outputs)).view(inputs, outputs).T)
    except ValueError as error:
        raise broken_package(path, error) from None
    return network.requires_grad_(False).eval().to(device)


class _File:
    """What dlib wrote, read from its beginning on: a name, whole numbers, a tensor's sizes, its values."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def tensor(self, name: str, numbers: tuple[int, ...], size: tuple[int, int]) -> Tensor:
        """The values of the next layer of this name, flat.

        Raises:
            ValueError: there is none with these numbers and sizes, or not all of its values are there and finite.
        """
        begins = _packed(len(name)) + name.encode() + b"".join(map(_packed, (*numbers, TENSOR_VERSION, *size, 1, 1)))
        found = self.content.find(begins, self.place)
        count, first = size[0] * size[1], found + len(begins)
        self.place = first + 4 * count
        if found < 0 or self.place > len(self.content):
            raise ValueError(f"a layer {name} of {count:,} weights is missing")
        values = torch.from_numpy(np.frombuffer(self.content, "<f4", count, first).astype(np.float32))
        if not values.isfinite().all():
            raise ValueError(f"a layer {name} has weights that are not finite")
        return values


def _packed(number: int) -> bytes:
    """A whole number, as dlib writes it: how many bytes follow, then those, the least first."""
    length = max(1, (number.bit_length() + 7) // 8)
    return bytes([length]) + number.to_bytes(length, "little")


def face_chips(pictures: Tensor) -> Tensor:
    """Faces (B, 3, R, R) in [-1, 1], framed as FFHQ's are -> what a Descriptor looks at, (B, 3, CHIP, CHIP)."""
    left, top, right, bottom = (round(edge * pictures.shape[-1]) for edge in FACE_IN_FRAME)
    faces = pictures[..., top:bottom, left:right]
    return (F.interpolate(faces, (CHIP, CHIP), mode="bilinear", align_corners=False, antialias=True) + 1) * 127.5
