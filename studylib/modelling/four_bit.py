"""Weights in 4 bits: how they are stored, read back, counted, and what is checked before use.

Which layers are quantized is asked of transformers' own rules, so that a forecast's model, one made
here and one loaded from a checkpoint agree. bitsandbytes' AVX-512 kernel takes another block's
maximum from the second row on where a matrix's width is no multiple of the block: such weights come
back 28 to 50 % wrong instead of 9 %. Its bytes are right, and read as one long row they come back
right, so that is how every caller on a CPU reads them here. As libraries change, each shape of a
loaded model is tried against original weights as well.

Not covered: the adapter on top (studylib.modelling.methods), merging (studylib.modelling.merging).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from studylib.core.errors import StudyError, Unfit, first_line
from studylib.modelling.added import added_tensors
from studylib.modelling.packing import as_trained
from studylib.schema.methods import ADAPTER, METHODS

NF4_BLOCK = 64  # weights that share one constant (Dettmers et al., 2023, section 3)
ABSMAX_BLOCK = 256  # constants that share one second-level constant
# NF4 loses 0.092 of normal weights' norm at every shape and FP4 0.12; reading another block's
# constant, 0.2.
LARGEST_ERROR = 0.1
LARGEST_ERRORS = {"nf4": LARGEST_ERROR, "fp4": 0.13}
LOST_PERCENT = {"nf4": 9, "fp4": 12}
TRIED_WEIGHTS = 1 << 12  # at least so many, as small matrices spread around that loss
MOST_TRIED_WEIGHTS = 1 << 17
MOST_DRAWS = 64
ON_FOUR_BITS = ", ".join(name for name, row in METHODS.items() if row.quantized)

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantization_config(compute_dtype: torch.dtype, kind: str = "nf4") -> Any:
    """QLoRA's storage: NF4 with double quantization (Dettmers et al., 2023, section 3), or FP4."""
    from transformers import BitsAndBytesConfig

    guard_reading()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


@lru_cache(maxsize=1)
def guard_reading() -> Any:
    """Make bitsandbytes on a CPU read every matrix whose rows end within a block as one long row.

    Installed once a process, under the operator that all of bitsandbytes and peft call, in forward
    and backward. Cards have kernels of their own, and traced steps see shapes alone: neither
    changes. Where a library reads rightly the result is the same.
    """
    import bitsandbytes  # noqa: F401  (registers its operators)

    operator = "bitsandbytes::dequantize_4bit"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CPU"):
        return None  # it has no kernel of its own: PyTorch's operators, which read flat
    library_reads = torch.library.get_kernel(operator, "CPU")

    def read(
        keys: Any, packed: torch.Tensor, absmax: torch.Tensor, blocksize: int, quant_type: str,
        shape: Any, dtype: torch.dtype,
    ) -> torch.Tensor:  # fmt: skip
        count = math.prod(shape)
        even = count + count % 2  # two weights a byte; the kernel takes no odd row
        row = [1, even] if shape[-1] % blocksize else shape
        found = library_reads.call_boxed(keys, packed, absmax, blocksize, quant_type, row, dtype)
        return found.flatten()[:count].reshape(shape)

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():  # overriding is what is meant
        warnings.simplefilter("ignore", UserWarning)
        library.impl("dequantize_4bit", read, "CPU", with_keyset=True, allow_override=True)
    return library  # it ends with the last reference to it


def quantize_linears(model: Any, compute_dtype: torch.dtype, kind: str = "nf4") -> None:
    """Put every layer that transformers would quantize into its 4-bit form, in place.

    On the meta device the layers' weights have no data. Unfit where there is no such layer.
    """
    from transformers.quantizers.base import HfQuantizer

    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    quantize_part(model, compute_dtype, kept, kind)
    model.is_loaded_in_4bit = True  # so that peft knows its layers
    refuse_none(model)


