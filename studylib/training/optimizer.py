"""The optimizer of a run: by the profile's name or the method's own, with one rate or two.

Not covered: how the rate goes (studylib.training.schedule), what its states take
(studylib.forecasting.optimizers).
"""

from __future__ import annotations

from typing import Any

import torch

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
