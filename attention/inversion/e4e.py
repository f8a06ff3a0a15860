"""e4e: from the picture of a face to the w+ with which the FFHQ generator draws it again."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.errors import UserError
from attention.files.pickles import Ignored
from attention.files.published import E4E_FILE
from attention.files.reading import shown
from attention.files.tensors import bare, checked
from attention.files.torch_files import fill_frozen, read_tensors
from attention.generator.layers import EqualLinear
from attention.inversion.irse import STAGES, IRSEBody, require_square

DOWNLOAD = f"python -m attention.download {E4E_FILE}"
INPUT_SIDE = 256
LEVEL_STARTS = (3, 7)               # w+ rows from which the next finer map of the pyramid is read: 16, 32, 64 px
NEGATIVE_SLOPE = 0.01
MOST_ROWS = 20                      # of w+, for 2048 px


class GradualStyleBlock(nn.Module):
    """One row of w+ from a map: halves it with convolutions until one pixel is left, then a linear layer.

    Args:
        width: channels of the map and width of the row.
        side: of the map, a power of two.
    """

    def __init__(self, width: int, side: int):
        super().__init__()
        halvings = side.bit_length() - 1
        self.convs = nn.Sequential(*(layer for _ in range(halvings) for layer in (
            nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU(NEGATIVE_SLOPE))))
        self.linear = EqualLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))                             # (B, C, side, side) -> (B, C)


def upsample_add(coarse: Tensor, fine: Tensor) -> Tensor:
    """A step up the feature pyramid: coarse (B, C, h, w), enlarged to the size of fine (B, C, H, W), plus fine."""
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True) + fine


def pyramid_level(row: int) -> int:
    """The level that a row of w+ is read from: 0 coarse, 1 middle, 2 fine."""
    return sum(row >= start for start in LEVEL_STARTS)


class Encoder4Editing(IRSEBody):
    """The fully trained e4e encoder, its average latent included.

    Args:
        n_latent: rows of w+, 18 for a generator of 1024 px.
        stages: see IRSEBody; at least three, w+ is as wide as the last.
    Attributes:
        latent_avg: (n_latent, 512), added to every output. A buffer outside the state dict: published files keep it
            beside the weights.
    Source: Tov et al. 2021, "Designing an encoder for StyleGAN image manipulation".
    """

    latent_avg: Tensor

    def __init__(self, n_latent: int = 18, stages: Sequence[tuple[int, int]] = STAGES):
        super().__init__(stages)
        *_, fine, middle, width = (stage_width for stage_width, _ in stages)
        coarse_side = INPUT_SIDE >> len(stages)
        self.styles = nn.ModuleList(GradualStyleBlock(width, coarse_side << pyramid_level(row)) for row in range(n_latent))
        self.latlayer1, self.latlayer2 = nn.Conv2d(middle, width, 1), nn.Conv2d(fine, width, 1)
        self.register_buffer("latent_avg", torch.zeros(n_latent, width), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Faces (B, 3, R, R) in [-1, 1], framed as FFHQ frames them -> w+ (B, n_latent, 512).

        Pictures of another side than 256 are resized to it: bilinear, with antialiasing where they shrink.

        Raises:
            ValueError: the pictures are not square.
        """
        require_square(images)
        if images.shape[-1] != INPUT_SIDE:
            images = F.interpolate(images, size=(INPUT_SIDE, INPUT_SIDE), mode="bilinear", antialias=True)
        *_, fine, middle, coarse = self.stage_maps(images)
        middle = upsample_add(coarse, self.latlayer1(middle))                    # (B, 512, 32, 32)
        fine = upsample_add(middle, self.latlayer2(fine))                        # (B, 512, 64, 64)
        levels = (coarse, middle, fine)
        rows = torch.stack([style(levels[pyramid_level(row)]) for row, style in enumerate(self.styles)], dim=1)
        # Row 0 is a w of its own, every other row its distance from row 0.
        return torch.cat([rows[:, :1], rows[:, :1] + rows[:, 1:]], dim=1) + self.latent_avg


def load_e4e(path: Path) -> Encoder4Editing:
    """The encoder of a local file in e4e's published layout, frozen, in evaluation mode; its decoder is dropped.

    A file without latent_avg was trained without start_from_latent_avg, which is that program's default: nothing is added
    to its output. Where its options do not say so, that is told.

    Args:
        path: {"state_dict": encoder.* and decoder.*, "latent_avg": (n_latent, 512) or (512,), "opts": a plain dict or
            a namespace}.
    Raises:
        UserError: the file is missing, cut short or of another kind.
    """
    checkpoint = read_tensors(path)
    state, average, options = (checkpoint.get(name) for name in ("state_dict", "latent_avg", "opts"))
    options = {} if options is None or isinstance(options, Ignored) else options
    if not (isinstance(state, dict) and isinstance(average, Tensor | None) and isinstance(options, dict)):
        raise UserError(f"{path} holds {shown(', '.join(map(str, list(checkpoint)[:4])))}, ..., but e4e's layout is "
                        f"state_dict, latent_avg and opts; fetch a file of it with: {DOWNLOAD}")
    # pSp's encoder has the same names and shapes, but its rows are no distances from row 0.
    if (kind := options.get("encoder_type", "Encoder4Editing")) != "Encoder4Editing":
        raise UserError(f"{path} holds an encoder of type {shown(kind, 80)}, but Encoder4Editing was expected; "
                        f"fetch one with: {DOWNLOAD}")
    if average is None and options.get("start_from_latent_avg"):
        raise UserError(f"{path} has no latent_avg, but its options say start_from_latent_avg, so that it is needed; "
                        f"fetch a whole file with: {DOWNLOAD}")
    state = {name: tensor for name, tensor in bare(state).items() if name.startswith("encoder.")}
    n_latent = min(MOST_ROWS, max(1, sum(name.endswith(".linear.weight") for name in state)))
    with torch.device("meta"):
        encoder = Encoder4Editing(n_latent)
    fill_frozen(encoder, state, path, E4E_FILE, prefix="encoder.")
    expected = tuple(encoder.latent_avg.shape)
    if average is None:
        if "start_from_latent_avg" not in options:
            warnings.warn(f"{path} has no latent_avg and does not say whether it was trained with one; none is added, "
                          "as by e4e's default", stacklevel=2)
        average = torch.zeros(expected)
    if tuple(average.shape) not in (expected, expected[1:]):
        raise UserError(f"{path} has a latent_avg of shape {tuple(average.shape)}, but {expected} or {expected[1:]} was "
                        f"expected; fetch the file again with: {DOWNLOAD}")
    average = checked({"latent_avg": average}, path, f"fetch the file again with: {DOWNLOAD}")["latent_avg"]
    encoder.latent_avg = average.float().expand(expected).clone()
    return encoder