def quantize_part(
    part: nn.Module,
    compute_dtype: torch.dtype,
    kept: list[str] | None = None,
    kind: str = "nf4",
) -> None:
    """The same for a part of a model. kept: names that stay as they are."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    guard_reading()
    for name, linear in list(quantizable(part, kept)):
        flipped = is_transposed(linear)
        weight = linear.weight.data.t().contiguous() if flipped else linear.weight.data
        layer = Linear4bit(
            weight.shape[1],
            weight.shape[0],
            bias=linear.bias is not None,
            device="meta",
            compute_dtype=compute_dtype,
            compress_statistics=True,
            quant_type=kind,
        )
        if weight.device.type == "meta":
            with weight.device:
                layer.weight = fake_4bit(layer, weight.shape, kind)  # type: ignore[misc]
        else:
            packed = Params4bit(
                weight,  # where it lies: 13B by way of the host are 52 GB over the bus
                requires_grad=False,
                compress_statistics=True,
                quant_type=kind,
                module=layer,
            )
            layer.weight = packed.to(weight.device)  # type: ignore[misc]
        layer.bias = linear.bias
        parent, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(parent), leaf, layer)
    keep_unpacked(part)


def quantizable(part: nn.Module, kept: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """(name, layer) of every layer that transformers puts into 4 bits: nn.Linear itself, not its
    subclasses, and GPT-2's Conv1D."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    for name, module in part.named_modules():
        if (type(module) is nn.Linear or is_transposed(module)) and should_convert_module(
            name, kept
        ):
            yield name, module


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer holds its weight as [in, out]; nn.Linear and 4-bit layers hold [out, in]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def refuse_none(model: Any) -> None:
    """Unfit where no weight outside embeddings is in 4 bits."""
    if four_bit_share(model):
        return
    raise Unfit(
        f"a 4-bit base of {model.config.model_type}",
        "no weight outside its embeddings can be put into 4 bits: its linear layers are of a "
        "class of their own, which transformers leaves as it is",
        f"Leave {ON_FOUR_BITS} out; {ADAPTER} trains an adapter on the same weights.",
    )


def refuse_unreadable(model: Any) -> None:
    """Unfit where a model cannot compute with its 4-bit weights: it multiplies by the weights of
    some layers itself instead of calling the layer (Mamba), or clamps them in training (Gemma
    3n)."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    try:
        with as_trained(model):
            model.train()(input_ids=torch.arange(4, device=device)[None])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Unfit(
            f"a 4-bit base of {model.config.model_type}",
            f"the model cannot compute with its weights in 4 bits ({first_line(error)}); some read "
            "a layer's weights without calling the layer",
            f"Leave {ON_FOUR_BITS} out; {ADAPTER} trains an adapter on the same weights.",
        ) from None


def four_bit_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name in the model without its adapter, layer) of bitsandbytes' 4-bit layers."""
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__name__ == "Linear4bit" and kind.__module__.startswith("bitsandbytes"):
            yield name.removeprefix("base_model.model.").removesuffix(".base_layer"), module


def keep_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX-512 bf16.

    The repacked form has no backward (gradients come out wrong without an error) and computes
    in bf16 instead of the dtype that was asked for. Both would pass as a worse QLoRA.
    """
    for _, layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False


def four_bit_share(model: Any) -> float:
    """Share in 4 bits, 0 to 1, of a model's weights outside embeddings and output layer.

    Embeddings of positions are embeddings too; an adapter on the model is left out.
    """
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    left_out = [*embeddings, model.get_output_embeddings()]
    skipped = {id(p) for module in left_out if module is not None for p in module.parameters()}
    skipped |= added_tensors(model)
    total = sum(count_weights(p) for p in model.parameters() if id(p) not in skipped)
    return sum(count_weights(layer.weight) for _, layer in four_bit_layers(model)) / total


def count_weights(parameter: torch.Tensor) -> int:
    """Weights that a parameter stands for, whether packed or not."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def check_quantization(model: nn.Module) -> float:
    """The largest error with which a matrix of one of the model's shapes comes back from 4 bits.

    Of random normal matrices, relative to what was quantized. StudyError where it is more than
    NF4 or FP4 loses.
    """
    found = {}
    for _, layer in four_bit_layers(model):
        state = layer.weight.quant_state
        if layer.weight.device.type == "meta":  # there is nothing to read
            continue
        found[tuple(state.shape), state.dtype, layer.weight.device, state.quant_type] = 0.0
    for (rows, width), dtype, device, kind in found:
        error = round_trip_error(rows, width, dtype, device, kind)
        found[(rows, width), dtype, device, kind] = error
        if not error < LARGEST_ERRORS[kind]:
            raise StudyError(
                f"4-bit weights of shape {rows} × {width} on {device}",
                f"bitsandbytes reads them back {100 * error:.0f} % off, where {kind.upper()} "
                f"loses {LOST_PERCENT[kind]} %",
                "Use the versions of the constraints file, or another device.",
            )
    return max(found.values(), default=0.0)


