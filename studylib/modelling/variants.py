"""Make what is served: adapters with seeded weights on one base, and models merged from them.

A trained adapter and a random one cost the same, so none is trained here; but none is left as it
begins, which does nothing: its answers differ from the base's, and an equality between two ways
means something.

Merging an adapter of a 4-bit base goes by way of a plain model: its linear layers take the 4-bit
base's dequantized weights, then the adapter is added. peft's merge on the 4-bit layers themselves
would round the sum to 4 bits again.

Not covered: timing (latency), bytes (serve), changing variants under way (hot_swap).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.modelling.added import added_tensors
from studylib.modelling.four_bit import constants, keep_unpacked
from studylib.modelling.merging import overwrite_with_four_bit
from studylib.modelling.methods import DTYPES, adapter_config, attach
from studylib.modelling.reach import is_even
from studylib.schema.settings import MethodSettings

# Of what is added to a new adapter: to matrices, whose sums over a rank grow, and to vectors.
MATRIX_STD, VECTOR_STD = 0.02, 0.5


def share_weights(model: nn.Module) -> nn.Module:
    """A second model on the very tensors of the first: modules are copied, weights are not."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def adapter_names(count: int) -> list[str]:
    """default, a1, a2 ...: the first has the name that peft gives to an only adapter."""
    return ["default", *(f"a{index}" for index in range(1, count))]


def add_adapters(base: nn.Module, method: MethodSettings, count: int, dtype: str) -> nn.Module:
    """Wrap `base` (in place) in `count` adapters of a method, seeded, all weights non-zero.

    The first one is active. They are the same on a plain and on a 4-bit base.
    """
    names = adapter_names(count)
    model: Any = attach(base, method, 0, as_kept=True)
    for index, name in enumerate(names[1:], 1):
        torch.manual_seed(index)
        model.add_adapter(name, adapter_config(method, base, as_kept=True))
    for index, name in enumerate(names):
        seed_adapter(model, name, index, DTYPES[dtype])
    return ready(model, "default")


def seed_adapter(model: nn.Module, name: str, seed: int, dtype: torch.dtype) -> None:
    """Move what one adapter begins with as one number (LoRA's B, IA3's ones), and cast all of it to
    `dtype`. An adapter that begins as a copy of the base's own (norms) is moved whole."""
    generator, added = torch.Generator().manual_seed(seed), added_tensors(model)
    own = [p for path, p in model.named_parameters()
           if id(p) in added and name in path.split(".")]  # fmt: skip
    still = {id(p) for p in own if is_even(p.detach())} or {id(p) for p in own}
    for parameter in own:
        if id(parameter) in still:
            flat = parameter.numel() == max(parameter.shape, default=1)
            std = VECTOR_STD if flat else MATRIX_STD
            drawn = torch.randn(parameter.shape, generator=generator) * std
            moved = parameter.detach().cpu() + drawn
            parameter.data = moved.to(parameter.device, dtype)
        else:
            parameter.data = parameter.data.to(dtype)


def ready(model: Any, name: str) -> Any:
    """In evaluation mode, without gradients, with one adapter active."""
    model.set_adapter(name)
    keep_unpacked(model)
    return model.requires_grad_(False).eval()


def save_adapter(model: Any, name: str, folder: Path) -> Path:
    """Write one adapter as peft does; returns the folder to load it from."""
    model.save_pretrained(folder, selected_adapters=[name])
    return folder if name == "default" else folder / name


def load_adapters(base: nn.Module, folders: dict[str, Path]) -> nn.Module:
    """A base (wrapped in place) with adapters from disk, the first one active."""
    from peft import PeftModel

    names = list(folders)
    model = PeftModel.from_pretrained(
        base, folders[names[0]], adapter_name=names[0], autocast_adapter_dtype=False
    )
    for name in names[1:]:
        model.load_adapter(folders[name], name, autocast_adapter_dtype=False)
    return ready(model, names[0])


def plain_copy(base: nn.Module, four_bit: nn.Module | None = None) -> nn.Module:
    """A model like `base` on weights of its own; with those of a 4-bit base, dequantized."""
    model = copy.deepcopy(base)
    if four_bit is not None:
        overwrite_with_four_bit(model, four_bit)
    return model


def merge_adapter(
    base: nn.Module, adapter_folder: Path, four_bit: nn.Module | None = None
) -> nn.Module:
    """One adapter merged into a copy of `base`, or of the 4-bit base's dequantized weights."""
    model: Any = load_adapters(plain_copy(base, four_bit), {"default": adapter_folder})
    return model.merge_and_unload().eval()


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of a model, tied ones once: parameters, buffers, 4-bit constants."""
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        for part in [tensor, *constants(getattr(tensor, "quant_state", None))]:
            storage = part.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())
