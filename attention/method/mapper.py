"""The text mapper: what an edit does to the styles."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attention.errors import UserError
from attention.generator.base import LayerSpec, principal
from attention.generator.layers import EqualLinear
from attention.method.by_text import ByText
from attention.method.defaults import STRENGTH

HIDDEN = 512        # width of the text branch, published
MAX_CHANGE = 30.0   # ours: standard deviations over faces that a style may move at strength 1, where spreads are known
DIRECTIONS = 64     # of a style along which faces may be told apart, the widest first
LEAST_LIMIT = 1e-6


class Mapper(nn.Module):
    """Moves the style of every edited layer a way that depends on the style and on a text: s + strength * change(s, text).

    Args:
        layers: the edited layers, in order.
        strength: share of the way, unless a call says another.
    Attributes:
        amount: what every strength is multiplied by for a text. Ours: in the paper all texts share one strength, at which
            some changes overshoot and others fall short.
        shift: of a text that is better changed by another embedding than its own, to that one. Ours.
        kept: how many of the first edited layers leave their styles as they are for a text, rounded. Ours: coarse layers
            draw shapes, and who asks for grey hair asks for no shorter hair.
        kept_last: how many of the last edited layers do. Ours: fine layers draw colours and edges, and who asks for narrow
            eyes asks for no red lids.
    """

    def __init__(self, layers: Sequence[LayerSpec], strength: float = STRENGTH):
        super().__init__()
        self.layers, self.strength = tuple(layers), strength
        self.amount, self.shift = ByText(otherwise=1.0), ByText(otherwise=0.0)
        self.kept, self.kept_last = ByText(otherwise=0.0), ByText(otherwise=0.0)

    def forward(self, styles: Sequence[Tensor], text: Tensor, strength: float | Tensor | None = None) -> list[Tensor]:
        """Edit styles.

        Args:
            styles: every layer's (B, C_l) or (1, C_l); one face may be edited with B texts.
            text: (B, D) or (1, D).
            strength: instead of the mapper's own, or (B, 1) of them; 0 changes nothing. It counts in `amount` of the text.
        Returns:
            Every layer's style: the edited ones (B, C_l), later ones as they came.
        """
        strength = self.strength if strength is None else strength
        with torch.autocast(text.device.type, enabled=False):   # cheap, and an edit is a small difference of styles
            strengths = strength * self.amount(text) * self._shares(text)                   # (B, edited layers)
            text = text.float() + self.shift(text)                                          # (B, D)
            edited = [style + strengths[:, i:i + 1] * self.change(i, style, text)
                      for i, style in enumerate(styles[:len(self.layers)])]
        return edited + list(styles[len(edited):])              # layers past the blend keep their styles

    def _shares(self, text: Tensor) -> Tensor:
        """(B, edited layers) of the strength at which each layer's style moves for a text: 0 where it is kept, else 1."""
        count = len(self.layers)
        numbers = torch.arange(1, count + 1, device=text.device)
        return ((numbers > self.kept(text).round()) & (numbers <= count - self.kept_last(text).round())).float()

    def change(self, i: int, style: Tensor, text: Tensor) -> Tensor:
        """The way (B, C) of layer i's style (B or 1, C) at strength 1."""
        raise NotImplementedError

    def coordinates(self, styles: Sequence[Tensor]) -> list[Tensor]:
        """The edited layers' styles as `losses.style_delta` compares them, (B, C_l)."""
        return list(styles[:len(self.layers)])


class StyleMapper(Mapper):
    """Moves each style toward the text: s + strength * (target(s, text) - s).

    target = L2([L1(s); MLP2(text)]), with a set of weights for every edited layer.

    Args:
        layers: the edited layers, in order.
        text_dim: width of the text (or image) embedding.
        hidden: width of the text branch.
        strength: share of the way to the target.
        faces: the edited layers' styles of N faces, (N, C_l). If given, a style never moves further than
            strength * max_change * its standard deviation over them, which keeps edits among faces; if None, the
            published rule without a bound.
    """

    def __init__(self, layers: Sequence[LayerSpec], text_dim: int, hidden: int = HIDDEN, strength: float = STRENGTH,
                 faces: Sequence[Tensor] | None = None, max_change: float = MAX_CHANGE):
        super().__init__(layers, strength)
        widths, middle = [layer.in_channels for layer in layers], (text_dim + hidden) // 2
        self.from_style = nn.ModuleList(EqualLinear(width, width, bias_init=1) for width in widths)
        self.from_text = nn.ModuleList(text_branch(text_dim, middle, hidden) for _ in widths)
        self.to_target = nn.ModuleList(EqualLinear(width + hidden, width, bias_init=1) for width in widths)
        if faces is not None:
            check_faces(faces, widths)
            for i, style in enumerate(faces):
                # A channel that never varies may not move either; the floor only keeps its gradient finite.
                limit = max_change * style.detach().float().std(dim=0)
                self.register_buffer(f"limit_{i}", limit.clamp(min=LEAST_LIMIT))

    def change(self, i: int, style: Tensor, text: Tensor) -> Tensor:
        by_style, by_text = self.from_style[i](style), self.from_text[i](text)              # (B|1, C), (B|1, hidden)
        change = self.to_target[i](joined(by_style, by_text)) - style                       # (B, C)
        limit = getattr(self, f"limit_{i}", None)
        return change if limit is None else limit * torch.tanh(change / limit)

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


