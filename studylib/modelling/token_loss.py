"""The loss that every method and architecture trains by: the mean over a step's answer tokens.

Most models of transformers give it themselves when they are told how many answer tokens the step
has. Some (decoders cut out of encoder-decoder models) average over each batch instead, or compare a
token with its own logits and not with those before it. So a model's own loss is tried on one short
row, and one that is another is not used.

Not covered: the same loss without all logits at once (studylib.modelling.chunked_loss).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from studylib.modelling.packing import as_trained, draw_ids

TRIED_TOKENS = 24
SAME = 1e-4  # relative; both sums are taken over the same logits in fp32


@dataclass(frozen=True)
class LossTrial:
    """What a whole model showed of its loss.

    own: it is the mean over a step's answer tokens, whatever the model adds to it. head_alone: the
    output layer alone gives it over slices (None: not tried).
    """

    own: bool
    head_alone: bool | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def token_mean(logits: torch.Tensor, labels: torch.Tensor, items: Any) -> torch.Tensor:
    """Sum over labels [rows, tokens] of -log p of the next token, / items; -100 is left out."""
    wanted, given = labels[:, 1:].flatten(), logits[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(given, wanted, ignore_index=-100, reduction="sum") / items


def loss_of_outputs(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> Any:
    """The same of a model's outputs, as transformers' Trainer calls it."""
    if num_items_in_batch is None:
        num_items_in_batch = (labels[:, 1:] != -100).sum()
    return token_mean(outputs.logits, labels, num_items_in_batch)


def gives_token_mean(model: Any) -> bool:
    """Whether a model's own loss is the mean over as many answer tokens as it is told.

    Two counts tell it from what a model adds, such as a router's loss, which is its own affair.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with as_trained(base):
        ids = draw_ids(base, TRIED_TOKENS)
        labels = ids.clone()
        labels[:, : TRIED_TOKENS // 2] = -100
        items = [torch.tensor(count, device=ids.device) for count in (TRIED_TOKENS, 7)]
        own = [base(input_ids=ids, labels=labels, num_items_in_batch=n).loss for n in items]
        logits = base(input_ids=ids).logits
        wanted = [token_mean(logits, labels, n) for n in items]
    if not torch.isfinite(logits).all():
        return True
    off = (own[0] - own[1]) - (wanted[0] - wanted[1])
    return bool(off.abs() <= SAME * (wanted[0] - wanted[1]).abs())
