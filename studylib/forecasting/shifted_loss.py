"""The loss as transformers had it before 4.46: all logits in fp32, and a copy of them in order.

Each row's last token predicts nothing, so that its logits were left out by copying the others. A
trace of today's loss has no such copy, and published runs of those versions do.

Not covered: training with it; it is for forecasts of such runs.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.nn import functional

from studylib.modelling.chunked_loss import causal_model


def install_shifted_loss(model: Any) -> None:
    """Replace a causal model's forward, under an adapter or not, by one with that loss."""
    base = causal_model(model)
    plain = base.forward

    def forward(self: Any, *words: Any, labels: torch.Tensor, **inputs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        logits = plain(*words, **inputs).logits.float()
        ahead = logits[..., :-1, :].contiguous()
        loss = functional.cross_entropy(ahead.flatten(0, 1), labels[..., 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    base.forward = MethodType(forward, base)
