"""What LoRA and QLoRA stand on: 4-bit weights, the adapter's gradient, merging, its reach.

4-bit weights are held to the original ones, by what each layer answers, not by the code that
reads them back; gradients and merges to the same adapter on a plain model of the same weights.

Not covered: what full fine-tuning stands on (studylib.checking.training_columns).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.checking.model_subject import (
    EXACT,
    RANK,
    Subject,
    alone,
    apart,
    device_of,
    hand_loss,
    judged_cell,
    or_endless,
    parse_tried_method,
    relative_error,
    training_mode,
)
from studylib.modelling.four_bit import four_bit_layers
from studylib.modelling.methods import attach
from studylib.modelling.models import load_trained, merge_into_bf16
from studylib.schema.methods import ADAPTER, QUANTIZED
from studylib.schema.model_report import Cell

NF4_LIMIT = 0.15  # NF4 loses 9 to 10 % of normal weights, 28 % and more is another block's scale
GRADIENT_LIMIT = 1e-3
PROBES = 16  # random rows that a large layer is asked for
READ_WIDTH = 1024  # widest layer of which every weight is read by what it answers
SPREAD = 0.05  # of the second half of an adapter, which starts at zero
ROUNDED_LIMIT = 0.5  # in deviations of the logits; bf16 moves them by a few hundredths


def weights_outside_embeddings(model: Any) -> int:
    left_out = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    left_out.append(model.get_output_embeddings())
    skip = {id(p) for m in left_out if m is not None for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in skip)


def four_bit_column(subject: Subject) -> Cell:
    model = subject.opened(QUANTIZED).model
    count = sum(m.in_features * m.out_features for _, m in four_bit_layers(model))
    share = count / weights_outside_embeddings(subject.reference[0])
    fault = None if share else "no weight outside its embeddings is in 4 bits"
    return Cell(text=f"{share:.0%}", figures={"share": share}, fault=fault)


def answers(layer: Any, rows: torch.Tensor) -> torch.Tensor:
    """What a layer answers to rows [n, in], its bias taken off."""
    bias = layer.bias
    found = layer(rows)
    return found if bias is None else found - bias.to(found.dtype)


def four_bit_error_column(subject: Subject) -> Cell:
    """Every 4-bit layer's answers against those of the layer of that name in the plain model."""
    model = subject.opened(QUANTIZED).model
    errors = {}
    with torch.no_grad():
        for path, layer in four_bit_layers(model):
            plain: Any = subject.reference[0].get_submodule(path)
            draw = torch.Generator().manual_seed(0)
            rows = (
                torch.eye(layer.in_features)
                if layer.in_features <= READ_WIDTH
                else torch.randn(PROBES, layer.in_features, generator=draw)
            )
            given = answers(layer, rows.to(device_of(model)))
            errors[path] = relative_error(given, answers(plain, rows.to(plain.weight.device)))
    if not errors:
        return Cell(text="none", fault="no layer is in 4 bits")
    middle, worst = statistics.median(errors.values()), max(errors, key=errors.__getitem__)
    good = all(error < NF4_LIMIT for error in errors.values())
    figures = {"median": middle, "worst": errors[worst]}
    text, fault = f"{middle:.1%}, {errors[worst]:.1%}", f"{worst} is {errors[worst]:.0%} off"
    return judged_cell(good, text, figures, fault)


def read_weight(layer: Any) -> torch.Tensor:
    """The weights [out, in] that a 4-bit layer multiplies by, asked of the layer where it is small.

    Of a wide layer as bitsandbytes reads them: four_bit_error_column holds those to the original.
    """
    if layer.in_features <= READ_WIDTH:
        return answers(layer, torch.eye(layer.in_features, device=layer.weight.device)).T
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def plain_twin(subject: Subject, quantized: nn.Module) -> Any:
    """A plain model that holds the weights which the 4-bit model multiplies by."""
    twin: Any = subject.load().model
    with torch.no_grad():
        for path, layer in four_bit_layers(quantized):
            target: Any = twin.get_submodule(path)
            weight = read_weight(layer)
            linear = isinstance(target, nn.Linear)
            target.weight.copy_(weight if linear else weight.T)
    return twin


def adapted(model: nn.Module, method: str, like: Any = None) -> Any:
    """The model with an adapter whose two halves are random, or those of another model."""
    wrapped: Any = attach(model, parse_tried_method(method), seed=0)
    silent = [m for m in wrapped.modules() if isinstance(m, nn.Dropout)]
    for module in silent:
        module.p = 0.0
    draw = torch.Generator().manual_seed(1)
    named = dict(like.named_parameters()) if like is not None else {}
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and like is not None:
                parameter.copy_(named[name])
            elif parameter.requires_grad and "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=draw) * SPREAD
                parameter.copy_(noise.to(parameter.device))
    return wrapped.eval()


def adapted_twins(subject: Subject) -> tuple[Any, Any]:
    """One adapter on the 4-bit model, and on a plain model of the weights that it multiplies by."""
    quantized = subject.load(QUANTIZED).model
    twin = plain_twin(subject, quantized)
    ours = adapted(quantized, QUANTIZED)
    return ours, adapted(twin, ADAPTER, like=ours)


