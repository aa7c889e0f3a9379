"""What a row of the table of methods does to a model: the only code in which methods part ways.

Everything else (data, optimiser, schedule, evaluation) is the same code for every row, so that a
difference between rows is a difference between methods.

Not covered: loading weights (studylib.modelling.models), the training loop
(studylib.training.train).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from studylib.core.errors import StudyError, Unfit, first_line
from studylib.modelling.added import adapter_layers, widen_whole
from studylib.modelling.four_bit import count_weights, keep_unpacked
from studylib.modelling.reach import linear_names, reach
from studylib.schema.method_names import METHODS_TABLE
from studylib.schema.methods import (
    ADAPTER,
    METHODS,
    WHOLE,
    LastLayers,
    fill_holes,
    holes_in,
)
from studylib.schema.settings import MethodSettings, nearest

__all__ = ["METHODS", "attach", "keep_unpacked", "reach", "trainable_and_total"]

# peft tells of GPT-2's transposed layers, which it then takes rightly, and of norms of a model's
# own class, which it trains as they are.
warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", module="peft")
warnings.filterwarnings("ignore", message="Unsupported layer type.*Norm'", module="peft")

SAMPLED = 64  # numbers of a weight that tell whether it was changed
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def adapter_config(method: MethodSettings, model: Any, as_kept: bool = False) -> Any:
    """peft's configuration of a method with an adapter; StudyError where peft does not know it.

    as_kept: of the adapter that stays, where that is not the one that is trained (`converted`).
    """
    from peft import PeftType, get_peft_config

    row = method.kind
    keys, holes = row.peft or {}, set(holes_in(row.peft or {}))
    numbers: dict[str, Any] = {name: getattr(method, name) for name in row.takes}
    if "targets" in holes and method.targets != "all-linear":
        numbers["targets"] = list(method.targets)
    if "embedding" in holes:
        numbers["embedding"] = embedding_name(model)
    if "tied" in holes:
        numbers["tied"] = bool(model.config.tie_word_embeddings)
    where = f"{METHODS_TABLE.name}, {method.name}: peft"
    known = [kind.value for kind in PeftType]
    if keys["peft_type"] not in known:
        rule = "peft has no method of this name"
        raise StudyError(f"{where}.peft_type = {keys['peft_type']}", rule,
                         nearest(str(keys["peft_type"]), known))  # fmt: skip
    try:
        config: Any = get_peft_config({"task_type": "CAUSAL_LM", **fill_holes(keys, numbers)})
        if as_kept and row.converted:  # what was trained beside what it began with
            config.init_lora_weights, config.r, config.lora_alpha = (
                True, 2 * config.r, 2 * config.lora_alpha
            )  # fmt: skip
        return config
    except (TypeError, ValueError) as error:
        rule = f"peft does not take these keys ({first_line(error)})"
        raise StudyError(where, rule, "They are those of peft's configuration class.") from error


def embedding_name(model: Any) -> str:
    """The last part of the name of the input embedding's module."""
    embedding = model.get_input_embeddings()
    return next(name for name, m in model.named_modules() if m is embedding).rsplit(".", 1)[-1]


def attach(
    model: nn.Module, method: MethodSettings, seed: int = 0, as_kept: bool = False
) -> nn.Module:
    """Make a loaded model ready for a method: freeze, unfreeze, or wrap in a seeded adapter.

    A quantized method expects a model whose linear layers are 4-bit already
    (studylib.modelling.models). as_kept: as adapter_config has it. Unfit where the model lacks a
    module that the method names, or where peft refuses it.
    """
    if not method.kind.adapter:
        return free_own(model, method)
    from peft import get_peft_model

    torch.manual_seed(seed)
    model.requires_grad_(False)
    names, layers = [name for name, _ in model.named_modules() if name], linear_names(model)
    config = adapter_config(method, model, as_kept)
    by_targets = "targets" in method.kind.takes
    if config.is_prompt_learning:
        raise Unfit(
            f"{method.label}: peft.peft_type = {config.peft_type.value}",
            "prompts in front of a row shift the positions of the examples that are packed in it",
            f"Use an adapter in the model's layers, or {WHOLE}.",
        )
    samples = sample_weights(model)
    try:
        wrapped: Any = get_peft_model(
            model,  # type: ignore[arg-type]
            config,
            autocast_adapter_dtype=method.adapter_dtype == "fp32",
        )
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:
        if not raised_by_peft(error):
            raise
        if by_targets:
            refuse_unknown(method, method.targets, names, layers)
        by_targets = by_targets and "arget" in str(error)
        others = f"Name layers that it takes in lora.targets ({spell_others(layers, str(error))})"
        raise Unfit(
            f"{method.label} on {model.config.model_type}",  # type: ignore[union-attr]
            f"peft refuses this adapter: {first_line(error).rstrip('.')}",
            f"{others if by_targets else f'Change its row in {METHODS_TABLE.name}'}, or use "
            f"{WHOLE}.",
        ) from error
    if by_targets:
        # Names that peft has turned into others, of experts that are one tensor now, are gone.
        kept = wrapped.peft_config["default"].target_modules
        refuse_unknown(method, [name for name in method.targets if name in kept], names, layers)
    refuse_routers(method, wrapped, layers)
    if not (as_kept and method.kind.converted):
        refuse_changed(method, wrapped, samples)
        refuse_turned(method, wrapped)
    freeze_parts(wrapped, method)
    if method.adapter_dtype == "fp32":
        widen_whole(wrapped)
    if method.kind.quantized:
        keep_unpacked(wrapped)
    return wrapped


