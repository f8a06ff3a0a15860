"""The text mapper: what an edit does to the styles."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attention.generator.base import LayerSpec
from attention.generator.layers import EqualLinear
from attention.method.defaults import STRENGTH

HIDDEN = 512        # width of the text branch, published
MAX_CHANGE = 30.0   # ours: standard deviations over faces that a style may move at strength 1, where spreads are known


class StyleMapper(nn.Module):
    """Moves each style toward the text: s + strength * (target(s, text) - s).

    target = L2([L1(s); MLP2(text)]), with a set of weights for every edited layer.

    Args:
        layers: the edited layers, in order.
        text_dim: width of the text (or image) embedding.
        hidden: width of the text branch.
        strength: share of the way to the target.
        spread: for every edited layer the (C,) standard deviation of its style over faces. If given, a style never
            moves further than strength * max_change * spread, which keeps edits among faces; if None, the published
            rule without a bound.
    """

    def __init__(self, layers: Sequence[LayerSpec], text_dim: int, hidden: int = HIDDEN, strength: float = STRENGTH,
                 spread: Sequence[Tensor] | None = None, max_change: float = MAX_CHANGE):
        super().__init__()
        self.layers, self.strength = tuple(layers), strength
        widths, middle = [layer.in_channels for layer in layers], (text_dim + hidden) // 2
        self.from_style = nn.ModuleList(EqualLinear(width, width, bias_init=1) for width in widths)
        self.from_text = nn.ModuleList(nn.Sequential(EqualLinear(text_dim, middle, activation=True),
                                                     EqualLinear(middle, hidden, activation=True)) for _ in widths)
        self.to_target = nn.ModuleList(EqualLinear(width + hidden, width, bias_init=1) for width in widths)
        for i, deviation in enumerate(spread or ()):
            # A channel that never varies may not move either; the floor only keeps its gradient finite.
            self.register_buffer(f"limit_{i}", (max_change * deviation.detach().float()).clamp(min=1e-6))
        if spread is not None and [len(limit) for limit in self.buffers()] != widths:
            raise ValueError(f"spread must have one vector for each style, of widths {widths}")

    def forward(self, styles: Sequence[Tensor], text: Tensor, strength: float | Tensor | None = None) -> list[Tensor]:
        """Edit styles.

        Args:
            styles: every layer's (B, C_l) or (1, C_l); one face may be edited with B texts.
            text: (B, D) or (1, D).
            strength: instead of the mapper's own, or (B, 1) of them; 0 changes nothing.
        Returns:
            Every layer's style: the edited ones (B, C_l), later ones as they came.
        """
        strength = self.strength if strength is None else strength
        with torch.autocast(text.device.type, enabled=False):   # cheap, and an edit is a small difference of styles
            edited = [style + strength * self.change(i, style, text)
                      for i, style in enumerate(styles[:len(self.layers)])]
        return edited + list(styles[len(edited):])              # layers past the blend keep their styles

    def change(self, i: int, style: Tensor, text: Tensor) -> Tensor:
        """The way (B, C) from layer i's style to its target."""
        by_style, by_text = self.from_style[i](style), self.from_text[i](text)              # (B|1, C), (B|1, hidden)
        batch = max(len(style), len(text))
        joined = torch.cat([by_style.expand(batch, -1), by_text.expand(batch, -1)], dim=1)  # (B, C + hidden)
        change = self._way(i, style, joined)                                                # (B, C)
        limit = getattr(self, f"limit_{i}", None)
        return change if limit is None else limit * torch.tanh(change / limit)

    def _way(self, i: int, style: Tensor, joined: Tensor) -> Tensor:
        """The way (B, C) without its bound."""
        way: Tensor = self.to_target[i](joined) - style
        return way

    def released_names(self) -> dict[str, str]:
        """Our parameter names -> those of the authors' checkpoint (without its `module.` prefix)."""
        names: dict[str, str] = {}
        for i, layer in enumerate(self.layers):
            for ours, theirs in ((f"from_style.{i}", f"mapper_{layer.index}"),
                                 (f"from_text.{i}.0", f"mapper_text_{layer.index}.0"),
                                 (f"from_text.{i}.1", f"mapper_text_{layer.index}.1"),
                                 (f"to_target.{i}", f"mapper_all_{layer.index}")):
                names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
        return names


class GentleMapper(StyleMapper):
    """A StyleMapper that learns the way to the target, from no way at all: its first edits change nothing.

    Ours, where a generator makes photographs: the published beginning moves every style by whole spreads at once, and a
    small CLIP finds no way back from there to faces. L1 is left out, for L2 after L1 is one linear map of the style, and
    the text's branch is half as wide: a third of the weights.
    """

    def __init__(self, layers: Sequence[LayerSpec], text_dim: int, hidden: int = HIDDEN // 2, strength: float = STRENGTH,
                 spread: Sequence[Tensor] | None = None, max_change: float = MAX_CHANGE):
        super().__init__(layers, text_dim, hidden, strength, spread, max_change)
        self.from_style = nn.ModuleList(nn.Identity() for _ in layers)
        with torch.no_grad():
            for parameter in self.to_target.parameters():
                parameter.zero_()

    def _way(self, i: int, style: Tensor, joined: Tensor) -> Tensor:
        way: Tensor = self.to_target[i](joined)
        return way


MAPPERS: dict[str, type[nn.Module]] = {"style": StyleMapper, "gentle": GentleMapper}