def adapter_gradient(model: Any, subject: Subject) -> dict[str, torch.Tensor]:
    with training_mode(model):
        model.zero_grad()
        hand_loss(model, subject.examples[:1]).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def qlora_gradient_column(subject: Subject) -> Cell:
    ours, theirs = adapted_twins(subject)
    found, wanted = adapter_gradient(ours, subject), adapter_gradient(theirs, subject)
    if found.keys() != wanted.keys():
        other = sorted(found.keys() ^ wanted.keys())
        fault = f"{len(other)} parts have a gradient on one side alone: {other[0]}"
        return Cell(text="wrong", note=fault, fault=fault)
    joined = [torch.cat([part[name].flatten() for name in wanted]) for part in (found, wanted)]
    off = relative_error(*joined)
    fault = f"the adapter's gradient is {off:.2g} off, relative"
    return judged_cell(off <= GRADIENT_LIMIT, "exact", {"relative": off}, fault, wrong="wrong")


def logits_of(model: Any, subject: Subject) -> list[torch.Tensor]:
    """A model's logits [tokens, vocabulary] of some examples."""
    with torch.no_grad():
        return [alone(model, example["input_ids"]) for example in subject.examples[:3]]


def worst_apart(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference of logits over examples, in deviations."""
    return max(map(apart, found, wanted))


def typically_apart(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The root mean square of the median token's difference, in deviations: where a router is near
    a tie, rounding sends single tokens elsewhere, and the largest difference says nothing."""
    differences = (torch.cat(found) - torch.cat(wanted)).square().mean(-1).sqrt()
    return or_endless((differences.median() / torch.cat(wanted).std()).item())


def lora_merged_column(subject: Subject) -> Cell:
    """Base and adapter against their merged form, and against the adapter saved and loaded."""
    model = adapted(subject.load().model, ADAPTER)
    before = logits_of(model, subject)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = load_trained(subject.load().model, parse_tried_method(ADAPTER), Path(folder)).eval()
    off = worst_apart(logits_of(model.merge_and_unload().eval(), subject), before)
    lost = worst_apart(logits_of(again, subject), before)
    fault = ""
    if lost > EXACT:
        fault = f"saved and loaded again its logits are {lost:.2g} deviations off"
    if off > EXACT:
        fault = f"merging moves the logits by {off:.2g} deviations"
    figures = {"merged": off, "loaded again": lost}
    return judged_cell(not fault, "exact", figures, fault, wrong="wrong")


def qlora_merged_column(subject: Subject) -> Cell:
    """Three models of one adapter: on 4 bits, on the dequantized base, and as the study merges."""
    ours, theirs = adapted_twins(subject)
    wanted = logits_of(ours, subject)
    off = worst_apart(logits_of(theirs, subject), wanted)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        merged = merge_into_bf16(subject.load().model, ours, Path(folder)).eval()
    answered = logits_of(merged, subject)
    moved = typically_apart(answered, wanted)
    rounded = theirs.merge_and_unload().eval()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).to(parameter.dtype))
    study = worst_apart(answered, logits_of(rounded, subject))
    word = "exact" if max(off, study) <= EXACT else "wrong"
    fault = ""
    if off > EXACT:
        fault = f"on the dequantized base its logits are {off:.2g} deviations off"
    elif study > EXACT:
        fault = f"the merged model is {study:.2g} deviations from base and adapter in bf16"
    elif moved > ROUNDED_LIMIT:
        fault = f"rounded to bf16 its logits move by {moved:.2g} deviations"
    figures = {"base": off, "study": study, "rounding": moved}
    return judged_cell(not fault, f"{word} ({moved:.2g})", figures, fault)


def lora_reach_column(subject: Subject) -> Cell:
    """Which matrices of the plain model have an adapter, and of which rank, by its tensors."""
    plain = subject.reference[0]
    wanted = dict(matrices(plain))
    model = attach(subject.load().model, parse_tried_method(ADAPTER), seed=0)
    ranks = adapter_ranks(model)
    reached = {name for name in wanted if name in ranks}
    total = sum(wanted.values())
    share = sum(wanted[name] for name in reached) / total if total else 0.0
    missed = sorted({leaf(name) for name in wanted if name not in reached})
    odd = sorted({f"{leaf(name)} {rank}" for name, rank in ranks.items() if rank != RANK})
    words = [f"misses {', '.join(missed)}"] if missed else []
    words += [f"asked for rank {RANK}, gives {', '.join(odd)}"] if odd else []
    fault = None if reached else "no matrix gets an adapter"
    note = "; ".join(words) or None
    return Cell(text=f"{share:.0%}", note=note, figures={"share": share}, fault=fault)


def matrices(model: Any) -> Iterator[tuple[str, int]]:
    """(path, weights) of every matrix that is no embedding, output layer, norm or convolution.

    Matrices of a linear layer by the layer's path, stacked ones of experts by the parameter's.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            if module is not head:
                yield name, module.weight.numel()
        elif not isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d):
            for part, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3 and min(parameter.shape[1:]) >= RANK:
                    yield f"{name}.{part}", parameter.numel()


def leaf(path: str) -> str:
    """The part of a path that tells kinds of layers apart."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1] == "weight" else parts[-1:])


def adapter_ranks(model: Any) -> dict[str, int]:
    """Path of every adapted matrix of the base -> rows of its adapter's first half, an expert's."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A") or "default" not in module.lora_A:
            continue
        path = name.removeprefix("base_model.model.")
        while path.endswith(".base_layer"):
            path = path.removesuffix(".base_layer")
        part = getattr(module, "parameter_name", None)
        rows = module.lora_A["default"].weight.shape[0]
        if part is None:
            found[path] = rows
        else:
            experts = getattr(module, "num_experts", 1) or 1
            found[f"{path}.{part}"] = rows // experts
    return found
