"""Merging an adapter of a 4-bit base into plain weights, and the probe that shows it was done.

The plain model takes the 4-bit base's dequantized weights, then the adapter is added: peft's merge
on the 4-bit layers themselves would round the sum to 4 bits again. A few random rows through both
forms then tell a weight that was left out or laid down transposed (answers that differ by their own
spread) from rounding.

Not covered: loading either model (studylib.modelling.models).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from studylib.core.errors import StudyError
from studylib.modelling.four_bit import dequantize, four_bit_layers, is_transposed

PROBE_ROWS, PROBE_TOKENS = 4, 24
# Of the median token's difference, in standard deviations of the logits. In float32 a merge is the
# same sum in another order: 1e-6 was seen. In bf16, and in TF32, each product is rounded, and
# a router near a tie sends single tokens elsewhere. A wrong matrix in every layer gives about 1.
FLOAT32_LIMIT = 0.002
ROUNDED_LIMIT = 0.3


class MergeFailed(StudyError):
    """A merged form that cannot be made, or is not what was trained: the 4-bit form still is."""

    def __init__(self, value: object, rule: str):
        super().__init__(value, rule, "Serve the adapter on its 4-bit base.")


class Difference(NamedTuple):
    """How far two models' logits part, in standard deviations of the second one's.

    largest: of all logits; typical: the root mean square of one token's, at the median token.
    """

    largest: float
    typical: float


def overwrite_with_four_bit(plain: nn.Module, quantized: nn.Module) -> None:
    """Overwrite a plain model's linear layers with a 4-bit model's dequantized weights.

    quantized: with an adapter on it or without. MergeFailed where the two are not one model.
    """
    for path, layer in four_bit_layers(quantized):
        weight = dequantize(layer)
        try:
            target = plain.get_submodule(path)
        except AttributeError as error:
            raise MergeFailed(path, "the plain model has no such layer") from error
        if is_transposed(target):
            weight = weight.t()
        own: Any = target.weight
        if own.shape != weight.shape:
            sizes = " × ".join(map(str, weight.shape)), " × ".join(map(str, own.shape))
            raise MergeFailed(path, f"its 4-bit weights are {sizes[0]}, the plain {sizes[1]}")
        own.data.copy_(weight)


def check_merge(merged: nn.Module, quantized: nn.Module) -> None:
    """MergeFailed where the two answer differently by more than rounding explains.

    merged: not rounded yet; the check is sharp where it is float32.
    """
    limit, found = rounding_limit(merged), compare_logits(merged, quantized)
    if not found.typical <= limit:
        raise MergeFailed(
            "the merged model",
            f"its logits are {found.typical:.2g} standard deviations off those of the adapter on "
            f"its 4-bit base (up to {limit:g} is rounding)",
        )


def check_converted(kept: nn.Module, trained: torch.Tensor) -> None:
    """StudyError where an adapter that was converted for the original base answers differently, by
    more than rounding explains, from what was trained (its logits by `answer_probe`)."""
    limit, found = rounding_limit(kept), logits_apart(answer_probe(kept), trained)
    if not found.typical <= limit:
        raise StudyError(
            "the converted adapter",
            f"on the original base its logits are {found.typical:.2g} standard deviations off "
            f"those of what was trained (up to {limit:g} is rounding)",
            "This kind of adapter cannot be converted: take its row out, or train in fp32.",
        )


def rounding_limit(model: nn.Module) -> float:
    """What rounding explains, in the typical standard deviations of a Difference."""
    first = next(model.parameters())
    tf32 = first.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return ROUNDED_LIMIT if first.dtype != torch.float32 or tf32 else FLOAT32_LIMIT


def compare_logits(model: Any, reference: Any) -> Difference:
    """The difference on the probe's rows; both models go into evaluation mode."""
    return logits_apart(answer_probe(model), answer_probe(reference))


def logits_apart(ours: torch.Tensor, theirs: torch.Tensor) -> Difference:
    spread = theirs.std()
    apart = (ours - theirs) / spread
    typical = apart.square().mean(-1).sqrt().median()
    return Difference(largest=float(apart.abs().max()), typical=float(typical))


def answer_probe(model: Any) -> torch.Tensor:
    """Logits [rows, tokens, vocabulary] on a few seeded rows of random tokens."""
    config = model.config.get_text_config(decoder=True)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(config.vocab_size, (PROBE_ROWS, PROBE_TOKENS), generator=generator)
    return probe(model, rows)


def probe(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Logits in float32 on the host. rows: [rows, tokens] of token ids."""
    rows = rows.to(next(model.parameters()).device)
    with torch.no_grad():
        logits = model.eval()(
            input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False
        ).logits
    return logits.float().cpu()
