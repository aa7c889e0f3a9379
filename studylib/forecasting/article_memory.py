"""The settings at which the article's memory figures for a 13B model come true, found by search.

The article states 240, 56 and 18 GB without settings. Some of the jobs below meet a figure to
within 5 %; those that one would try first stand beside them.

Not covered: whether the article meant these settings. It does not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from studylib.forecasting.forecast import Forecast, ForecastSettings, forecast
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import ASSUMED
from studylib.schema.methods import ADAPTER, QUANTIZED, WHOLE

MODEL = "shape:llama-2-13b"
ROWS = {"micro_batch": 1, "seq_len": 2048}
MIXED = {"weights": "fp32", "master_weights": True}
EIGHT = {"gpus": 8, "sharding": "fsdp"}


@dataclass(frozen=True)
class Claimed:
    """A job in words, the article's figure in GB, and the settings that differ from defaults."""

    words: str
    article_gb: float
    changes: dict[str, Any]


CASES = (
    Claimed("full, bf16 throughout, checkpointing", 240, {"method": WHOLE, **ROWS}),
    Claimed("full, fp32 weights under autocast, checkpointing", 240,
         {"method": WHOLE, **ROWS, **MIXED}),
    Claimed("full, fp32 weights under autocast, no checkpointing, 8 × 512", 240,
         {"method": WHOLE, "micro_batch": 8, "seq_len": 512, "checkpointing": False, **MIXED}),
    Claimed("full, bf16 throughout, 8 cards with FSDP", 240, {"method": WHOLE, **ROWS, **EIGHT}),
    Claimed("full, fp32 shards, 8 cards with FSDP", 240,
         {"method": WHOLE, **ROWS, **MIXED, **EIGHT}),
    Claimed("LoRA, bf16 weights, checkpointing", 56, {"method": ADAPTER, **ROWS}),
    Claimed("LoRA, fp32 weights under autocast, checkpointing, 1 × 512", 56,
         {"method": ADAPTER, "seq_len": 512, **MIXED}),
    Claimed("LoRA, bf16 weights, no checkpointing, 5 × 512", 56,
         {"method": ADAPTER, "micro_batch": 5, "seq_len": 512, "checkpointing": False}),
    Claimed("QLoRA, checkpointing", 18, {"method": QUANTIZED, **ROWS}),
    Claimed("QLoRA, no checkpointing, 2 × 512", 18,
         {"method": QUANTIZED, "micro_batch": 2, "seq_len": 512, "checkpointing": False}),
    Claimed("QLoRA, checkpointing, 4 × 2048", 18,
         {"method": QUANTIZED, "micro_batch": 4, "seq_len": 2048}),
)  # fmt: skip


def forecast_case(case: Claimed, gpu: str | None = None) -> Forecast:
    """The forecast of one case; its peak times the number of cards is the article's kind of sum.

    gpu: on another card than the usual one.
    """
    changes = case.changes if gpu is None else {**case.changes, "gpu": gpu}
    settings = ForecastSettings(model=MODEL, **changes)
    return forecast(settings, efficiency=ASSUMED, cuda=CudaTerms())
