"""What stays of a run's trained weights: the choice, and what a record says of it.

An adapter is a few megabytes and stays unless one says otherwise; a whole model is as large as its
base and stays where it is asked for.

Not covered: writing them (studylib.modelling.kept), published records, which carry no weights.
"""

from __future__ import annotations

from typing import Literal, get_args

from studylib.core.errors import StudyError
from studylib.schema.settings import Frozen, MethodSettings, ModelRef

Keep = Literal["adapters", "all", "none"]
Place = Literal["adapter", "model"]
# In a run's folder beside `adapter` (peft's own form) or `model` (a checkpoint): base and adapter
# as one checkpoint, made when it is asked for.
MERGED = "merged"


class KeptWeights(Frozen):
    """The weights in a run's folder, or why there are none.

    folder: adapter or model, in the run's own; null where nothing stayed. file_bytes: of all files
    in it. sha256: of its weights, configuration and tokenizer. base_model: what the adapter goes on
    or the model was trained from, as the study names it; base_revision: its commit on a hub.
    """

    base_model: str
    base_revision: str | None = None
    folder: Place | None = None
    file_bytes: int = 0
    sha256: str | None = None
    reason: str | None = None


def check_keep(word: str) -> Keep:
    """The choice that a user wrote."""
    for known in get_args(Keep):
        if word == known:
            return known
    raise StudyError(
        f"KEEP={word}", "which weights stay is adapters, all or none", "Write KEEP=adapters."
    )


def kept_folder(method: MethodSettings) -> Place:
    """The name of the folder in which a method's weights stay."""
    return "adapter" if method.kind.adapter else "model"


def why_not_kept(keep: Keep, model: ModelRef, method: MethodSettings) -> str | None:
    """Why a run's trained weights do not stay; None where they do."""
    if model.kind == "shape":
        return "the base has random weights"
    if keep == "none":
        return "KEEP=none"
    if keep == "adapters" and not method.kind.adapter:
        return "KEEP=adapters keeps no whole models; KEEP=all does"
    return None
