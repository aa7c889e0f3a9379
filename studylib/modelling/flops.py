"""Arithmetic that a training needs by the model and its data, whatever the device does.

A token's matrix multiplications: 2 operations a weight forward, 2 more for the gradient of the
input, and 2 more for the gradient of the weight where it is trained: 4N frozen, 6N trained.
Attention: 12 × width a token and earlier token that it attends to (scores and mixing, forward and
twice that backward), counted on the packed examples themselves, so that masked work counts for
nothing. What checkpointing computes again is kept apart: it is the device's work, not the model's.
Convention: Chowdhery et al., PaLM, 2022, appendix B, here split by what is trained.

Not covered: norms, activations, softmax and the optimizer (below 1 % of a large model's work).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn


class TokenFlops(NamedTuple):
    """Floating-point operations by token of training: the model's, and what is computed again."""

    model: float
    recomputed: float


def count_token_flops(model: nn.Module, lengths: Iterable[int], checkpointing: bool) -> TokenFlops:
    """Operations by token. lengths: tokens of every packed example."""
    frozen, trained = count_matrices(model)
    attention = 4 * attention_width(model) * mean_attended(lengths)
    forward = 2 * (frozen + trained) + attention
    return TokenFlops(
        model=4 * frozen + 6 * trained + 3 * attention,
        recomputed=forward if checkpointing else 0.0,
    )


def count_matrices(model: nn.Module) -> tuple[int, int]:
    """(frozen, trained) weights that tokens are multiplied by; a 4-bit weight counts in full.

    Embeddings are looked up and not multiplied; a tied output layer is. The untrained twin of a
    module that an adapter trains whole is not used.
    """
    frozen = trained = 0
    for name, module in model.named_modules():
        if "original_module" in name.split("."):
            continue
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            continue
        weight: Any = module.weight
        state = getattr(weight, "quant_state", None)
        count = weight.numel() if state is None else state.shape.numel()
        trained, frozen = (
            (trained + count, frozen) if weight.requires_grad else (trained, frozen + count)
        )
    return frozen, trained


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
