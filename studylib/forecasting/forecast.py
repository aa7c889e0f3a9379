"""Forecast memory, time and dollars of a training job without the device that it needs.

Memory comes from a traced step (studylib.forecasting.trace), not from a formula; what a trace
cannot see (the CUDA context, the allocator's leftovers) is added as terms that measured records can
replace.

Not covered: compiled models, offloading to the host, time that cards spend talking to each other.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import Field

from studylib.core.errors import StudyError
from studylib.forecasting.calibration import learn_terms
from studylib.forecasting.depth import trace_depth
from studylib.forecasting.forecast_text import format_forecast
from studylib.forecasting.optimizers import OPTIMIZERS
from studylib.forecasting.peaks import find_peak, shown_bytes
from studylib.forecasting.step import StepSettings
from studylib.forecasting.trace import Trace
from studylib.modelling.skeleton import read_config, shape_config, text_config
from studylib.planning.alpaca_run import TOKENS
from studylib.planning.catalog import Gpu, Offer, find_gpu, load_gpus, load_prices, price_range
from studylib.planning.cuda_terms import NO_CUDA, CudaTerms, Measured, fit_cuda_terms
from studylib.planning.roofline import (
    Efficiency,
    Range,
    calibrate,
    forecast_seconds,
    ideal_seconds,
    repeat_passes,
)  # fmt: skip
from studylib.schema.methods import ADAPTER, METHODS, trained_names
from studylib.schema.settings import Frozen, MethodSettings, ModelRef, nearest

__all__ = [
    "CudaTerms", "Efficiency", "Fit", "Forecast", "ForecastSettings", "Job", "Measured", "Range",
    "calibrate", "fit_cuda_terms", "forecast", "format_forecast", "shape_config",
]  # fmt: skip

ITEM_BYTES = {"fp32": 4, "bf16": 2}
TRACED_PASSES = 2  # forward and backward passes that a trace of an accumulated step holds at most


class ForecastSettings(Frozen):
    """A training job: model, method, recipe and cards. `micro_batch` is per card.

    Rows are full and need no mask (flash attention), unless masked: a mask for every row keeps
    packed examples apart, as studylib.training.train has it with sdpa, or hides padding.
    autocast: a bf16 model multiplies under autocast, as Trainer's bf16=True does; without it an
    fp32 adapter computes in fp32. master_weights: with fp32 weights, autocast; with bf16 weights,
    fp32 copies in the optimizer. optimizer: left at adamw, a method's own where it has one. loss:
    shifted is transformers' own before 4.46. kernels: those of a CUDA card, or of a CPU (then
    without context and allocator).
    """

    model: str
    method: str = ADAPTER
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32, gt=0)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    adapter: Literal["fp32", "bf16"] = "fp32"
    micro_batch: int = Field(default=1, ge=1)
    seq_len: int = Field(default=2048, ge=2)
    masked: bool = False
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] = "sdpa"
    accumulation: int = Field(default=1, ge=1)
    weights: Literal["bf16", "fp32"] = "bf16"
    master_weights: bool = False
    autocast: bool = True
    optimizer: str = "adamw"
    checkpointing: bool = True
    loss: Literal["full", "shifted", "chunked"] = "full"
    gpus: int = Field(default=1, ge=1)
    sharding: Literal["none", "fsdp"] = "none"
    gpu: str = "a100-80gb"
    kernels: Literal["cuda", "cpu"] = "cuda"

    @property
    def method_settings(self) -> MethodSettings:
        if self.method not in trained_names():
            raise StudyError(
                self.method, "this method cannot be trained", nearest(self.method, trained_names())
            )
        row, numbers = METHODS[self.method], self.model_dump(include={"rank", "alpha", "targets"})
        taken = {name: value for name, value in numbers.items() if name in row.takes}
        if row.adapter:
            taken["adapter_dtype"] = self.adapter
        return MethodSettings(name=self.method, **taken)

    @property
    def step(self) -> StepSettings:
        shared = set(StepSettings.model_fields) & set(ForecastSettings.model_fields) - {"method"}
        numbers: dict[str, Any] = {name: getattr(self, name) for name in shared}
        if self.optimizer == type(self).model_fields["optimizer"].default:  # not asked for
            numbers["optimizer"] = METHODS[self.method].optimizer or self.optimizer
        if self.fp32_shards:
            numbers |= {"weights": "bf16", "master_weights": False, "autocast": True}
        return StepSettings(method=self.method_settings, **numbers)

    @property
    def fp32_shards(self) -> bool:
        """Whether FSDP keeps fp32 shards and gathers bf16 layers (its mixed precision)."""
        return self.sharding == "fsdp" and self.weights == "fp32" and self.master_weights


class Fit(Frozen):
    """Whether a job fits a card, and the bytes that are left (negative: missing)."""

    fits: bool
    headroom_bytes: int


class Job(Frozen):
    """The standard Alpaca-style run on the chosen cards; usd is null where nobody offers them."""

    tokens: int
    steps: int
    hours: Range
    usd: Range | None


class Forecast(Frozen):
    """What a job needs on each card, and what it costs. Bytes are one card's at its peak.

    peak_bytes is what the driver shows, on a card with room where settings.gpu has none;
    peak_allocated_bytes is what torch.cuda.max_memory_allocated shows; least_bytes is the least
    with which the steps still run, the allocator giving cached memory back, and what must fit.
    bytes_on_disk: adapter and checkpoint by dtype.
    usd is that of the packed standard job: (low) fastest at the cheapest offer, (mid) expected at
    the median one, (high) slowest at the dearest.
    """

    settings: ForecastSettings
    peak_bytes: int
    peak_allocated_bytes: int
    least_bytes: int
    peak_stage: str
    parts: dict[str, int]
    paged_bytes: int
    trainable_params: int
    total_params: int
    adapter_bytes: int | None
    checkpoint_bytes: int
    bytes_on_disk: dict[str, dict[str, int]]
    flops_per_step: float
    moved_bytes_per_step: int
    dequantized_bytes_per_step: int
    seconds_per_step: Range
    efficiency: Efficiency
    usd: Range | None
    jobs: dict[str, Job]
    fits: dict[str, Fit]
    smallest_gpu: str | None
    trace_seconds: float

    def shown_bytes(self, usable_bytes: int) -> int:
        """What the driver would show where so much is usable; the least needed if that is more."""
        return shown_bytes(self.peak_bytes, self.least_bytes, usable_bytes)


def forecast(
    settings: ForecastSettings,
    prices: list[Offer] | None = None,
    efficiency: Efficiency | None = None,
    cuda: CudaTerms | None = None,
    config: Any = None,
) -> Forecast:
    """Trace the job's step and say what it needs; StudyError for a job that cannot be.

    efficiency, cuda: None takes what the reference's runs on this card teach, if it has any.
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
    peak = find_peak(trace, settings, cuda).on_card(gpu.usable_bytes)
    dtype: Literal["bf16", "fp32"] = "bf16" if settings.step.half else "fp32"
    passes = settings.accumulation / min(settings.accumulation, TRACED_PASSES)
    operators = repeat_passes(trace.operators, passes)
    seconds = forecast_seconds(ideal_seconds(operators, gpu, dtype), efficiency)
    offers = load_prices() if prices is None else prices
    jobs = {form: standard_job(form, settings, seconds, offers, gpu) for form in TOKENS}
    fits = {card.name: fit(peak.least_bytes, card) for card in load_gpus().values()}
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
        usd=jobs["packed"].usd,
        jobs=jobs,
        fits=fits,
        smallest_gpu=next((name for name, f in fits.items() if f.fits), None),
        trace_seconds=trace_seconds,
    )


