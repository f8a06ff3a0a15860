"""A small encoder for two cores: from the picture of a face to w+, as e4e (inversion/e4e.py) does with a large one."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.files.networks import FileKind
from attention.images import area_resize

KIND = FileKind("where2edit small encoder 1", "python -m attention.worlds.faces.build --part encoder")
SIDE = 128                  # px, of the pictures that it sees
MAPS = ((32, 0), (64, 1), (128, 2), (192, 2))       # channels and residual blocks at a half, a quarter, ... of the side
REDUCED, HIDDEN = 48, 768   # channels of the last map, whose places all count; width between the dense layers
STARTS = (7, 13)            # rows of w+ from which middle and fine ones begin: those of 32 and of 128 px


class SmallEncoder(nn.Module):
    """Pictures to w+: one w for all rows, and what middle and fine rows have of their own beside it.

    Args:
        mean, spread: (style_dim,) of w over faces.
        n_latent: rows of w+.
    Raises:
        ValueError: n_latent is no number of rows.
    Source: Tov et al. 2021, of rows that keep near one w, on which edits were learned.
    """

    mean: Tensor
    spread: Tensor
    groups: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, n_latent: int):
        super().__init__()
        if type(n_latent) is not int or n_latent < 1:                               # it may come from a file
            raise ValueError(f"n_latent is {n_latent!r}, expected a number of rows")
        self.config = dict(n_latent=n_latent)
        layers: list[nn.Module] = []
        before = 3
        for width, blocks in MAPS:
            layers += [*convolution(before, width, 3, 2), *(Block(width) for _ in range(blocks))]
            before = width
        layers += [*convolution(before, REDUCED, 1), nn.Flatten()]
        self.trunk = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        places = (SIDE >> len(MAPS)) ** 2
        outputs = (1 + len(STARTS)) * len(mean)
        last = nn.Linear(HIDDEN, outputs)
        for value in (last.weight, last.bias):
            nn.init.zeros_(value[len(mean):])                                       # rows begin as one
        self.head = nn.Sequential(nn.Linear(REDUCED * places, HIDDEN), nn.ReLU(), last)
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        groups = torch.bucketize(torch.arange(n_latent), torch.tensor(STARTS), right=True)
        self.register_buffer("groups", groups, persistent=False)                    # (n_latent,) 0 coarse, 1 middle, 2 fine

    def forward(self, images: Tensor) -> Tensor:
        """Faces (B, 3, R, R) in [-1, 1], framed as the world's pictures are -> w+ (B, n_latent, style_dim)."""
        return self.rows(self.changes(images))

    def changes(self, images: Tensor) -> Tensor:
        """(B, 3, style_dim) in spreads: how far w is from the mean, and from it the middle and the fine rows."""
        return self.head(self.trunk(_seen(images))).float().unflatten(1, (-1, len(self.mean)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last map of every side, (B, C, h, h) with C of MAPS and h from SIDE / 2 down."""
        x, found = _seen(images), {}
        for layer in self.trunk[:-4]:                                       # what comes then makes the last map narrow
            x = layer(x)
            found[x.shape[-1]] = x
        return list(found.values())

    def rows(self, changes: Tensor) -> Tensor:
        """Changes (B, 3, style_dim) -> w+ (B, n_latent, style_dim)."""
        own = F.pad(changes[:, 1:], (0, 0, 1, 0))                                   # coarse rows are w itself
        return self.mean + self.spread * (changes[:, :1] + own)[:, self.groups]

    def save(self, path: Path, dtype: torch.dtype) -> None:
        """Write weights and sizes as one safetensors file; dtype as `FileKind.save` has it."""
        KIND.save(path, self, {"config": self.config}, dtype)


def _seen(images: Tensor) -> Tensor:
    """(B, 3, SIDE, SIDE)."""
    return area_resize(images, SIDE).contiguous(memory_format=torch.channels_last)


class Block(nn.Module):
    """Maps (B, C, h, h) -> the same, and what two convolutions add; at the start nothing."""

    def __init__(self, width: int):
        super().__init__()
        first, second = convolution(width, width, 3), convolution(width, width, 3)
        nn.init.zeros_(second[1].weight)
        self.added = nn.Sequential(*first, *second[:2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.added(x))


def convolution(width: int, out: int, size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """A convolution that keeps the side, or divides it by the stride, with its norm and its bend."""
    return nn.Conv2d(width, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()


def load_small(path: Path) -> SmallEncoder:
    """Read what `save` wrote: float32, frozen, in evaluation mode.

    Raises:
        UserError: the file is missing, cut short, or of another kind.
    """
    def build(said: dict, tensors: dict) -> tuple[SmallEncoder, nn.Module]:
        encoder = SmallEncoder(tensors["mean"].float(), tensors["spread"].float(), **said["config"])
        return encoder, encoder

    return KIND.load(path, build)
