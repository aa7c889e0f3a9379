"""The optimizer of a run, and how its rate goes: by the profile's names or the method's own.

Schedules are transformers', with a warm-up that trains from the start.

Not covered: the rate itself (the profile, studylib.training.tune), what the optimizer's states take
(studylib.forecasting.optimizers).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from studylib.schema.settings import TrainSettings
from studylib.schema.spec import RunSpec

# transformers' names of the profile's optimizers; PyTorch's own AdamW has one by device.
OPTIMIZERS = {"adamw": None, "adamw-8bit": "adamw_bnb_8bit", "paged-adamw-8bit": "paged_adamw_8bit"}


def name_optimizer(spec: RunSpec) -> str:
    """transformers' name of what updates a run's weights on this machine."""
    usual = "adamw_torch_fused" if torch.cuda.is_available() else "adamw_torch"
    return OPTIMIZERS[spec.optimizer] or usual


def make_own(trainer: Any, spec: RunSpec) -> Any:
    """The optimizer of a method with two rates (LoRA+), None for one: a LoRA's B gets the run's
    rate times the row's rate_ratio."""
    ratio = spec.method.kind.rate_ratio
    if ratio == 1:
        return None
    from peft.optimizers import create_loraplus_optimizer

    kind, words = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    return create_loraplus_optimizer(
        trainer.model, kind, loraplus_lr_ratio=ratio,
        loraplus_weight_decay=spec.train.weight_decay, **words,
    )  # fmt: skip


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
