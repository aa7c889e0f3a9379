"""The loss that every method and architecture trains by: the mean over a step's answer tokens.

Most models of transformers give it themselves when they are told how many answer tokens the step
has. Some (decoders cut out of encoder-decoder models) average over each batch instead, or compare a
token with its own logits and not with those before it, or add a loss of their router's. So a
model's own loss is tried on one short row, and one that is another is not used.

Not covered: the same loss without all logits at once (studylib.modelling.chunked_loss).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from studylib.modelling.packing import as_trained, draw_ids

TRIED_TOKENS = 24
TOLD = 1000  # answer tokens: far more than the row has, so that what is added to them shows
SAME = 1e-4  # relative; both sums are taken over the same logits in fp32


@dataclass(frozen=True)
class LossTrial:
    """What a whole model showed of its loss.

    own: it is the mean over a step's answer tokens. head_alone: the output layer alone gives it
    over slices (None: not tried).
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
    """Whether a model's own loss is the mean over as many answer tokens as it is told, and no more.

    What a model adds, such as its router's loss, is a mean of each micro-batch: Trainer divides it
    by nothing, and it would weigh as much more as there are micro-batches in an update.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with as_trained(base):
        ids = draw_ids(base, TRIED_TOKENS)
        labels = ids.clone()
        labels[:, : TRIED_TOKENS // 2] = -100
        items = torch.tensor(TOLD, device=ids.device)
        own = base(input_ids=ids, labels=labels, num_items_in_batch=items).loss
        logits = base(input_ids=ids).logits
        wanted = token_mean(logits, labels, items)
    if not torch.isfinite(logits).all():
        return True
    return bool((own - wanted).abs() <= SAME * wanted)
