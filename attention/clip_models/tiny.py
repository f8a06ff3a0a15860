"""The small CLIP: CLIP's text transformer, a plain convolutional picture tower, and a word tokenizer.

Released picture towers shrink a picture 4x or more at once; on drawn faces they never learned to read parts of a few pixels
(area under the curve 0.5 for eyes and noses), strided convolutions with dense layers do.
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention.clip_models import TINY_FILE, words_of
from attention.files.networks import FileKind
from attention.images import area_resize

KIND = FileKind(TINY_FILE, "python -m attention.worlds.drawn.build")
MOST_WARNED, LONGEST_WARNED = 1000, 40      # words, and their characters, that are remembered as told
PADDING, START, UNKNOWN, FIRST_WORD = 0, 1, 2, 3


class WordTokenizer:
    """Whole words to ids: lower case, no punctuation, one id a word of a closed vocabulary.

    Ids: 0 padding, 1 start, 2 unknown, 3... the words, last the end. The end must be the highest: CLIP takes the
    text's feature at the position of the highest id.
    """

    def __init__(self, words: Iterable[str], context_length: int = 24):
        self.words = tuple(dict.fromkeys(word for entry in words for word in words_of(entry)))
        self.context_length = context_length
        self._ids = {word: index for index, word in enumerate(self.words, start=FIRST_WORD)}
        self.end = FIRST_WORD + len(self.words)
        self.vocab_size = self.end + 1

    def __call__(self, texts: list[str]) -> Tensor:
        """B texts -> (B, context_length) int64. A text that is too long is cut, its last token is the end."""
        tokens = torch.full((len(texts), self.context_length), PADDING)
        for row, text in zip(tokens, texts, strict=True):
            ids = [START, *(self._ids.get(word, UNKNOWN) for word in words_of(text))][:self.context_length - 1]
            row[:len(ids) + 1] = torch.tensor([*ids, self.end])
        return tokens

    def unknown(self, text: str) -> list[str]:
        """The words of `text` that the vocabulary lacks, each once, in the order of the text."""
        return [word for word in dict.fromkeys(words_of(text)) if word not in self._ids]


class ConvTower(nn.Module):
    """Pictures (B, 3, S, S) -> (B, dim): strided convolutions, then dense layers, because parts keep their places."""

    def __init__(self, image_size: int, width: int, dim: int):
        super().__init__()
        widths = (width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Conv2d(widths[-1], width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()]
        self.trunk = nn.Sequential(*layers)
        side, rest = divmod(image_size, 2 ** len(widths))
        if rest:
            raise ValueError(f"image_size is {image_size}, but must be a multiple of {2 ** len(widths)}")
        self.head = nn.Sequential(nn.Linear(width * side * side, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.trunk(pixels))


class Block(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + mlp(norm(x)); names and order are CLIP's."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(),
                                             c_proj=nn.Linear(4 * width, width)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, width), mask (T, T) added to the attention's logits -> (B, T, width)."""
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Towers(nn.Module):
    """CLIP's two towers, with its parameter names: a causal transformer for texts, `ConvTower` for pictures.

    Source: Radford et al. 2021, section 2.4.
    """

    def __init__(self, dim: int, vocab_size: int, context_length: int, width: int, heads: int, layers: int,
                 visual: nn.Module):
        super().__init__()
        self.visual = visual
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width ** -0.5 * torch.randn(width, dim))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for block in self.blocks():
            nn.init.normal_(block.attn.in_proj_weight, std=width ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            for last in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.normal_(last.weight, std=width ** -0.5 * (2 * layers) ** -0.5)

    def blocks(self) -> Iterable[Any]:
        blocks: Any = self.transformer.resblocks
        return blocks

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, dim), read off at the end of the text, which has the highest token."""
        x = self.token_embedding(tokens) + self.positional_embedding                         # (B, T, width)
        mask = torch.full((tokens.shape[1],) * 2, float("-inf"), device=x.device).triu(1)    # no token sees later ones
        for block in self.blocks():
            x = block(x, mask)
        x = self.ln_final(x)
        return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)] @ self.text_projection


class TinyCLIP(nn.Module):
    """A small CLIP that keeps the TextImageModel protocol once frozen; a new one is trainable (drawn/build.py).

    The text side is CLIP's transformer, the image side `ConvTower`.

    Args:
        words: the vocabulary (words or whole phrases); anything else is read as <unk>.
        dim: width of the embeddings.
        image_size: input side, a multiple of 16.
        width: channels of the first convolution.
        text_width, text_heads, text_layers: of the text transformer.
        context_length: longest text in words, start and end included.
    """

    def __init__(self, words: Iterable[str], *, dim: int = 128, image_size: int = 128, width: int = 24,
                 text_width: int = 128, text_heads: int = 4, text_layers: int = 2, context_length: int = 24):
        super().__init__()
        self.config = dict(dim=dim, image_size=image_size, width=width, text_width=text_width, text_heads=text_heads,
                           text_layers=text_layers, context_length=context_length)
        self.tokenizer = WordTokenizer(words, context_length)
        self.dim, self.image_size, self.frozen = dim, image_size, False
        self.words: frozenset[str] | None = frozenset(self.tokenizer.words)
        self._warned: set[str] = set()
        # Channels-last convolutions take a fifth less time on a CPU at these widths.
        visual = ConvTower(image_size, width, dim).to(memory_format=torch.channels_last)
        self.model = Towers(dim, self.tokenizer.vocab_size, context_length, text_width, text_heads, text_layers, visual)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) in [-1, 1] -> (B, dim) float32, not normalised, differentiable in `images`."""
        pixels = area_resize(images, self.image_size).contiguous(memory_format=torch.channels_last)
        embedded: Tensor = self.model.visual(pixels)
        return embedded.float()

    def encode_text(self, texts: list[str]) -> Tensor:
        """B texts -> (B, dim) float32, not normalised. Warns once about each of the first MOST_WARNED unknown words."""
        unknown = [word[:LONGEST_WARNED] for word in self.tokenizer.unknown(" ".join(texts))]
        unknown = [word for word in unknown if word not in self._warned][:MOST_WARNED - len(self._warned)]
        if unknown:
            self._warned.update(unknown)
            warnings.warn(f"the drawn faces' CLIP does not know {', '.join(map(repr, unknown))} and will ignore what "
                          "is meant; it was trained on the words in tokenizer.words", stacklevel=2)
        return self.model.encode_text(self.tokenizer(texts).to(self.model.logit_scale.device)).float()

    def fits(self, text: str) -> bool:
        """Whether the model reads the whole text; a longer one is cut."""
        return len(words_of(text)) + 2 <= self.tokenizer.context_length           # with the start and the end

    def freeze(self) -> "TinyCLIP":
        """Fix the weights and the normalisation's statistics for good; returns itself."""
        self.frozen = True
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TinyCLIP":
        return super().train(mode and not self.frozen)      # part of a module in training, a frozen CLIP never is

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, configuration and vocabulary as one safetensors file, all of it or nothing.

        `dtype` torch.float16 halves the file; embeddings then change in the fourth digit.
        """
        KIND.save(path, self.model, {"config": self.config, "words": self.tokenizer.words}, dtype)

    @classmethod
    def load(cls, path: str | Path) -> "TinyCLIP":
        """Read a file that `save` wrote: float32, frozen, in evaluation mode.

        Raises:
            UserError: the file is missing, cut short, of another kind, or its tensors contradict its configuration.
        """
        def build(said: dict, tensors: dict) -> tuple["TinyCLIP", nn.Module]:
            clip = cls(said["words"], **said["config"])
            return clip, clip.model

        return KIND.load(path, build).freeze()
