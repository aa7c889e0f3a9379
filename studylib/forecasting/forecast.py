"""Forecast memory, time and dollars of a training job without the device that it needs.

Memory comes from a traced step (studylib.forecasting.trace), not from a formula; what a trace
cannot see (the CUDA context, the allocator's leftovers) is added as terms that measured records can
replace.

Not covered: compiled models, offloading to the host, time that cards spend talking to each other.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from studylib.core.errors import StudyError
from studylib.forecasting.calibration import learn_terms
from studylib.forecasting.depth import trace_depth
from studylib.forecasting.forecast_text import format_forecast
from studylib.forecasting.job import Forecast, ForecastSettings, Job
from studylib.forecasting.optimizers import OPTIMIZERS
from studylib.forecasting.peaks import find_peak
from studylib.forecasting.trace import Trace
from studylib.modelling.skeleton import read_config, shape_config, text_config
from studylib.planning.alpaca_run import TOKENS
from studylib.planning.catalog import Gpu, Offer, find_gpu, load_gpus, load_prices, price_range
from studylib.planning.cuda_terms import NO_CUDA, CudaTerms, MeasuredPeaks, fit_cuda_terms
from studylib.planning.fit import judge_fit
from studylib.planning.roofline import Efficiency, calibrate, ideal_seconds, repeat_passes
from studylib.schema.ranges import Range, exactly
from studylib.schema.settings import ModelRef, nearest

__all__ = [
    "CudaTerms", "Efficiency", "Forecast", "ForecastSettings", "Job", "MeasuredPeaks", "Range",
    "calibrate", "fit_cuda_terms", "forecast", "format_forecast", "shape_config",
]  # fmt: skip

OWN_JOB = "yours"
ITEM_BYTES = {"fp32": 4, "bf16": 2}
TRACED_PASSES = 2  # forward and backward passes that a trace of an accumulated step holds at most


def forecast(
    settings: ForecastSettings,
    prices: list[Offer] | None = None,
    efficiency: Efficiency | None = None,
    cuda: CudaTerms | None = None,
    config: Any = None,
    tokens: int | None = None,
) -> Forecast:
    """Trace the job's step and say what it needs; StudyError for a job that cannot be.

    efficiency, cuda: None takes what runs on this card teach, if there are any. tokens: of the
    reader's own training, all epochs together, in place of the Alpaca-style run.
    config: a transformers configuration to use in place of the one that settings.model names.
    """
    started = time.perf_counter()
    gpu = find_gpu(settings.gpu)
    learned, terms = learn_terms(gpu.name)
    efficiency = efficiency or learned
    cuda = NO_CUDA if settings.kernels == "cpu" else cuda or terms
    config = config or read_config(ModelRef.parse(settings.model))
    check_job(settings, config)
    trace = trace_depth(config, settings.step)
    trace_seconds = time.perf_counter() - started
    whole = find_peak(trace, settings, cuda)
    peak = whole.on_card(gpu.usable_bytes)
    dtype: Literal["bf16", "fp32"] = "bf16" if settings.step.half else "fp32"
    passes = settings.accumulation / min(settings.accumulation, TRACED_PASSES)
    operators = repeat_passes(trace.operators, passes)
    seconds = exactly(ideal_seconds(operators, gpu, dtype)) / efficiency
    offers = load_prices() if prices is None else prices
    fits = {
        card.name: judge_fit(whole.peak_bytes, whole.least_bytes, card.usable_bytes, settings.gpus)
        for card in load_gpus().values()
    }
    asked = TOKENS if tokens is None else {OWN_JOB: tokens}
    runs = fits[gpu.name].may_run
    jobs = {
        form: price_job(count, settings, seconds, offers, gpu)
        for form, count in asked.items()
        if runs
    }
    disk = bytes_on_disk(trace, settings)
    return Forecast(
        settings=settings,
        peak_bytes=peak.peak_bytes,
        peak_allocated_bytes=peak.allocated_bytes,
        least_bytes=peak.least_bytes,
        peak_stage=peak.stage,
        parts=peak.parts,
        paged_bytes=trace.paged_bytes,
        trainable_params=trace.trainable_params,
        total_params=trace.total_params,
        adapter_bytes=disk["adapter"][settings.adapter] if "adapter" in disk else None,
        checkpoint_bytes=disk["checkpoint"][settings.weights],
        bytes_on_disk=disk,
        flops_per_step=sum(key[1] * count for key, count in operators.items()),
        moved_bytes_per_step=round(sum(key[2] * count for key, count in operators.items())),
        dequantized_bytes_per_step=round(trace.dequantized_bytes * passes),
        seconds_per_step=seconds,
        efficiency=efficiency,
        context_source=cuda.source,
        usd=next((job.usd for job in jobs.values()), None),
        jobs=jobs,
        fits=fits,
        smallest_gpu=next((name for name, f in fits.items() if f.word == "fits"), None),
        trace_seconds=trace_seconds,
    )


def check_job(settings: ForecastSettings, config: Any) -> None:
    """Refuse what cannot run: too short or long a row, unknown optimizer, impossible sharding."""
    if settings.seq_len < 2:
        rule = "a row of one token has no next one to learn"
        raise StudyError(f"seq_len = {settings.seq_len}", rule, "Use 2 or more.")
    positions = getattr(text_config(config), "max_position_embeddings", None)
    if positions and settings.seq_len > positions:
        raise StudyError(
            f"seq_len = {settings.seq_len}",
            f"{settings.model} has {positions} positions",
            f"Use at most {positions}.",
        )
    if settings.optimizer not in OPTIMIZERS:
        raise StudyError(settings.optimizer, "this is not an optimizer",
                         nearest(settings.optimizer, list(OPTIMIZERS)))  # fmt: skip
    if settings.sharding == "fsdp" and settings.gpus == 1:
        raise StudyError("sharding = fsdp", "one card cannot be sharded", "Use gpus of 2 or more.")
    if settings.sharding == "fsdp" and settings.optimizer.startswith("paged"):
        raise StudyError(settings.optimizer, "paged states cannot be sharded", "Use adamw-8bit.")


def bytes_on_disk(trace: Trace, settings: ForecastSettings) -> dict[str, dict[str, int]]:
    """Bytes of the tensors of a checkpoint and, with an adapter, of its file, in each dtype."""
    counts = {"checkpoint": trace.total_params}
    if settings.method_settings.kind.adapter:
        counts["adapter"] = trace.saved_params
    return {
        what: {dtype: count * size for dtype, size in ITEM_BYTES.items()}
        for what, count in counts.items()
    }


def price_job(
    tokens: int, settings: ForecastSettings, step: Range, offers: list[Offer], gpu: Gpu
) -> Job:
    """Steps, hours and dollars of training on so many tokens, in full rows."""
    rows_a_step = settings.micro_batch * settings.accumulation * settings.gpus
    steps = -(-tokens // (rows_a_step * settings.seq_len))
    hours, price = step * steps / 3600, price_range(gpu.name, offers)
    usd = hours * settings.gpus * price.usd if price else None
    return Job(tokens=tokens, steps=steps, hours=hours, usd=usd)
