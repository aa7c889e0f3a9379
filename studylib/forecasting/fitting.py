"""Turn a forecast around: the longest sequence and the largest micro-batch that fit a card.

Also the stages beside training: scoring, and serving with a cache.

Not covered: paging of caches, several cards, quantized caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

from studylib.core.errors import StudyError
from studylib.forecasting.depth import trace_depth
from studylib.forecasting.forecast import ForecastSettings, forecast
from studylib.forecasting.job_forecast import find_config
from studylib.forecasting.peaks import find_peak
from studylib.modelling.skeleton import text_config
from studylib.planning.catalog import find_gpu
from studylib.planning.cuda_terms import NO_CUDA, CudaTerms
from studylib.schema.settings import Frozen

SEQUENCE_STEP = 256
MOST_ROWS = 256


class Largest(Frozen):
    """What fits a card: the longest row at one row a step, the most rows at the asked length.

    None where not even the smallest fits. `limited_by_positions`: memory would allow more.
    """

    gpu: str
    seq_len: int | None
    micro_batch: int | None
    limited_by_positions: bool


class StageForecast(Frozen):
    """The peak of a stage that does not train, in bytes, and its parts. allocated_bytes: what torch
    counts of it."""

    tokens: int
    peak_bytes: int
    allocated_bytes: int
    parts: dict[str, int]


def largest_that_fits(settings: ForecastSettings, gpu: str) -> Largest:
    """Search lengths in steps of 256 tokens and micro-batches one by one, by the least needed."""
    usable = find_gpu(gpu).usable_bytes
    positions = text_config(find_config(settings.model, True)).max_position_embeddings
    lengths = range(SEQUENCE_STEP, positions + 1, SEQUENCE_STEP)
    single = settings.model_copy(update={"micro_batch": 1})
    length = last_fitting(
        lengths, lambda n: least_bytes(single.model_copy(update={"seq_len": n})), usable
    )
    rows = last_fitting(
        range(1, MOST_ROWS + 1),
        lambda n: least_bytes(settings.model_copy(update={"micro_batch": n})),
        usable,
    )
    return Largest(
        gpu=gpu,
        seq_len=length,
        micro_batch=rows,
        limited_by_positions=length == max(lengths, default=None),
    )


@lru_cache(maxsize=512)
def least_bytes(settings: ForecastSettings) -> int:
    return forecast(settings).least_bytes


def last_fitting(values: range, need: Callable[[int], int], limit: int) -> int | None:
    """The last value whose need is within the limit; None if the first is not.

    Needs grow with the value, nearly in a straight line: each guess is where the line through the
    two nearest known points meets the limit, so that few need to be traced.
    """
    known = {i: need(values[i]) for i in (0, len(values) - 1) if len(values)}
    if not known or known[0] > limit:
        return None
    low, high = 0, len(values) - 1
    if known[high] <= limit:
        return values[high]
    while high - low > 1:
        slope = (known[high] - known[low]) / (high - low)
        guess = low + int((limit - known[low]) / slope)
        guess = min(max(guess, low + 1), high - 1)
        known[guess] = need(values[guess])
        low, high = (guess, high) if known[guess] <= limit else (low, guess)
    return values[low]


def forecast_evaluation(
    settings: ForecastSettings, tokens: int, cuda: CudaTerms | None = None
) -> StageForecast:
    """The peak of scoring a pass of so many tokens, of all of which the next one is asked.

    Not covered: models whose prompts cannot share a pass, which lm-eval reads in its own way.
    """
    return trace_stage(settings, "score", tokens, cuda)


def forecast_serving(
    settings: ForecastSettings, context_tokens: int = 2048, requests: int = 1,
    cuda: CudaTerms | None = None,
) -> StageForecast:  # fmt: skip
    """Weights with their adapter, and keys and values of every request's whole context in bf16."""
    if context_tokens < 1 or requests < 1:
        raise StudyError(f"{requests} × {context_tokens}", "both counts are 1 or more", "Raise it.")
    stage = trace_stage(settings, "serve", requests, cuda)
    cache = cache_bytes(text_config(find_config(settings.model, False)), context_tokens * requests)
    return StageForecast(
        tokens=context_tokens * requests,
        peak_bytes=stage.peak_bytes + cache,
        allocated_bytes=stage.allocated_bytes + cache,
        parts=stage.parts | {"kv_cache": cache},
    )


def cache_bytes(config: Any, tokens: int) -> int:
    """Keys and values of all layers: 2 · layers · key-value heads · width · 2 bytes a token."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * 2 * tokens


def trace_stage(
    settings: ForecastSettings,
    stage: Literal["score", "serve"],
    tokens: int,
    cuda: CudaTerms | None,
) -> StageForecast:
    config = find_config(settings.model, False)
    changes = {"gpus": 1, "micro_batch": 1, "seq_len": tokens, "fullest": None}
    alone = settings.model_copy(update=changes)
    step = alone.step.model_copy(update={"stage": stage, "masked": stage == "score"})
    cuda = NO_CUDA if settings.kernels == "cpu" else cuda or CudaTerms()
    peak = find_peak(trace_depth(config, step), alone, cuda)
    return StageForecast(
        tokens=tokens,
        peak_bytes=peak.peak_bytes,
        allocated_bytes=peak.allocated_bytes,
        parts=peak.parts,
    )
