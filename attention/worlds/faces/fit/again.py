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


# Some layers were left alone from here on (`Mapper.kept` and `kept_last`), so that others learn what they had done;
# what goes too far when it is driven on is drawn seldom, and is there so that others are held against it.
LESSONS = (
    Lesson(500, 1e-3, 5, {**dict.fromkeys(("red lipstick", "green background"), 24),
                          **dict.fromkeys(("pink lipstick", "red hair", "blonde hair", "beard", "big eyes"), 14),
                          **dict.fromkeys(("pale lips", "brown hair", "rosy cheeks", "grey hair"), 9),
                          **dict.fromkeys(("tanned skin", "serious", "mouth closed"), 3)}),
    Lesson(300, 7e-4, 4, {"red lipstick": 36, "pink lipstick": 30, "green background": 14,
                          **dict.fromkeys(("rosy cheeks", "pale lips"), 6),
                          **dict.fromkeys(("tanned skin", "serious", "mouth closed"), 2)}),
)
LED = 0.7       # of the way to the one that followed: all the way lips are smeared and mouths are bent


def between(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float = LED) -> dict[str, Tensor]:
    """The weights at a share of the way from some to others that were trained from them (Wortsman et al. 2022)."""
    return {name: torch.lerp(before[name].float(), value.float(), share) for name, value in after.items()}
