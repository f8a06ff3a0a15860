"""What a stopped evaluation has measured, so that the same command goes on after it."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, field_validator

from attention.errors import UserError
from attention.evaluation.metrics import METRICS
from attention.files.disk import write_text
from attention.files.reading import read_report

Figures = dict[str, float | None]


class Stored(BaseModel):
    """The file: block of faces -> prompt -> strength -> figures."""

    blocks: dict[int, dict[str, dict[float, Figures]]]

    @field_validator("blocks")
    @classmethod
    def _whole(cls, blocks: dict[int, dict[str, dict[float, Figures]]]) -> dict[int, dict[str, dict[float, Figures]]]:
        for prompts in blocks.values():
            for prompt, rows in prompts.items():
                if any(figures.keys() != METRICS.keys() for figures in rows.values()):
                    raise ValueError(f"{prompt!r} has not every figure")
        return blocks


@dataclass(frozen=True)
class KeptBlock:
    """What is measured of a block of faces; `figures` by prompt and strength."""

    kept: "Kept"
    number: int

    @property
    def figures(self) -> Mapping[str, Mapping[float, Figures]]:
        return self.kept.stored.blocks[self.number]

    def add(self, prompt: str, rows: dict[float, Figures]) -> None:
        """Keep what was measured of a prompt."""
        self.kept.stored.blocks[self.number][prompt] = rows
        write_text(self.kept.path, self.kept.stored.model_dump_json())


@dataclass(frozen=True)
class Kept:
    """The figures of an evaluation that is under way, in a file of their own until it ends."""

    path: Path
    stored: Stored

    @classmethod
    def of(cls, folder: Path, decided_by: Mapping[str, object]) -> "Kept":
        """What lies in a folder of an evaluation that everything decides alike; the file's name is the hash of that.

        Raises:
            UserError: the file is garbled.
        """
        said = json.dumps({**decided_by, "metrics": list(METRICS)}, sort_keys=True, default=str)
        path = folder / f"figures-{hashlib.sha256(said.encode()).hexdigest()[:12]}.json"
        if not path.exists():
            return cls(path, Stored(blocks={}))
        try:
            stored = read_report(path, "what a stopped evaluation has measured", Stored)
        except UserError as error:
            raise UserError(f"{error}; delete it, and all is measured anew") from None
        print(f"going on after {sum(map(len, stored.blocks.values()))} prompts that a stopped evaluation has measured; "
              f"delete {path} to measure them again", file=sys.stderr)
        return cls(path, stored)

    def of_block(self, number: int) -> KeptBlock:
        """The block's part."""
        self.stored.blocks.setdefault(number, {})
        return KeptBlock(self, number)

    def forget(self) -> None:
        """Take the file away: the evaluation has ended, and its report has all."""
        self.path.unlink(missing_ok=True)
