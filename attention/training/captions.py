"""The corpus: captions from disk, cut into phrases as they stream by, and prompts drawn from them."""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch

from attention.config import TrainConfig
from attention.errors import UserError
from attention.files.reading import TEXT_BYTES, read_text, readable, shown
from attention.processes import rank, world_size
from attention.sheets import evenly
from attention.worlds.world import World

PAIR_SHARE = 0.16       # share of prompts that join two phrases, as published (its randn() < 1 is true in 84 %)
JOIN = " and "
LONGEST_LINE = 100_000  # characters of a caption; published ones have some hundreds


def read_phrases(path: str | Path, fits: Callable[[str], bool] = lambda prompt: True) -> Iterator[str]:
    """Stream the phrases of a corpus in a fixed order; one line of one file is held at a time, and each phrase once.

    What cannot be used (a file that is empty or unreadable, a line that is not UTF-8, a phrase that is too long) is
    left out, and one warning at the end says how much that was and where it began.

    Args:
        path: a folder of *.txt (Multi-Modal-CelebA: one file an image, ten lines each; readme files are passed over),
            a text file with one phrase or sentence a line, or face2text's raw.json (a list of {"description": text};
            version 0.1 {"descriptions": [{"text": text}]}), which is one document of a few MB and is read at once.
        fits: whether CLIP reads a prompt to its end. It is asked about each phrase joined to itself, because a prompt
            may join two.
    Yields:
        Phrases as split_phrases cuts them, as often as they occur.
    Raises:
        UserError: the path is missing, a .json is of another kind, or nothing in the corpus can be used.
    """
    path = Path(path)
    files, skipped = _caption_files(path), _Skipped()
    known: set[str] = set()
    for file in files:
        for place, caption in _captions(file, skipped):
            for phrase in split_phrases(caption):
                if phrase in known or fits(phrase + JOIN + phrase):
                    known.add(phrase)
                    yield phrase
                else:
                    skipped.add("phrase", file, f"{place} has a phrase that is too long for CLIP ({phrase[:40]}...)")
    if not known:
        found = f"left out {skipped.summary(len(files))}" if skipped.counts else "only commas and full stops"
        raise UserError(f"{path} holds no captions that can be used ({found}); write one phrase or sentence a line, as "
                        "plain UTF-8 text (celeba-caption/README.md)")
    if skipped.counts:
        warnings.warn(f"{path}: left out {skipped.summary(len(files))}", stacklevel=2)



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
        phrases: the different ones.
        counts: how often each of them occurs, float64.
        generator: the torch.Generator behind it; save and restore its state to resume a run.
        source: where the phrases come from, in words.
    """

    def __init__(self, phrases: Iterable[str], seed: int, source: str = "the corpus"):
        counts = Counter(phrases)
        if not counts:
            raise UserError("the corpus holds no phrases to draw prompts from; give captions with at least one phrase")
        self.phrases, self.source = tuple(counts), source
        self.counts = torch.tensor(list(counts.values()), dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(seed)

    def check(self, count: int) -> None:
        """Refuse steps of more prompts than there are phrases.

        Raises:
            UserError: the corpus has fewer than `count` different phrases.
        """
        if count > len(self.phrases):
            raise UserError(f"{self.source} has {len(self.phrases)} different phrases, but a step needs {count}: "
                            "lower --batch_size or give a larger corpus with --captions")

    def sample(self, count: int) -> list[str]:
        """Draw `count` prompts without any phrase in common; a corpus below 2 * count phrases gives fewer pairs.

        Raises:
            UserError: the corpus has fewer than `count` different phrases.
        """
        self.check(count)
        # The first arrivals of independent exponential clocks are a draw without replacement, in proportion to the
        # counts: no rejection loop.
        clocks = torch.empty_like(self.counts).exponential_(generator=self.generator) / self.counts
        order = clocks.topk(min(2 * count, len(clocks)), largest=False).indices.tolist()
        drawn = [self.phrases[index] for index in order]
        paired = torch.rand(count, generator=self.generator) < PAIR_SHARE
        spare = drawn[count:]
        return [phrase + JOIN + spare.pop(0) if pair and spare else phrase
                for phrase, pair in zip(drawn[:count], paired.tolist(), strict=True)]

    def others(self, prompts: Sequence[str], count: int) -> list[str]:
        """Draw at most `count` phrases that none of these prompts contains, each once; 0 draws nothing at random."""
        if count == 0:
            return []
        used = {phrase for prompt in prompts for phrase in prompt.split(JOIN)}
        left = [phrase for phrase in self.phrases if phrase not in used]
        return [left[i] for i in torch.randperm(len(left), generator=self.generator)[:count].tolist()]


def prompts_for(config: TrainConfig, world: World) -> PhraseSampler:
    """What a training draws its prompts from, told in a line: --captions or the world's corpus, else the world's prompts.

    Raises:
        UserError: the corpus cannot be read, or is too small for a step.
    """
    if config.captions is None:
        sampler = PhraseSampler(world.prompts, config.seed, f"the world {world.name}")
    else:
        folder = corpus_of(config.captions)
        sampler = PhraseSampler(read_phrases(folder, world.clip.fits), config.seed, shown(folder))
    sampler.check(config.batch_size * world_size())
    if rank() == 0:
        print(f"recipe {config.recipe}, targets: {config.target}; prompts are drawn from {len(sampler.phrases)} phrases of "
              f"{sampler.source}")
    return sampler


def corpus_of(captions: Path) -> Path:
    """The folder `sample` of a folder that has no captions of its own: what ships in celeba-caption until others come."""
    sample = captions / "sample"
    return sample if sample.is_dir() and not any(_is_caption(path) for path in captions.glob("*.txt")) else captions


def sheet_prompts(config: TrainConfig, world: World, most: int) -> list[str]:
    """What the sample sheets of a training show: --description, and `most` of --own_description_dir or the world's prompts.

    Raises:
        UserError: the file cannot be read, or has no prompts.
    """
    prompts: Sequence[str] = world.prompts
    if config.own_description_dir is not None:
        lines = read_text(config.own_description_dir, "a text file with one prompt a line").splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UserError(f"--own_description_dir {shown(config.own_description_dir)} is empty, expected a prompt a line")
    return [*filter(None, [config.description]), *evenly(prompts, most)]


class _Skipped:
    """What a corpus could not give: how much of each kind, in how many files, and the first of it."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self._files: set[Path] = set()
        self._first = ""

    def add(self, kind: str, file: Path, reason: str) -> None:
        self.counts[kind] += 1
        self._files.add(file)
        self._first = self._first or f"{file}: {reason}"

    def summary(self, files: int) -> str:
        listed = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in self.counts.items())
        return f"{listed}, in {len(self._files)} of {files} file{'s' * (files > 1)}, first {self._first}"


