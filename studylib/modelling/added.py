"""What of a model is an adapter's and what the base had: peft's layers are asked, not names.

Each of peft's layers holds the base's own layer beside what it adds, parameters and, with some
methods, tensors that are not trained (VeRA's shared matrices).

Not covered: what an adapter reaches (studylib.modelling.reach), prompts, which are in no layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

OWN = ("base_layer", "original_module")  # where peft keeps what it wraps


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
