"""What an adapter reaches: every kind of linear layer of a model, and how much is under an adapter.

The model is asked, not the names in a profile: "all-linear" leaves the plain and shared MLPs of a
mixture of experts out and takes its router in, and gives an expert that holds two matrices in one
tensor twice the rank.

Not covered: attaching (studylib.modelling.methods), the words for it
(studylib.reporting.cells).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from studylib.modelling.added import adapter_layers, added_modules, added_parts
from studylib.modelling.four_bit import count_weights, is_transposed
from studylib.schema.records import Reached


def reach(model: Any) -> tuple[Reached, ...]:
    """What an adapter meets: every kind of linear layer outside embeddings and output layer, in the
    model's order; empty without an adapter."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list_matrices(base) if adapted_ranks(base) else ()


def untrained(model: nn.Module) -> tuple[str, ...]:
    """Kinds of layers whose adapters a training left as they began: the model reads such a layer's
    weight without calling the layer.

    Every adapter begins as one that does nothing, so some of its tensors begin as one number
    throughout (zeros, ones); where a gradient came, none of them still is.
    """
    kinds: dict[str, bool] = {}
    for path, layer in adapter_layers(model):
        kind = name_kind(path.removeprefix("base_model.model."), "weight")
        own = [p for part in added_parts(layer) for p in part.parameters()]
        still = any(p.requires_grad and p.numel() > 1 and is_even(p.detach()) for p in own)
        kinds[kind] = kinds.get(kind, False) or not still
    return tuple(kind for kind, moved in kinds.items() if not moved)


def is_even(values: torch.Tensor) -> bool:
    """Whether a tensor is one number throughout."""
    return bool((values == values.flatten()[0]).all())


def list_matrices(model: Any) -> tuple[Reached, ...]:
    """The kinds of matrices that tokens are multiplied by, and the adapters on them."""
    ranks, kinds = adapted_ranks(model), dict[str, list[Any]]()
    head = model.get_output_embeddings()
    skipped = {id(module) for module in (head, getattr(head, "base_layer", None))}
    skipped |= added_modules(model)
    for path, module in model.named_modules():
        if id(module) in skipped:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in ranks or is_matrix(module, name, parameter):
                row = kinds.setdefault(name_kind(path, name), [0, 0, None])
                row[0] += count_weights(parameter)
                if id(parameter) in ranks:
                    row[1] += count_weights(parameter)
                    row[2] = max(row[2] or 0, ranks[id(parameter)] or 0) or None
    return tuple(
        Reached(layer=layer, params=params, adapted=adapted, rank=rank)
        for layer, (params, adapted, rank) in kinds.items()
    )


def linear_names(model: Any) -> list[str]:
    """The last parts of the names of a model's linear layers, each once, the output layer's not."""
    head = model.get_output_embeddings()
    return list(dict.fromkeys(
        name.rsplit(".", 1)[-1] for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or is_transposed(module)) and module is not head
    ))  # fmt: skip


def adapted_ranks(model: nn.Module) -> dict[int, int | None]:
    """The parameters under an adapter, by id, and its rank there, if it has one."""
    found: dict[int, int | None] = {}
    for _, layer in adapter_layers(model):
        if not any(True for part in added_parts(layer) for _ in part.parameters()):
            continue
        name, ranks = getattr(layer, "parameter_name", "weight"), getattr(layer, "r", None)
        found[id(getattr(layer.get_base_layer(), name))] = (
            max(ranks.values()) if isinstance(ranks, dict) and ranks else None
        )
    return found


def is_matrix(module: nn.Module, name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is a linear layer's weight: of a layer, a router, or fused experts."""
    if isinstance(module, nn.Linear) or is_transposed(module):
        return name == "weight"
    if isinstance(module, nn.Embedding) or type(module).__module__.startswith("torch.nn."):
        return False  # norms and convolutions among the latter
    fused = parameter.ndim == 3 and min(parameter.shape) > 1 and "bias" not in name
    return fused or (parameter.ndim == 2 and name == "weight")


def name_kind(path: str, parameter: str) -> str:
    """A kind of layer: the path within a layer of the model, without numbers and peft's parts."""
    parts = [part for part in path.split(".") if part != "base_layer"]
    if parameter != "weight":
        parts.append(parameter)
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    within = parts[numbers[0] + 1 :] if numbers else parts
    return ".".join(part for part in within if not part.isdigit())
