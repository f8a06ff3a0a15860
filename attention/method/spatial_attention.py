"""The text-conditioned attention: where an edit happens, and the gate that turns it into a mask."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.errors import UserError
from attention.generator.base import LayerSpec, conv_layers, nearest
from attention.generator.layers import EqualLinear
from attention.method.by_text import ByText
from attention.ops import fused_leaky_relu

FEATURES = 32           # channels each feature map is reduced to, published
INITIAL_LOGIT = 5.0     # an untrained attention says "everywhere": sigmoid(5) = 0.993
THRESHOLD = 0.8         # of the gate in training
COVERAGE_RANGE = 0.25   # full coverage lowers the threshold from 1 by this much
ROWS = 4                # rows of the attention map, over which attention falls to nothing where a text's part never is
NEAR = 3                # cells, within which of what is surely a text's part all lies that is taken for it
ISLAND = 0.05           # of all that passes the gate, least, of which a part that lies alone is meant
BLUR_SIZE, BLUR_SIGMA = 5, 1.1      # pixels of the attention map


class TextConv(nn.Module):
    """A 1x1 convolution modulated by a text, demodulated, then bias and leaky ReLU (StyleGAN2 without noise)."""

    def __init__(self, in_channels: int, out_channels: int, text_dim: int):
        super().__init__()
        self.style = EqualLinear(text_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def kernel(self, text: Tensor) -> Tensor:
        """Text (B, D) -> the modulated and demodulated weights (B, out, C)."""
        weight = self.weight * self.style(text)[:, None, :] * self.weight.shape[1] ** -0.5  # (B, out, C)
        return weight * torch.rsqrt(weight.square().sum(2, keepdim=True) + 1e-8)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x (B, C, h, w) or (1, C, h, w), text (B, D) -> (B, out, h, w); one map for many texts is never copied."""
        return fused_leaky_relu(convolve(self.kernel(text), x), self.bias)


def convolve(kernel: Tensor, x: Tensor) -> Tensor:
    """A 1x1 convolution with a kernel of its own for each picture: (B, out, C), (B or 1, C, h, w) -> (B, out, h, w)."""
    pixels = x.flatten(2)                                                                   # (B, C, hw)
    # With one map, the texts' kernels stack into a single product (B * out, C) @ (C, hw).
    return (kernel @ (pixels[0] if len(x) == 1 else pixels)).unflatten(2, x.shape[2:])


class SpatialAttention(nn.Module):
    """Reads every conv layer's features through a text and says for each pixel whether the text is about it.

    Args:
        layers: all layers of the generator; those of kind "conv" are read, but for those that say otherwise.
        constant_channels: width of the generator's learned constant input, which is read too.
        text_dim: width of the text embedding.
        map_size: side h of the attention, that of the blend layer.
        features: channels each map is reduced to.
    Attributes:
        offset: of the logits, by text. Ours: all texts share one gate, which cuts short what one attends to weakly, and
            lets in more than another means.
        shift: of a text that finds its place worse than another text does, to that one's embedding; its offset stays its
            own. Ours.
        above, below: of a text, the shares of the picture at its top and at its bottom where its part never is, see
            `between_rows`. Ours.
        surer: of a text, by how much the logits of what is surely its part lie higher than a gate asks for, see
            `near_sure`; 0 where nothing is asked. Ours.
    """

    def __init__(self, layers: Sequence[LayerSpec], constant_channels: int, text_dim: int, map_size: int,
                 features: int = FEATURES):
        super().__init__()
        self.map_size, self.features = map_size, features
        attended = [layer for layer in conv_layers(layers) if layer.attended]
        self.indices = tuple(layer.index for layer in attended)
        widths = [constant_channels] + [layer.out_channels for layer in attended]
        self.heads = nn.ModuleList(TextConv(width, features, text_dim) for width in widths)
        self.last = TextConv(features * len(widths), 1, text_dim)
        self.initial = nn.Parameter(torch.full((1,), INITIAL_LOGIT))
        self.offset, self.shift, self.above, self.below, self.surer = (ByText(otherwise=0.0) for _ in range(5))

    def forward(self, constant: Tensor, features: Sequence[Tensor], text: Tensor) -> Tensor:
        """Attend, in float32 whatever the autocast state.

        Args:
            constant: (1, C, 4, 4) learned constant input.
            features: by layer index, (B, C_l, h_l, w_l) or (1, ...); one source may be asked about B texts.
            text: (B, D).
        Returns:
            (B, 1, h, h) logits; the attention is their sigmoid.
        """
        with torch.autocast(text.device.type, enabled=False):
            asked = text.float()                                                            # (B, D)
            text = asked + self.shift(asked)
            maps = [constant] + [features[index] for index in self.indices]
            kernels = self.last.kernel(text).split(self.features, dim=2)                    # of each head, (B, 1, 32)
            parts = [self._read(head, kernel, feature, text)
                     for head, kernel, feature in zip(self.heads, kernels, maps, strict=True)]
            read = fused_leaky_relu(torch.stack(parts).sum(0), self.last.bias)              # (B, 1, h, h)
            return read + (self.initial + self.offset(asked)).unflatten(1, (1, 1, 1))

    def _read(self, head: nn.Module, kernel: Tensor, feature: Tensor, text: Tensor) -> Tensor:
        """A head's share (B, 1, h, h) in the last convolution.

        Nearest resizes commute with 1x1 convolutions: large maps shrink before the first, and what comes of small ones
        grows after the second, one channel instead of all. So the concatenation of all heads never exists.
        """
        small = nearest(feature, min(self.map_size, feature.shape[-1])).float()            # (B|1, C, <= h, <= h)
        return nearest(convolve(kernel, head(small, text)), self.map_size)                 # (B, 1, h, h)

    def released_names(self) -> dict[str, str]:
        """Our parameter names -> those of the authors' checkpoint (without its `module.` prefix).

        Convolution weights are (1, out, in, 1, 1) there and (out, in) here: reshape.
        """
        names = {"initial": "initial_bias"}
        heads = [f"heads.{i}" for i in range(len(self.heads))] + ["last"]
        for ours, theirs in zip(heads, ["first", *self.indices, "last"], strict=True):
            names |= {f"{ours}.style.weight": f"attention_textca_{theirs}.weight",
                      f"{ours}.style.bias": f"attention_textca_{theirs}.bias",
                      f"{ours}.weight": f"attention_{theirs}.conv.weight",
                      f"{ours}.bias": f"attention_{theirs}.activate.bias"}
        return names


