"""The attribute reader: reads a picture back into the numbers of a drawn face, to judge edits.

It is trained on drawings alone and the editor never sees it, so that an edit cannot be made to fool it. Its accuracy
travels in its file, because every success rate rests on it.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attention.files.networks import FileKind
from attention.images import area_resize
from attention.worlds.drawn.concepts import OPTIONS
from attention.worlds.drawn.faces import SIZE, FaceParams

KIND = FileKind("where2edit attribute reader 1", "python -m attention.worlds.drawn.build")
# Colours that no concept speaks of are not read.
READ_WIDTHS = {name: width for name, width in FaceParams.widths().items() if name not in ("background", "clothes")}


class AttributeReader(nn.Module):
    """Picture -> numbers of FaceParams: strided convolutions, then dense layers, because parts keep their places.

    Args:
        widths: channels of the convolutions; each halves the side, the first sees SIZE px.
        squeeze: channels that reach the dense layers.
        hidden: width of the dense layer.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 96), squeeze: int = 24, hidden: int = 128):
        super().__init__()
        self.config = dict(widths=list(widths), squeeze=squeeze, hidden=hidden)
        self.accuracies: dict[str, dict[str, float]] = {}       # by kind of picture, then by phrase; kept in the file
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), (*widths, squeeze), strict=True):
            last = len(layers) == 3 * len(widths)
            layers += [nn.Conv2d(before, after, 1 if last else 3, stride=1 if last else 2, padding=0 if last else 1,
                                 bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        side = SIZE >> len(widths)
        self.trunk = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(squeeze * side * side, hidden), nn.ReLU(),
                                  nn.Linear(hidden, sum(READ_WIDTHS.values())))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, R, R) in [-1, 1] -> logits by field: (B, options) of a category, (B, 1) of a value."""
        pixels = area_resize(images, SIZE).contiguous(memory_format=torch.channels_last)
        logits = self.head(self.trunk(pixels))
        return dict(zip(READ_WIDTHS, logits.split(list(READ_WIDTHS.values()), dim=1), strict=True))

    @torch.no_grad()
    def read(self, images: Tensor) -> FaceParams:
        """(B, 3, R, R) in [-1, 1] -> what the reader sees; background and clothes, which it does not read, are 0.5."""
        training = self.training
        self.eval()
        parts = [self(part) for part in images.split(64)]
        self.train(training)
        values = {}
        for name in READ_WIDTHS:
            logits = torch.cat([part[name] for part in parts])
            seen = logits.softmax(dim=1) if name in OPTIONS else logits.sigmoid()[:, 0]
            values[name] = seen.float().cpu().numpy()
        unread = np.full((len(images), 3), 0.5, np.float32)
        return FaceParams(**values, background=unread, clothes=unread)

    def save(self, path: str | Path) -> None:
        """Write weights, configuration and accuracies as one safetensors file, all of it or nothing."""
        KIND.save(path, self, {"config": self.config, "accuracies": self.accuracies})

    @classmethod
    def load(cls, path: str | Path) -> "AttributeReader":
        """Read a file that `save` wrote: fixed weights, in evaluation mode.

        Raises:
            UserError: the file is missing, cut short, of another kind, or its tensors contradict its configuration.
        """
        def build(said: dict, tensors: dict) -> tuple["AttributeReader", nn.Module]:
            reader = cls(**said["config"])
            reader.accuracies = said["accuracies"]
            return reader, reader

        return KIND.load(path, build)