class NaturalMapper(Mapper):
    """Moves each style as faces differ: along the principal directions of its layer's style, in standard deviations.

    Ours, where a generator makes photographs. Moved channel by channel, a style leaves the few directions that faces
    lie in, and what then pleases a small CLIP is paint. Here a change of length 1 is one as likely as the difference
    between faces one standard deviation apart, whatever its direction; the first edits change nothing. What a text asks
    of a style is multiplied by what the style is: brown hair is darker than blonde, and lighter than black.

    Args:
        layers, text_dim, hidden, strength: see StyleMapper.
        faces: the edited layers' styles of N faces, (N, C_l), N more than DIRECTIONS.
        max_change: length, in standard deviations, that a change does not exceed at strength 1.
    Raises:
        UserError: no bound was asked for, so that `faces` is missing.
    """

    def __init__(self, layers: Sequence[LayerSpec], text_dim: int, hidden: int = HIDDEN // 2, strength: float = STRENGTH,
                 faces: Sequence[Tensor] | None = None, max_change: float = MAX_CHANGE):
        super().__init__(layers, strength)
        self.max_change, widths = max_change, [layer.in_channels for layer in layers]
        if faces is None:
            raise UserError("--mapper natural bounds changes as faces differ, but --max_change is 0; give one that is not")
        check_faces(faces, widths)
        counts = [min(DIRECTIONS, width) for width in widths]
        self.from_text = nn.ModuleList(text_branch(text_dim, (text_dim + hidden) // 2, hidden) for _ in widths)
        self.asked = nn.ModuleList(EqualLinear(hidden, count) for count in counts)
        self.found = nn.ModuleList(EqualLinear(count, count) for count in counts)
        self.to_change = nn.ModuleList(EqualLinear(2 * count + hidden, count) for count in counts)
        for parameter in self.to_change.parameters():
            nn.init.zeros_(parameter)
        for i, (style, count) in enumerate(zip(faces, counts, strict=True)):
            for name, value in zip(("mean", "directions", "deviations"), principal(style, count), strict=True):
                self.register_buffer(f"{name}_{i}", value)

    def change(self, i: int, style: Tensor, text: Tensor) -> Tensor:
        coordinates, by_text = self._coordinates(i, style), self.from_text[i](text)         # (B|1, k), (B|1, hidden)
        met = self.asked[i](by_text) * self.found[i](coordinates)                           # (B, k)
        way = self.to_change[i](joined(joined(coordinates, by_text), met)) / STRENGTH       # (B, k)
        way = way * torch.rsqrt(1 + way.square().sum(dim=1, keepdim=True) / self.max_change**2)
        moved: Tensor = (way * getattr(self, f"deviations_{i}")) @ getattr(self, f"directions_{i}")
        return moved                                                                        # (B, C)

    def coordinates(self, styles: Sequence[Tensor]) -> list[Tensor]:
        """(B, k_l) of the edited layers: standard deviations from the mean, along the principal directions."""
        return [self._coordinates(i, style) for i, style in enumerate(styles[:len(self.layers)])]

    def _coordinates(self, i: int, style: Tensor) -> Tensor:
        away = (style.float() - getattr(self, f"mean_{i}")) @ getattr(self, f"directions_{i}").T
        found: Tensor = away / getattr(self, f"deviations_{i}")
        return found                                                                        # (B, k)


def text_branch(text_dim: int, middle: int, hidden: int) -> nn.Sequential:
    """(B, text_dim) -> (B, hidden)."""
    return nn.Sequential(EqualLinear(text_dim, middle, activation=True), EqualLinear(middle, hidden, activation=True))


def joined(by_style: Tensor, by_text: Tensor) -> Tensor:
    """(B or 1, A) and (B or 1, D) -> (B, A + D)."""
    batch = max(len(by_style), len(by_text))
    return torch.cat([by_style.expand(batch, -1), by_text.expand(batch, -1)], dim=1)


def check_faces(faces: Sequence[Tensor], widths: Sequence[int]) -> None:
    """Refuse styles of faces that are not those of the edited layers."""
    if [style.shape[1] for style in faces] != list(widths):
        raise ValueError(f"faces must have the styles of each edited layer, of widths {list(widths)}")


MAPPERS: dict[str, Callable[..., Mapper]] = {"style": StyleMapper, "natural": NaturalMapper}