def _caption_files(path: Path) -> list[Path]:
    if not os.path.isdir(path) and os.path.exists(path):
        return [readable(path, "captions")]
    try:
        entries = sorted(path.iterdir())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; expected a folder of caption files, face2text's raw.json, or a text "
                        "file with one phrase a line") from error
    except PermissionError:                                 # a folder all the same
        raise
    except (OSError, ValueError):                           # of other kinds of paths
        readable(path, "captions")
        raise
    files = [entry for entry in entries if _is_caption(entry)]
    if not files:
        found = ", ".join(entry.name for entry in entries[:3]) + ", ..." * (len(entries) > 3)
        raise UserError(f"{path} holds no *.txt captions (found {found or 'nothing'}); expected one text file an image, "
                        "ten lines each, or give face2text's raw.json itself (celeba-caption/README.md)")
    return files


def _is_caption(path: Path) -> bool:
    return path.suffix == ".txt" and not path.stem.lower().startswith("readme")


def _captions(file: Path, skipped: _Skipped) -> Iterator[tuple[str, str]]:
    """(its place, caption) of every usable line of one file, or of every description of a raw.json."""
    kind, empty = "description" if file.suffix.lower() == ".json" else "line", True
    try:
        # Bytes that are not UTF-8 become U+FFFD. UTF-16, as some editors write, shows in its zero bytes.
        file = readable(file, "captions", None if kind == "line" else TEXT_BYTES)
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            captions = _lines(stream) if kind == "line" else _face2text(stream.read(), file)
            for number, caption in enumerate(captions, start=1):
                if not caption.strip():
                    continue
                empty = False
                if len(caption) > LONGEST_LINE:
                    skipped.add(kind, file, f"{kind} {number} has more than {LONGEST_LINE:,} characters")
                elif "\ufffd" in caption or "\0" in caption:
                    skipped.add(kind, file, f"{kind} {number} is not UTF-8 text")
                else:
                    yield f"{kind} {number}", caption
    except OSError as error:
        skipped.add("file", file, f"cannot be read ({error.strerror})")
    except UserError as error:
        if kind == "description":                           # of raw.json, beside which there are no others
            raise
        skipped.add("file", file, str(error).removeprefix(f"{file} "))
    else:
        if empty:
            skipped.add("file", file, "is empty")


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines of a file, of those that are longer than LONGEST_LINE the beginning: no file can fill the memory."""
    while line := stream.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith("\n"):
            line = stream.readline(LONGEST_LINE + 1)


def _face2text(text: str, path: Path) -> list[str]:
    try:
        return [description.strip() for entry in json.loads(text) for description in
                ([entry["description"]] if "description" in entry else [one["text"] for one in entry["descriptions"]])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not face2text's raw.json ({type(error).__name__}: {error}); expected a list of "
                        '{"description": text}') from error
