"""The recipe that a study on a card has where nobody says another, and its forecast's settings.

bf16 with fp32 weights for what is trained whole, the loss in pieces, TF32, checkpointing, one full
row of 2,048 tokens a pass, or as many rows of fewer as make up as many tokens an update where the
model has fewer positions. The recipe is the same for all methods, so that a forecast of one of them
is that of a study of several. The profile `custom` on a card, `study forecast`, advice and the
notebooks all take it from here.

Not covered: the recipes of shipped profiles, which state theirs, and training without a card.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from studylib.core.errors import StudyError
from studylib.forecasting.job import ForecastSettings
from studylib.forecasting.job_forecast import recipe_settings, rented_machine
from studylib.forecasting.kept_forecasts import config_file
from studylib.planning.catalog import find_shape, shape_of_hub
from studylib.schema.methods import trained_names
from studylib.schema.settings import (
    LoraSettings,
    ModelRef,
    TrainSettings,
    nearest,
    parse_method,
)  # fmt: skip

UPDATE_TOKENS = 2048
ON_CARD: dict[str, Any] = {
    "dtype": "bf16",
    "master_weights": True,
    "loss": "chunked",
    "tf32": True,
    "checkpointing": True,
    "micro_batch": 1,
}
KEYS = (*ON_CARD, "seq_len", "accumulation")


def usual_recipe(model: str) -> dict[str, Any]:
    """The keys of a recipe that suit a card, for a model of whose positions rows are no longer."""
    seq_len = min(UPDATE_TOKENS, configured_positions(model) or UPDATE_TOKENS)
    return ON_CARD | {"seq_len": seq_len, "accumulation": max(1, UPDATE_TOKENS // seq_len)}


def usual_settings(
    model: str, method: str, gpu: str = "a100-80gb", gpus: int = 1, **stated: Any
) -> ForecastSettings:
    """The job of one method by the usual recipe; on several cards sharded with FSDP.

    stated: settings of the forecast that the reader says otherwise. StudyError: no such method.
    """
    asked = parse_method(method, LoraSettings())
    if not asked.kind.trains:
        raise StudyError(method, "this method cannot be trained", nearest(method, trained_names()))
    recipe = TrainSettings(steps=1, **usual_recipe(model))
    sharding: Literal["none", "fsdp"] = "fsdp" if gpus > 1 else "none"
    made = recipe_settings(model, asked, recipe, gpus, sharding, rented_machine(gpu, gpus))
    return ForecastSettings.model_validate(made.model_dump() | stated)


def configured_positions(model: str) -> int | None:
    """As its configuration has them; None where that is not at hand or does not say."""
    ref = ModelRef.parse(model)
    shape = find_shape(ref.name) if ref.kind == "shape" else None
    shape = shape or (shape_of_hub(ref.name) if ref.kind == "hub" else None)
    if shape is not None:
        return shape.max_position_embeddings
    path = config_file(ref)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # said where the model is read
        return None
    found = content.get("max_position_embeddings") or content.get("n_positions")
    found = found or (content.get("text_config") or {}).get("max_position_embeddings")
    return found if isinstance(found, int) else None
