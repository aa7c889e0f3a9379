"""What each method does to a model: the only code in which full, LoRA and QLoRA part ways.

Everything else (data, optimiser, schedule, evaluation) is the same code for every row of the
table METHODS, so that a difference between rows is a difference between methods.

Not covered: loading weights (studylib.modelling.models), the training loop
(studylib.training.train).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from studylib.core.errors import Unfit, first_line
from studylib.modelling.four_bit import count_weights, keep_unpacked
from studylib.modelling.reach import linear_names, reach
from studylib.schema.profile import METHODS, MethodSettings
from studylib.schema.settings import nearest

__all__ = ["METHODS", "attach", "count_parameters", "keep_unpacked", "reach"]

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
    (studylib.modelling.models). Unfit where the model lacks a module that lora.targets names, or
    where peft refuses it.
    """
    if not method.kind.adapter:
        return model.requires_grad_(method.kind.trains)
    from peft import get_peft_model

    torch.manual_seed(seed)
    model.requires_grad_(False)
    names, layers = [name for name, _ in model.named_modules() if name], linear_names(model)
    config = lora_config(method, model)
    try:
        wrapped: Any = get_peft_model(
            model,  # type: ignore[arg-type]
            config,
            autocast_adapter_dtype=method.adapter_dtype == "fp32",
        )
    except ValueError as error:
        refuse_unknown(method, method.targets, names, layers)
        if not raised_by_peft(error):
            raise
        raise Unfit(
            f"{method.label} on {model.config.model_type}",  # type: ignore[union-attr]
            f"peft refuses this adapter: {first_line(error).rstrip('.')}",
            f"Name layers that it takes in lora.targets ({spell_others(layers, str(error))}), or "
            "use full.",
        ) from error
    # Names that peft has turned into others, of experts that are one tensor now, are gone here.
    kept = wrapped.peft_config["default"].target_modules
    refuse_unknown(method, [target for target in method.targets if target in kept], names, layers)
    refuse_routers(method, wrapped, layers)
    if method.kind.quantized:
        keep_unpacked(wrapped)
    return wrapped


def refuse_unknown(
    method: MethodSettings, targets: Sequence[str], names: Sequence[str], layers: list[str]
) -> None:
    """Unfit for a target that no module has as its name or the end of it; peft ignores such."""
    if method.targets == "all-linear":
        return
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise Unfit(
                f"lora.targets = {', '.join(method.targets)}",
                f"no module of this model is named {target} (a target is a module's whole name or "
                "the end of it after a dot; patterns are not read)",
                nearest(target.rsplit(".", 1)[-1], layers),
            )


def refuse_routers(method: MethodSettings, model: Any, layers: Sequence[str]) -> None:
    """Unfit where an adapter lies on a linear layer that computes something else (Llama 4's router
    gives two tensors, DeepSeek-V4's grouped layer takes rows of another width): peft takes such for
    a linear layer by its class, and its first step would fail."""
    seen = set[type]()
    for name, module in model.named_modules():
        base: Any = getattr(module, "base_layer", None)
        kind = type(base)
        if not isinstance(base, nn.Linear) or kind.forward is nn.Linear.forward or kind in seen:
            continue
        seen.add(kind)
        if hasattr(base.weight, "quant_state"):  # a 4-bit layer gives what nn.Linear gives
            continue
        leaf, out = name.rsplit(".", 1)[-1], None
        with torch.no_grad(), suppress(RuntimeError):  # of one that takes rows of another width
            out = base(base.weight.new_zeros(1, base.in_features))
        if not isinstance(out, torch.Tensor):
            raise Unfit(
                f"{method.label} on {model.config.model_type}",
                f"{leaf} ({kind.__name__}) does not map one row to one row as its sizes say, and "
                "peft's adapter of a linear layer cannot follow",
                f"Name layers in lora.targets ({spell_others(layers, repr(leaf))}), or use full.",
            )


def raised_by_peft(error: BaseException) -> bool:
    """Whether peft itself raised an error: others' faults are not the adapter's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("peft.")


def spell_others(layers: Sequence[str], refused: str) -> str:
    """The linear layers that a refusal does not name."""
    return ", ".join(name for name in layers if f"'{name}'" not in refused) or "none is left"


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