def round_trip_error(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, kind: str = "nf4"
) -> float:
    """Norm of what 4 bits and their reading lose, over that of the original, for normal weights.

    Tall matrices are tried by their first rows, small ones several times.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    guard_reading()
    rows = min(rows, max(2, MOST_TRIED_WEIGHTS // width))
    generator = torch.Generator().manual_seed(0)
    lost = whole = 0.0
    for _ in range(min(MOST_DRAWS, math.ceil(TRIED_WEIGHTS / (rows * width)))):
        original = torch.randn(rows, width, generator=generator).to(device, dtype)
        packed, state = quantize_4bit(original, quant_type=kind, compress_statistics=True)
        lost += float((dequantize_4bit(packed, state).double() - original.double()).square().sum())
        whole += float(original.double().square().sum())
    error = math.sqrt(lost / whole)
    return error if error == error else math.inf


def dequantize(layer: Any) -> torch.Tensor:
    """The weights [out, in] of a 4-bit layer, in the dtype that they were quantized from."""
    from bitsandbytes.functional import dequantize_4bit

    guard_reading()
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def constants(state: Any) -> list[torch.Tensor]:
    """The tensors that a 4-bit weight needs beside itself, both levels of quantization."""
    found = []
    while state is not None:
        found += [part for part in (state.absmax, state.code, state.offset) if part is not None]
        state = state.state2
    return found


def quantization_constants(model: nn.Module) -> list[torch.Tensor]:
    """Every such tensor of a model."""
    states = (getattr(layer.weight, "quant_state", None) for _, layer in four_bit_layers(model))
    return [part for state in states for part in constants(state)]


def fake_4bit(layer: Any, shape: torch.Size, kind: str) -> nn.Parameter:
    """A quantized weight as bitsandbytes would leave it: two weights a byte, and its constants.

    Quantizing itself depends on data and cannot be traced; its result's layout does not.
    """
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Params4bit

    count = shape.numel()
    blocks = -(-count // NF4_BLOCK)
    second = QuantState(
        absmax=torch.empty(-(-blocks // ABSMAX_BLOCK), dtype=torch.float32),
        code=torch.empty(256, dtype=torch.float32),
        blocksize=ABSMAX_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=shape,
        code=torch.empty(16, dtype=torch.float32),
        blocksize=NF4_BLOCK,
        quant_type=kind,
        dtype=layer.compute_dtype,
        offset=torch.empty((), dtype=torch.float32),
        state2=second,
    )
    layer.quant_state = state
    data = torch.empty(((count + 1) // 2, 1), dtype=torch.uint8)
    if data.device.type == "meta":
        return Params4bit(
            data, requires_grad=False, quant_state=state, compress_statistics=True,
            quant_type=kind, module=layer, bnb_quantized=True,
        )  # fmt: skip
    packed = nn.Parameter(data, False)  # a fake tensor has no class of its own
    packed.quant_state = state  # type: ignore[attr-defined]
    return packed