def check_job(settings: ForecastSettings, config: Any) -> None:
    """Refuse what cannot run: too long a sequence, unknown optimizer, impossible sharding."""
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


def fit(least_bytes: int, card: Gpu) -> Fit:
    headroom = card.usable_bytes - least_bytes
    return Fit(fits=headroom >= 0, headroom_bytes=headroom)


def bytes_on_disk(trace: Trace, settings: ForecastSettings) -> dict[str, dict[str, int]]:
    """Bytes of the tensors of a checkpoint and, with an adapter, of its file, in each dtype."""
    counts = {"checkpoint": trace.total_params}
    if settings.method_settings.kind.adapter:
        counts["adapter"] = trace.saved_params
    return {
        what: {dtype: count * size for dtype, size in ITEM_BYTES.items()}
        for what, count in counts.items()
    }


def standard_job(
    form: str, settings: ForecastSettings, step: Range, offers: list[Offer], gpu: Gpu
) -> Job:
    """Steps, hours and dollars of the standard run, its examples packed or padded to 512."""
    tokens = TOKENS[form]
    rows_a_step = settings.micro_batch * settings.accumulation * settings.gpus
    steps = -(-tokens // (rows_a_step * settings.seq_len))
    hours = {name: steps * seconds / 3600 for name, seconds in step.model_dump().items()}
    price = price_range(gpu.name, offers)
    usd = None
    if price is not None:
        usd = Range(
            low=hours["low"] * settings.gpus * price.cheapest,
            mid=hours["mid"] * settings.gpus * price.median,
            high=hours["high"] * settings.gpus * price.dearest,
        )
    return Job(tokens=tokens, steps=steps, hours=Range(**hours), usd=usd)
