"""What of a model is an adapter's and what the base had: peft's layers are asked, not names.

Each of peft's layers holds the base's own layer beside what it adds, parameters and, with some
methods, tensors that are not trained (VeRA's shared matrices).

What peft trains whole beside them (an embedding, norms) it leaves in the base's 16 bits, where a
weight takes no step smaller than half its spacing. Here it is trained in fp32, as adapters are.

Not covered: what an adapter reaches (studylib.modelling.reach), prompts, which are in no layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

OWN = ("base_layer", "original_module")  # where peft keeps what it wraps
HALVES = (torch.bfloat16, torch.float16)


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer that peft has laid an adapter on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, module


def added_parts(layer: nn.Module) -> Iterator[nn.Module]:
    """The modules that one of peft's layers has beside the base's own."""
    yield from (part for name, part in layer.named_children() if name not in OWN)


def every_added_part(model: nn.Module) -> Iterator[nn.Module]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield from added_parts(module)


def added_tensors(model: nn.Module) -> set[int]:
    """The ids of parameters and buffers that were not in the base; empty without an adapter."""
    parts = list(every_added_part(model))
    return {id(t) for part in parts for t in (*part.parameters(), *part.buffers())}


def added_modules(model: nn.Module) -> set[int]:
    """The ids of the modules that were not in the base, those that hold others included."""
    return {id(module) for part in every_added_part(model) for module in part.modules()}


def widen_whole(model: nn.Module) -> None:
    """Turn what is trained whole in 16 bits to fp32, in place; ties stay.

    Such a layer reads in fp32 what it is given and gives what the base's own layer would.
    """
    layers: list[tuple[Any, torch.dtype]] = [
        (layer, own[0].dtype)
        for part in every_added_part(model)
        for layer in part.modules()
        if (own := [p for p in layer.parameters(recurse=False) if p.requires_grad])
        and own[0].dtype in HALVES
        and hasattr(layer, "weight")
    ]
    for layer, dtype in layers:
        layer.settled_dtype = dtype
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.float()
        layer.register_forward_pre_hook(read_wide)
        layer.register_forward_hook(partial(give_as, dtype))


def read_wide(layer: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *rest = given
    return (first.to(layer.weight.dtype) if first.is_floating_point() else first, *rest)


def give_as(dtype: torch.dtype, _layer: Any, _given: Any, output: torch.Tensor) -> torch.Tensor:
    return output.to(dtype)


def settled_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """By parameter that `widen_whole` widened, in what it is scored, kept and served."""
    return {
        f"{path}.{name}": layer.settled_dtype
        for path, layer in model.named_modules()
        if hasattr(layer, "settled_dtype")
        for name, _ in layer.named_parameters(recurse=False)
    }


def settle_whole(model: nn.Module) -> None:
    """From `widen_whole` to how it is scored, in place."""
    for name, dtype in settled_dtypes(model).items():
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.to(dtype)


def named_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a model's state_dict would hold, by name, without asking for it: a 4-bit layer without
    data has no state of its own to give."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        passing = module._non_persistent_buffers_set
        for name, buffer in module.named_buffers(recurse=False):
            if name not in passing:
                found[f"{path}.{name}" if path else name] = buffer
    return found
