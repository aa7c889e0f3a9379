"""What each method does to a model: the only code in which full, LoRA and QLoRA part ways.

Everything else (data, optimiser, schedule, evaluation) is the same code for every row of the
table METHODS, so that a difference between rows is a difference between methods.

Not covered: loading weights (studylib.modelling.models), the training loop
(studylib.training.train).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from studylib.core.errors import StudyError
from studylib.modelling.four_bit import count_weights, keep_unpacked
from studylib.schema.profile import METHODS, MethodSettings

__all__ = ["METHODS", "attach", "count_parameters", "keep_unpacked"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def lora_config(method: MethodSettings, model: Any) -> Any:
    """peft's configuration of a method with an adapter."""
    from peft import LoraConfig

    assert method.rank is not None and method.alpha is not None
    targets = method.targets if method.targets == "all-linear" else list(method.targets)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        target_modules=targets,
        modules_to_save=[embedding_name(model)] if method.kind.embeddings else None,
        ensure_weight_tying=bool(method.kind.embeddings and model.config.tie_word_embeddings),
    )


def embedding_name(model: Any) -> str:
    """The last part of the name of the input embedding's module."""
    embedding = model.get_input_embeddings()
    return next(name for name, m in model.named_modules() if m is embedding).rsplit(".", 1)[-1]


def attach(model: nn.Module, method: MethodSettings, seed: int = 0) -> nn.Module:
    """Make a loaded model ready for a method: freeze, unfreeze, or wrap in a seeded adapter.

    A quantized method expects a model whose linear layers are 4-bit already
    (studylib.modelling.models). Raises StudyError where the model lacks the modules that the
    adapter names.
    """
    if method.kind.adapter:
        from peft import get_peft_model

        torch.manual_seed(seed)
        model.requires_grad_(False)
        try:
            config = lora_config(method, model)
            model = get_peft_model(
                model, config, autocast_adapter_dtype=method.adapter_dtype == "fp32"
            )
        except ValueError as error:
            raise StudyError(
                f"lora.targets = {method.targets}",
                f"the model cannot take this adapter: {error}",
                "Use all-linear, or names of linear layers of this model.",
            ) from None
    else:
        model.requires_grad_(method.kind.trains)
    if method.kind.quantized:
        keep_unpacked(model)
    return model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; a 4-bit weight counts what it stands for, not its bytes.

    The total is the base model's with the adapter's added; tied weights count once.
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = count_weights(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
