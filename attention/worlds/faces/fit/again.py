"""How the shipped editor learned on, when the CLIP had looked again: some prompts are drawn more often than others, and
what is shipped lies between the editor before and the one that followed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attention.files.disk import write_text
from attention.worlds.faces.concepts import PROMPTS


@dataclass(frozen=True)
class Lesson:
    """Steps of the main job on prompts of which some count more.

    Attributes:
        often: phrase -> how often it is drawn, for those that are not drawn `usual` times.
    """

    steps: int
    rate: float
    usual: int
    often: Mapping[str, int]

    def write(self, path: Path) -> None:
        """The phrases, each as often as it counts, one a line: a corpus for --captions."""
        write_text(path, "".join(f"{phrase}\n" * self.often.get(phrase, self.usual) for phrase in PROMPTS))


# Of the measures' bounds most had moved for these; what goes too far when it is driven on is drawn seldom, and is there so
# that others are held against it.
DRIVEN = ("rosy cheeks", "serious", "beard")
WANTED = ("blonde hair", "red hair", "brown hair", "red lipstick", "pink lipstick", "pale lips", "pale skin")
LESSONS = (
    Lesson(400, 1e-3, 5, {**dict.fromkeys(WANTED, 20), **dict.fromkeys((*DRIVEN, "green background"), 1)}),
    # Without a mesh a green background can be learned.
    Lesson(250, 7e-4, 4, {**dict.fromkeys((*WANTED, "bright background"), 8), **dict.fromkeys(DRIVEN, 1),
                          "green background": 20}),
)
LED = 0.5       # of the way to the one that followed: all the way hair looks wet and lips are smeared


def between(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float = LED) -> dict[str, Tensor]:
    """The weights at a share of the way from some to others that were trained from them (Wortsman et al. 2022)."""
    return {name: torch.lerp(before[name].float(), value.float(), share) for name, value in after.items()}
