"""The forms of a run's weights: what the base and the adapter are, and the merged form's score.

A quantized run is scored on its 4-bit base and also merged into 16 bits, as people serve it. A
merge that cannot be made costs the run nothing but that second score.

Not covered: the merge itself (studylib.modelling.models), the stages (studylib.training.run).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from studylib.core.errors import first_line
from studylib.modelling.merging import MergeFailed, compare_logits
from studylib.modelling.methods import reach
from studylib.modelling.models import Loaded, load_model, merge_into_bf16
from studylib.schema.extent_words import WHOLE_SHARE, percent_below, spell_base
from studylib.schema.settings import BASE
from studylib.schema.spec import RunSpec
from studylib.scoring.evaluate import NotANumber
from studylib.scoring.score import Scored, score_model
from studylib.training.train import OUT_OF_MEMORY, is_out_of_memory

MERGED = "4-bit base and adapter merged into bf16"


def describe_weights(spec: RunSpec, loaded: Loaded, model: nn.Module) -> dict[str, Any]:
    """A load block's fields on how the base is stored and read and what the adapter reaches."""
    share = loaded.four_bit_share
    return {
        "weights_dtype": spec.weights_dtype
        if share is None
        else spell_base(share, spec.method.kind.base),
        "four_bit_share": share,
        "four_bit_error": loaded.four_bit_error,
        "reached": reach(model),
        "attention": loaded.attention,
        "attention_reason": loaded.attention_reason,
        "packing_reason": loaded.packing_reason,
        "origin": loaded.origin,
    }


def spell_scored(spec: RunSpec, loaded: Loaded) -> str:
    """Which weights an accuracy belongs to, in words."""
    base, share = f"{spec.train.dtype} weights", loaded.four_bit_share
    if share is not None:
        base = "4-bit base" if share >= WHOLE_SHARE else f"base {percent_below(share)} in 4 bits"
    return f"{base} with adapter" if spec.method.kind.adapter else base


def score_merged(
    spec: RunSpec, model: nn.Module, tokenizer: Any, trained: Path
) -> tuple[Scored | None, dict[str, Any]]:
    """(what the merged form gave, fields of the evaluate block); None where it is not possible.

    model: the adapter on its 4-bit base; trained: the adapter's folder.
    """
    try:
        plain = load_model(spec.model_ref, BASE, spec.train.dtype, spec.seed)
        merged = merge_into_bf16(plain.model, model, trained)
        difference = compare_logits(merged, model).largest
        asked = spec.evaluate.model_copy(update={"samples": 0})  # shown of the run's own form
        scored = spec.model_copy(update={"evaluate": asked})
        return score_model(merged, tokenizer, scored, MERGED), {"merge_difference": difference}
    except (MergeFailed, NotANumber) as error:
        reason = str(error)
    except (*OUT_OF_MEMORY, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory ({first_line(error)})"
    print(f"merged form not possible: {reason}")
    return None, {"reason": f"merged form not possible: {reason}"}
