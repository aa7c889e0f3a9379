"""How the learning rate goes: transformers' schedules, with a warm-up that trains from the start.

Not covered: the rate itself (the profile, studylib.training.tune).
"""

from __future__ import annotations

import math
from typing import Any

from studylib.schema.settings import TrainSettings


def name_schedule(recipe: TrainSettings) -> str:
    """transformers' name of the recipe's schedule; every one of them warms up."""
    return "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule


def warmup_steps(recipe: TrainSettings) -> int:
    """The updates before the recipe's full rate, which the last one has at least."""
    return min(math.ceil(recipe.warmup_share * recipe.steps), recipe.steps - 1)


def rise_from_above_zero(schedule: Any, warmup: int) -> Any:
    """transformers' schedule, but for a warm-up whose first update is one.

    Update i of `warmup`, from 1, has i / (warmup + 1) of the full rate; transformers' own has
    (i - 1) / warmup, and so none at all for the first. All later ones are as they were.
    """
    from torch.optim.lr_scheduler import LambdaLR

    [later, *_] = schedule.lr_lambdas

    def share(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else later(step)

    return LambdaLR(schedule.optimizer, share)
