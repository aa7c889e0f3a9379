"""What of a model is an adapter's and what the base had: peft's layers are asked, not names.

Each kind of layer of peft lists the parts that hold its adapters (`adapter_layer_names`), the whole
modules that it trains beside them among these.

Not covered: what an adapter reaches (studylib.modelling.reach), prompts, which are in no layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

from torch import nn


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every layer that peft has laid an adapter on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, module


def added_parts(layer: Any) -> Iterator[nn.Module]:
    """The modules of one of peft's layers that hold adapters."""
    for name in layer.adapter_layer_names:
        try:
            part = reduce(getattr, name.split("."), layer)
        except AttributeError:  # listed by the class, made for some settings only
            continue
        if isinstance(part, nn.Module):
            yield part


def every_added_part(model: nn.Module) -> Iterator[nn.Module]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield from added_parts(module)


def added_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters that were not in the base; empty without an adapter."""
    return {id(p) for part in every_added_part(model) for p in part.parameters()}


def added_modules(model: nn.Module) -> set[int]:
    """The ids of the modules that were not in the base, those that hold others included."""
    return {id(module) for part in every_added_part(model) for module in part.modules()}