def threshold_for(coverage: float) -> float:
    """The gate's threshold for a user's coverage in [0, 1]: from 1, nothing passes, down to 0.75.

    Raises:
        UserError: coverage outside [0, 1].
    """
    if not 0 <= coverage <= 1:
        raise UserError(f"coverage is {coverage}, but must be between 0 (edit almost nowhere) and 1 (edit widely)")
    return 1 - COVERAGE_RANGE * coverage


def threshold_attention(attention: Tensor, threshold: float = THRESHOLD, straight_through: bool = False) -> Tensor:
    """Set attention (B, 1, h, w) below the threshold to 0; straight-through, the gradient is 1 there too."""
    kept = attention * (attention >= threshold)
    return attention + (kept - attention).detach() if straight_through else kept


def between_rows(attention: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Attention (B, 1, h, w) that falls to nothing over ROWS rows beyond those between which a text's part lies.

    Faces are framed by eyes and mouth, and what has the features of cheeks may be a forehead: a region of both is one.

    Args:
        above, below: (B, 1) shares of the picture at its top and at its bottom where the part never is.
    """
    height = attention.shape[-2]
    middles = (torch.arange(height, device=attention.device) + 0.5)[:, None]                # (h, 1)
    above, below = (height * share[..., None, None] for share in (above, below))            # (B, 1, 1, 1) rows
    inside = torch.minimum(middles - above, height - below - middles)                       # (B, 1, h, 1)
    return attention * (1 + inside / ROWS).clamp(0, 1)


def near_sure(attention: Tensor, surely: Tensor) -> Tensor:
    """Attention (B, 1, h, w), nowhere more than the most of another one (B, 1, h, w) within NEAR cells.

    So whatever passes a gate lies beside what passes a narrower one: the rim of a background does, a coat does not.
    """
    return torch.minimum(attention, F.max_pool2d(surely, 2 * NEAR + 1, 1, NEAR))


def pieces(masks: Tensor) -> Tensor:
    """Masks (B, 1, h, w) of 0 and 1 -> whole numbers (B, 1, h, w) above 0, the same in what hangs together, corners too; 0
    where the mask is."""
    names = torch.arange(1, masks[0].numel() + 1, device=masks.device, dtype=masks.dtype).view_as(masks[:1]) * masks
    while not torch.equal(names, wider := F.max_pool2d(names, 3, 1, 1) * masks):
        names = wider
    return names.long()


def without_islands(mask: Tensor) -> Tensor:
    """Masks (B, 1, h, h) without what neither hangs together with the rest nor is much of it: eyes are no background."""
    some = (mask > 0).float()
    of, own = pieces(some).flatten(1), some.flatten(1)
    cells = torch.zeros(len(of), of.shape[1] + 1, device=mask.device).scatter_add(1, of, own).gather(1, of)
    return mask * (cells >= ISLAND * own.sum(dim=1, keepdim=True)).view_as(mask)


def blur_mask(mask: Tensor) -> Tensor:
    """5x5 Gaussian blur (sigma 1.1, reflected edges) of masks (B, 1, h, w), h and w at least 3: soft seams."""
    offset = torch.arange(BLUR_SIZE, device=mask.device, dtype=mask.dtype) - BLUR_SIZE // 2
    kernel = torch.exp(-0.5 * (offset / BLUR_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(mask, [BLUR_SIZE // 2] * 4, mode="reflect")
    with torch.autocast(mask.device.type, enabled=False):
        return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
