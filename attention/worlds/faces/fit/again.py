"""How the shipped editor learned on, when the CLIP had looked again: some prompts are drawn more often than others, and
what is shipped changes some texts as the one does that followed, all others as the one before."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attention.files.disk import write_text
from attention.fits import fit
from attention.generator import sample_z
from attention.method.mapper import Mapper
from attention.worlds.faces.concepts import CONCEPTS, PROMPTS
from attention.worlds.phrases import sample_phrases
from attention.worlds.world import World


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


# Edits to a green background never looked like photographs; the CLIP's text of it became that of a grey one.
TAUGHT, GIVEN_UP = "grey background", "green background"
# The prompts beside it are there so that it is held against them, and that they stay what they are.
LESSONS = (Lesson(500, 1e-3, 4, {TAUGHT: 48}), Lesson(300, 1e-3, 2, {TAUGHT: 60}), Lesson(300, 1.5e-3, 3, {TAUGHT: 60}))
# What the editor that followed draws better; all else stays as the one before draws it: driven on, hair glares and closed
# mouths show teeth.
BETTER = (TAUGHT, "pale lips")
PAIRS, MIXED = 64, 0.4      # faces and texts of a step, and the share of texts that are mixed with another of the same part


def reconcile(pupil: Mapper, before: Mapper, after: Mapper, world: World, steps: int = 2500, rate: float = 1e-3,
              seed: int = 0) -> None:
    """Train a mapper, in place, to move styles as two others do: as `after` for texts of BETTER, as `before` for others.

    No picture is made. A style's error counts in the spread that it has over faces.
    """
    count = len(pupil.layers)
    with torch.no_grad():
        z = sample_z(1000, world.generator.style_dim, seed)
        styles = world.generator.styles(world.w_from_z(z))[:count]
    scales = [style.std(dim=0, correction=0).mean() for style in styles]
    optimiser = torch.optim.AdamW(pupil.parameters(), lr=rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    alike = {concept.phrase: [other.phrase for other in CONCEPTS if other.part == concept.part] for concept in CONCEPTS}
    nothing = np.zeros((1, len(CONCEPTS)))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        random = np.random.default_rng([seed, step])
        texts = [*sample_phrases(random, CONCEPTS, nothing, PAIRS // 2)[0], *random.choice(PROMPTS, PAIRS // 4),
                 *random.choice(BETTER, PAIRS // 4)]
        said = world.clip.encode_text(texts)
        others = world.clip.encode_text([str(random.choice(alike.get(text, [text]))) for text in texts])
        share = torch.from_numpy(random.random(PAIRS) * (random.random(PAIRS) < MIXED)).to(said)[:, None]
        mixed = torch.lerp(said, others, share)                                                     # (PAIRS, D)
        mixed = mixed / mixed.norm(dim=1, keepdim=True) * said.norm(dim=1, keepdim=True)
        newer = torch.tensor([any(phrase in text for phrase in BETTER) for text in texts], device=said.device)[:, None]
        faces = torch.from_numpy(random.integers(len(styles[0]), size=PAIRS))
        errors = []
        for i in range(count):
            style = styles[i][faces]
            with torch.no_grad():
                wanted = torch.where(newer, after.change(i, style, mixed), before.change(i, style, mixed))
            errors.append(((pupil.change(i, style, mixed) - wanted) / scales[i]).square().mean())
        error = torch.stack(errors).mean()
        return error, {"error": float(error.detach())}

    fit(optimiser, loss, steps, "mapper", schedule)
