"""What operators cost beyond their tensors: arithmetic, bytes moved, and buffers of CUDA kernels.

A trace sees an operator's inputs and outputs. This table adds what happens inside: the matrix
arithmetic, the memory traffic, and the buffers that CUDA's attention and bitsandbytes' 4-bit
kernels allocate for the time of one call.

Not covered: cuBLAS workspaces (a constant of studylib.planning.cuda_terms), kernel launch times
(studylib.planning.roofline).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from studylib.forecasting.cuda_autocast import as_autocast
from studylib.forecasting.job import StepSettings
from studylib.metering.live import tensors_in
from studylib.modelling.attention import choose_attention

aten = torch.ops.aten
FLASH = (aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_for_cpu)
FLASH_BACKWARD = (
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)
EFFICIENT_BACKWARD = aten._scaled_dot_product_efficient_attention_backward
MOVES_NOTHING = (aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided,
                 aten.new_empty, aten.new_empty_strided, aten._reshape_alias)  # fmt: skip


def choose_traced(config: Any, settings: StepSettings) -> str:
    """The name of the attention that a trace runs: the two of its own are registered with
    transformers (once, by name). Without known examples there is no attention by example."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("forecast_cuda", cuda_attention)
    AttentionInterface.register("forecast_cpu", sdpa_attention_forward)
    chosen, _ = choose_attention(config, settings.attention)
    known = settings.fullest is not None and settings.fullest.example_tokens
    own = chosen != "eager" and not (chosen == "by_example" and known)
    return f"forecast_{settings.kernels}" if own else chosen


def cuda_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0,
    scaling: float | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The kernel that PyTorch's scaled_dot_product_attention picks on a CUDA card.

    Autocast makes query, key and value 16-bit before the kernel is chosen.
    Half precision without a mask: flash attention, which takes grouped heads as they are. With a
    mask, or in fp32: the memory-efficient kernel, for which transformers repeats the key and
    value heads; the mask becomes a bias in the computing dtype. Fp32 with grouped heads and no
    mask fits neither and falls to the mathematical form, which holds all scores.
    """
    from transformers.integrations.sdpa_attention import repeat_kv

    query, key, value = (as_autocast(tensor) for tensor in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    half = query.dtype in (torch.bfloat16, torch.float16)
    if attention_mask is None and half and query.shape[-1] <= 256:
        out = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout, True, scale=scaling
        )[0]
    elif attention_mask is None and groups > 1:
        out = aten._scaled_dot_product_attention_math(
            query, key, value, None, dropout, True, scale=scaling, enable_gqa=True
        )[0]
    else:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        bias = None
        if attention_mask is not None:
            bias = torch.zeros_like(attention_mask, dtype=query.dtype)
            bias.masked_fill_(attention_mask.logical_not(), -torch.inf)
            bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        out = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, dropout, attention_mask is None, scale=scaling
        )[0]
    return out.transpose(1, 2).contiguous(), None


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Multiplications and additions of the matrix operators; 0 for all others.

    PyTorch's own formulas. Flash attention is causal here and counts half of its 2 products
    forward and 5 backward, since its kernels skip the other half (and take grouped heads).
    """
    packet = func._overloadpacket
    if packet in FLASH or packet in FLASH_BACKWARD:
        backward = packet in FLASH_BACKWARD
        query, key = (args[1], args[2]) if backward else (args[0], args[1])
        return query.numel() * key.shape[2] * (5.0 if backward else 2.0)
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    if func.name() == "bitsandbytes::gemm_4bit":
        return 2.0 * args[0].numel() * args[2][0]
    return 0.0


def bytes_of(func: Any, args: Any, out: Any) -> int:
    """Bytes that an operator reads and writes, each tensor once; views and questions move none."""
    # prim: what Python asks of a tensor (its device), which FakeTensorMode shows as an operator.
    if func.is_view or func.namespace == "prim" or func._overloadpacket in MOVES_NOTHING:
        return 0
    moved = sum(size_of(tensor) for tensor in tensors_in(args))
    unpacked = 2 * sum(dequantized(func, args))
    return moved + sum(size_of(tensor) for tensor in tensors_in(out)) + unpacked


def size_of(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, a broadcast one as small as it lies in memory."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def dequantized(func: Any, args: Any) -> tuple[int, ...]:
    """Bytes of constants and of the 16-bit weight that bitsandbytes' 4-bit product unpacks inside.

    Its fused kernels, used below about 1,536 rows, do without; the backward never does.
    """
    if func.name() != "bitsandbytes::gemm_4bit":
        return ()
    outputs, inputs = args[2]
    return 4 * (outputs * inputs // args[4]), outputs * inputs * args[0].element_size()


def is_dequantization(func: Any) -> bool:
    return func.namespace == "bitsandbytes"


def scratch_buffers(func: Any, args: Any) -> tuple[int, ...]:
    """Bytes of each buffer that a CUDA kernel allocates inside one call.

    Flash attention's backward: fp32 sums of the query's gradient, one fp32 a row, and with
    grouped heads key and value gradients per query head (pytorch, flash_attn/flash_api.cpp,
    mha_bwd). The memory-efficient backward keeps the same fp32 sums.
    """
    packet = func._overloadpacket
    if packet in FLASH_BACKWARD[:1] or packet is EFFICIENT_BACKWARD:
        batch, heads, rows, width = args[1].shape
        rows = -(-rows // 128) * 128
        each = batch * heads * rows * 4
        sums = (each, each * -(-width // 32) * 32)
        grouped = args[2].shape[1] != heads
        return (*sums, *[args[1].numel() * args[1].element_size()] * (2 if grouped else 0))
    return dequantized(func, args)
