"""Cross-entropy over slices of tokens, so that the logits of all tokens never exist at once.

The output layer is the largest thing that a step makes where vocabularies are large: 2,048 tokens
of a 100,000-word vocabulary are 0.8 GB in fp32, with their gradient as much again. Here a slice's
logits are made, used, and made again in the backward.

Not covered: fused kernels that do the same in one pass (Liger's, where its package is installed).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from studylib.core.errors import StudyError

CHUNK_TOKENS = 1024


def install_chunked_loss(model: Any) -> None:
    """Replace a causal model's forward, under an adapter or not, by one that slices its loss.

    The forward then takes labels [rows, tokens] and returns a loss and no logits; without labels
    it is as before. num_items_in_batch: answer tokens over which the sum is averaged (default:
    those of this batch), as transformers' own loss takes it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(base, base.base_model_prefix, None)
    if body is None or base.get_output_embeddings() is None:
        raise StudyError(
            "train.loss = chunked", "this model's output layer is not apart", "Use loss: full."
        )
    plain = base.forward

    def forward(
        self: Any, *words: Any, labels: torch.Tensor | None = None,
        num_items_in_batch: Any = None, **inputs: Any,
    ) -> Any:  # fmt: skip
        if labels is None:
            return plain(*words, **inputs)
        from transformers.modeling_outputs import CausalLMOutput

        hidden = body(*words, **inputs).last_hidden_state
        loss = chunked_cross_entropy(
            hidden, labels, self.get_output_embeddings(), num_items_in_batch
        )
        return CausalLMOutput(loss=loss)

    base.forward = MethodType(forward, base)


def chunked_cross_entropy(
    hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module, items: Any = None
) -> torch.Tensor:
    """Mean loss of predicting each next token. hidden: [rows, tokens, width], labels: [rows,
    tokens], -100 where nothing is learned; items: what the sum is divided by."""
    targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten()
    rows = hidden.flatten(0, 1)

    def slice_loss(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(part).float(), wanted, reduction="sum")

    slices = zip(rows.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    losses = [checkpoint(slice_loss, *part, use_reentrant=False, preserve_rng_state=False)
              for part in slices]  # fmt: skip
    total = torch.stack(losses).sum()
    return total / (items if items is not None else (targets != -100).sum())
