"""Arithmetic that a training needs by the model and its data, whatever the device does.

A token's matrix multiplications: 2 operations a weight forward, 2 more for the gradient of the
input, and 2 more for the gradient of the weight where it is trained: 4N frozen, 6N trained.
Attention: 12 × width a token and earlier token that it attends to (scores and mixing, forward and
twice that backward), counted on the packed examples themselves, so that masked work counts for
nothing. What checkpointing computes again is kept apart: it is the device's work, not the model's.
Convention: Chowdhery et al., PaLM, 2022, appendix B, here split by what is trained.

What a layer with an adapter computes is up to peft's code for it (DoRA multiplies its matrices once
a pass, VeRA by matrices that are no parameters), so such layers run once forward and backward, on
tensors without data, under torch's own counter of operations.

Not covered: element-wise work, of norms, activations, softmax, adapters that only scale, and the
optimizer (below 1 % of a large model's work).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from studylib.modelling.added import adapter_layers
from studylib.modelling.four_bit import count_weights, is_transposed
from studylib.schema.settings import TrainSettings


class TokenFlops(NamedTuple):
    """Floating-point operations by token of training: the model's, and what is computed again."""

    model: float
    recomputed: float


class Work(NamedTuple):
    """Matrix operations of some layers in one pass: by token, and however many tokens it has."""

    token_forward: float = 0.0
    token: float = 0.0
    pass_forward: float = 0.0
    whole_pass: float = 0.0

    def plus(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def count_token_flops(
    model: nn.Module, lengths: Iterable[int], recipe: TrainSettings
) -> TokenFlops:
    """Operations by token. lengths: tokens of every packed example."""
    work, pass_tokens = count_work(model), recipe.pass_tokens
    attention = 4 * attention_width(model) * mean_attended(lengths)
    forward = work.token_forward + work.pass_forward / pass_tokens + attention
    return TokenFlops(
        model=work.token + work.whole_pass / pass_tokens + 3 * attention,
        recomputed=forward if recipe.checkpointing else 0.0,
    )


def count_work(model: nn.Module) -> Work:
    """The operations of every layer that tokens go through, forward and in all.

    Embeddings are looked up and not multiplied; a tied output layer is. The untrained twin of a
    module that an adapter trains whole is not used.
    """
    total, seen = Work(), dict[tuple, Work]()
    inside = set[int]()
    for _, layer in adapter_layers(model):
        inside |= {id(module) for module in layer.modules()}
        key = describe_layer(layer)
        if key not in seen:
            seen[key] = count_adapted(layer)
        total = total.plus(seen[key])
    for name, module in model.named_modules():
        if "original_module" in name.split(".") or id(module) in inside or not is_linear(module):
            continue
        count, trained = count_weights(module.weight), module.weight.requires_grad
        total = total.plus(Work(2.0 * count, (6.0 if trained else 4.0) * count))
    return total


def is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def describe_layer(layer: Any) -> tuple:
    """What two layers with adapters share if they compute alike: classes, shapes, what trains."""
    return tuple(
        (type(module).__name__, name, tuple(count_shape(p)), p.requires_grad)
        for module in layer.modules()
        for name, p in [*module.named_parameters(recurse=False), *module.named_buffers()]
    )


def count_shape(tensor: Any) -> tuple[int, ...]:
    state = getattr(tensor, "quant_state", None)
    return tuple(tensor.shape if state is None else state.shape)


def count_adapted(layer: Any) -> Work:
    """The operations of one layer with an adapter, counted where it runs on the meta device.

    Two lengths tell what a token takes from what a pass takes. A layer of another kind (experts
    in one tensor) runs on no tokens of its own here: its matrices count as of one that is linear.
    """
    base = layer.get_base_layer()
    if not is_linear(base):
        work = Work()
        for module in layer.modules():
            if is_linear(module):
                own: Any = module.weight
                count = count_weights(own)
                work = work.plus(Work(2.0 * count, (6.0 if own.requires_grad else 4.0) * count))
        return work
    short, long = (run_on_meta(layer, base, tokens) for tokens in (1, 2))
    token_forward, token = (b - a for a, b in zip(short, long, strict=True))
    return Work(token_forward, token, short[0] - token_forward, short[1] - token)


def run_on_meta(layer: Any, base: Any, tokens: int) -> tuple[float, float]:
    """(forward, forward and backward) operations of a layer's pass over so many tokens."""
    outputs, inputs = count_shape(base.weight)
    if is_transposed(base):
        outputs, inputs = inputs, outputs
    plain = nn.Linear(inputs, outputs, bias=base.bias is not None, device="meta")
    copied: dict[int, Any] = {id(base): plain.requires_grad_(False)}
    for tensor in [*layer.parameters(), *layer.buffers()]:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype  # indices stay such
        empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
        is_weight = isinstance(tensor, nn.Parameter)
        copied[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
    twin = copy.deepcopy(layer, copied).train()
    rows = torch.empty(1, tokens, inputs, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = twin(rows)
        forward = counter.get_total_flops()
        out.sum().backward()
    return float(forward), float(counter.get_total_flops())


def attention_width(model: Any) -> int:
    """Layers × heads × numbers a head: what a token and one it attends to are multiplied over."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers * heads * size


def mean_attended(lengths: Iterable[int]) -> float:
    """Earlier tokens, itself among them, that a token attends to: mean over packed examples."""
    sizes = list(lengths)
    return sum(n * (n + 1) / 2 for n in sizes) / sum(sizes)