def prepare(model: nn.Module, method: MethodSettings) -> None:
    """What some methods do to their 4-bit base first, in place: what is not in 4 bits to fp32."""
    if method.kind.prepared:
        from peft import prepare_model_for_kbit_training

        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def freeze_parts(model: nn.Module, method: MethodSettings) -> None:
    """Keep the named parts of an adapter as they began, in place; Unfit where it has none such."""
    for part in method.kind.frozen:
        found = [p for name, p in model.named_parameters() if part in name.split(".")]
        if not found:
            raise Unfit(
                method.label,
                f"its adapter has no part named {part}",
                f"Change `frozen` of its row in {METHODS_TABLE.name}.",
            )
        for parameter in found:
            parameter.requires_grad = False


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a model: its longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def free_own(model: nn.Module, method: MethodSettings) -> nn.Module:
    """Let all, none, the last layers' or the named ones of a model's own weights be trained."""
    wanted = method.kind.trained
    if isinstance(wanted, str):
        return model.requires_grad_(wanted == "all")
    if isinstance(wanted, LastLayers):
        model.requires_grad_(False)
        layers = decoder_layers(model)
        for layer in layers[-math.ceil(wanted.last_layers * len(layers)) :]:
            layer.requires_grad_(True)
        return model
    for name, parameter in model.named_parameters():
        places = (name, name.rpartition(".")[0])
        parameter.requires_grad = any(f".{place}".endswith(f".{end}")
                                      for place in places for end in wanted)  # fmt: skip
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise Unfit(
            f"{method.label} on {model.config.model_type}",  # type: ignore[union-attr]
            f"no weight of this model ends in {' or '.join(wanted)}",
            f"Change `trained` of its row in {METHODS_TABLE.name}, or use {WHOLE}.",
        )
    return model


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
                f"Name other layers ({spell_others(layers, repr(leaf))}), or use {WHOLE}.",
            )


def sample_weights(model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Every parameter with a copy of its first numbers."""
    return [(p, p.detach().flatten()[:SAMPLED].clone()) for p in model.parameters()]


def refuse_changed(
    method: MethodSettings, model: nn.Module, samples: list[tuple[nn.Parameter, torch.Tensor]]
) -> None:
    """Unfit where an adapter begins by changing the base (PiSSA, OLoRA) and its row says nothing of
    it, or the other way round: what is saved of it would not fit the original base."""
    where = f"{method.label} on {model.config.model_type}"  # type: ignore[union-attr]
    changed = is_changed(model, samples)
    if changed and not method.kind.converted:
        raise Unfit(
            where,
            "it begins by changing the model's own weights, so that the adapter alone, as it "
            "is saved, does not fit the original model",
            f"Give its row in {METHODS_TABLE.name} another initialization or, where peft can "
            "convert such an adapter to one on the original, write converted: true.",
        )
    if changed is False and method.kind.converted:
        raise Unfit(
            where,
            "its row says converted, but it leaves the model's own weights as they are",
            f"Leave converted out of its row in {METHODS_TABLE.name}.",
        )


def is_changed(model: nn.Module, samples: list[tuple[nn.Parameter, torch.Tensor]]) -> bool | None:
    """Whether any of the sampled weights is another now; None where they have no data."""
    there = {id(parameter) for parameter in model.parameters()}
    known = [(p, sample) for p, sample in samples if not p.is_meta]
    if not known:
        return None
    return any(
        id(p) not in there or not torch.equal(p.detach().flatten()[:SAMPLED], sample)
        for p, sample in known
    )


def refuse_turned(method: MethodSettings, model: Any) -> None:
    """Unfit where peft began an adapter from weights that lie the other way round (OLoRA on GPT-2's
    layers, whose weights are [in, out]): its first step would fail."""
    for path, layer in adapter_layers(model) if method.kind.converted else ():
        down = layer.lora_A["default"].weight
        if down.shape[1] != layer.in_features:
            leaf = path.rpartition(".")[2]
            raise Unfit(
                f"{method.label} on {model.config.model_type}",
                f"peft takes the transposed weights of {leaf} as they lie, and its adapter does "
                "not fit them",
                f"Use {ADAPTER}, or {WHOLE}.",
            )


def raised_by_peft(error: BaseException) -> bool:
    """Whether peft itself raised an error: others' faults are not the adapter's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("peft.")


def raised_below_peft(error: BaseException) -> bool:
    """Whether an error came up in what peft called, or in peft."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("peft."):
            return True
        trace = trace.tb_next
    return False


def spell_others(layers: Sequence[str], refused: str) -> str:
    """The linear layers that a refusal does not name."""
    return ", ".join(name for name in layers if f"'{name}'" not in refused) or "none is left"


def trainable_and_total(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; a 4-bit weight counts what it stands for, not its bytes.

    The total is the base model's with the adapter's added; tied weights count once.
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = count_weights(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
