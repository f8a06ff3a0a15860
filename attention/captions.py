"""The corpus: captions from disk, cut into phrases, and prompts drawn from them."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from attention.errors import UserError

PAIR_SHARE = 0.16       # share of prompts that join two phrases, as published (its randn() < 1 is true in 84 %)
JOIN = " and "


def read_captions(path: str | Path) -> list[str]:
    """Read the captions of a corpus, in a fixed order.

    Args:
        path: a folder of *.txt (celeba-caption: one file an image, ten lines each; readme files are passed over),
            face2text's raw.json (a list of {"description": text}; version 0.1 {"descriptions": [{"text": text}]}),
            or a text file with one phrase a line.
    Returns:
        Captions without surrounding space, none of them empty.
    Raises:
        UserError: the path is missing, is not readable as any of these, or holds no caption.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if not file.stem.lower().startswith("readme"))
        if not files:
            raise UserError(f"{path} holds no *.txt captions; expected one text file an image, ten lines each "
                            "(celeba-caption/README.md)")
        captions = [line for file in files for line in _read_text(file).splitlines()]
    elif path.is_file():
        text = _read_text(path)
        captions = _face2text(text, path) if path.suffix.lower() == ".json" else text.splitlines()
    else:
        raise UserError(f"{path} does not exist; expected a folder of caption files, face2text's raw.json, or a text "
                        "file with one phrase a line")
    captions = [caption.strip() for caption in captions if caption.strip()]
    if not captions:
        raise UserError(f"{path} holds no captions, only empty lines; write one phrase or sentence a line")
    return captions


def split_phrases(caption: str) -> list[str]:
    """Cut a caption at commas and full stops; a leading "and" goes, and so does what is then empty."""
    phrases = (re.sub(r"^(and\b\s*)+", "", " ".join(part.split()), flags=re.IGNORECASE)
               for part in re.split(r"[,.]", caption))
    return [phrase for phrase in phrases if phrase]


class PhraseSampler:
    """Draws the prompts of a training step: mostly one phrase, some two joined by "and".

    Frequent phrases come up as often as the corpus says, but no phrase twice in one step: equal prompts would count
    as each other's wrong answer in the contrastive loss.

    Attributes:
        generator: the torch.Generator behind it; save and restore its state to resume a run.
    """

    def __init__(self, phrases: Iterable[str], seed: int):
        counts = Counter(phrases)
        if not counts:
            raise UserError("the corpus holds no phrases to draw prompts from; give captions with at least one phrase")
        self.phrases = tuple(counts)
        self._counts = torch.tensor(list(counts.values()), dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, count: int) -> list[str]:
        """Draw `count` prompts without any phrase in common; a corpus below 2 * count phrases gives fewer pairs.

        Raises:
            UserError: the corpus has fewer than `count` different phrases.
        """
        if count > len(self.phrases):
            raise UserError(f"the corpus has {len(self.phrases)} different phrases, but a step needs {count}: "
                            "lower --batch_size or give a larger corpus")
        # The first arrivals of independent exponential clocks are a draw without replacement, in proportion to the
        # counts: no rejection loop.
        clocks = torch.empty_like(self._counts).exponential_(generator=self.generator) / self._counts
        order = clocks.topk(min(2 * count, len(clocks)), largest=False).indices.tolist()
        drawn = [self.phrases[index] for index in order]
        paired = torch.rand(count, generator=self.generator) < PAIR_SHARE
        spare = drawn[count:]
        return [phrase + JOIN + spare.pop(0) if pair and spare else phrase
                for phrase, pair in zip(drawn[:count], paired.tolist(), strict=True)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}); save it again as plain text") from error


def _face2text(text: str, path: Path) -> list[str]:
    try:
        entries = json.loads(text)
        return [description.strip() for entry in entries for description in
                ([entry["description"]] if "description" in entry else [one["text"] for one in entry["descriptions"]])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not face2text's raw.json ({type(error).__name__}: {error}); expected a list of "
                        '{"description": text}') from error
