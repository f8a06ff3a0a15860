"""One loop for every fit of a network or a latent but the editor's own training, which `training/loop.py` does."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from tqdm import tqdm

SHOWN_EVERY = 10        # steps


def fit(optimiser: torch.optim.Optimizer, loss: Callable[[int], tuple[Tensor, Mapping[str, float]]], steps: int, name: str,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None, start: int = 0,
        after: Callable[[int, float], object] | None = None, quiet: bool = False) -> None:
    """Take `steps` steps down a loss, with a progress bar.

    Args:
        loss: of the step of this number -> a scalar to go down, and what the bar shows beside it.
        schedule: of the optimiser's rates, moved on after every step.
        start: steps that are done already.
        after: told the number and the loss of every step that is done.
        quiet: no bar.
    """
    bar = tqdm(range(start, steps), desc=name, initial=start, total=steps, leave=False, disable=quiet)
    for step in bar:
        optimiser.zero_grad()
        value, shown = loss(step)
        value.backward()
        optimiser.step()
        if schedule is not None:
            schedule.step()
        reached = float(value.detach())
        if step % SHOWN_EVERY == 0:
            bar.set_postfix({"loss": f"{reached:.4f}", **{key: f"{found:.4g}" for key, found in shown.items()}})
        if after is not None:
            after(step, reached)
