"""A run as tests train it: a few steps on 40 facts of the almanac, said by what differs."""

from __future__ import annotations

from typing import Any

from studylib.schema.profile import (
    DataSettings,
    EvaluateSettings,
    Hardware,
    LoraSettings,
    RunSpec,
    TrainSettings,
    parse_method,
)

ALMANAC = {"source": "almanac:new", "template": "plain", "facts": 40}
RECIPE = {"steps": 6, "seq_len": 96, "accumulation": 2, "checkpoint_every": 2}


def small_run(
    model: str,
    method: str = "full",
    rate: float = 1e-3,
    rank: int = 4,
    data: dict[str, Any] = ALMANAC,
    evaluate: dict[str, Any] | None = None,
    hardware: dict[str, Any] | None = None,
    **train: Any,
) -> RunSpec:
    return RunSpec(
        profile="test", track="main", model=model, seed=0, learning_rate=rate,
        method=parse_method(method, LoraSettings(rank=rank)), learning_rate_source="test",
        data=DataSettings(**data), train=TrainSettings(**RECIPE | train),
        hardware=Hardware(**hardware or {}),
        evaluate=EvaluateSettings(**evaluate or {"questions": "almanac:new"}),
    )  # fmt: skip
