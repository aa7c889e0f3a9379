"""What runs took, over seeds: memory by stage, time, energy, cost, bytes on disk.

A figure is the median over seeds with its range; a peak is the largest. What was not measured is
left out, so that whoever shows it has to say so; so are the seconds of runs that shared a card.

Cards are priced by the catalog's offers (cheapest, median, dearest). Where no offer names the
device, the profile's `usd_per_hour` for the whole machine counts, shared by the runs that it
carried at the same time. Without either there is no price, and a word says so.

Not covered: accuracy (studylib.reporting.summary), the price of storage and network, taxes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from studylib.core.measure import StageMeasure
from studylib.planning.catalog import Offer, load_prices, match_gpu, price_range
from studylib.schema.records import Record
from studylib.schema.shared_card import runs_on_card

STAGES = ("load", "train", "evaluate", "serve")
MEMORY = {
    "nvml_peak_bytes": "NVML, device",
    "nvml_process_peak_bytes": "NVML, process",
    "torch_peak_reserved_bytes": "torch reserved",
    "torch_peak_allocated_bytes": "torch allocated",
    "live_tensor_peak_bytes": "live tensors",
    "host_peak_bytes": "host memory",
}
# Figures of a training's steps, as records name them.
STEP_FIGURES = ("clean_step_seconds", "tokens_per_second", "model_flops_per_token",
                "recomputed_flops_per_token", "model_flops_utilisation", "optimizer_share",
                "data_share")  # fmt: skip
COUNTED_FIGURES = ("model_flops_per_token", "recomputed_flops_per_token")
# What a clock says, or what follows from it: of a shared card nothing is told.
TIMED = {*STEP_FIGURES, "train_seconds", "end_to_end_seconds", "energy_watt_hours", "cost_usd"}
TIMED -= {*COUNTED_FIGURES}


@dataclass(frozen=True)
class Spread:
    """A resource over seeds: `value` is the median (a peak: the largest)."""

    value: float
    low: float
    high: float
    runs: int


def spread_of(values: Iterable[float | None], peak: bool = False) -> Spread | None:
    known = sorted(v for v in values if v is not None)
    if not known:
        return None
    value = known[-1] if peak else statistics.median(known)
    return Spread(float(value), float(known[0]), float(known[-1]), len(known))


def spread_figures(records: list[Record], total_params: int | None) -> dict[str, Spread]:
    """Resources that are not memory, by metric key; what was not measured is left out."""
    found: dict[str, Spread | None] = {}
    own = [r for r in records if runs_on_card(r) == 1]
    trained = [r for r in own if r.train]
    found["trainable_params"] = spread_of(r.load.trainable_params for r in records if r.load)
    if total_params:
        found["trainable_share"] = spread_of(
            r.load.trainable_params / total_params for r in records if r.load
        )
    for key in STEP_FIGURES:
        among = records if key in COUNTED_FIGURES else own
        found[key] = spread_of(getattr(r.train, key) for r in among if r.train)
    found["train_seconds"] = spread_of(train_seconds(r) for r in trained)
    found["end_to_end_seconds"] = spread_of(wall_seconds(r) for r in own)
    found["energy_watt_hours"] = spread_of(watt_hours(r) for r in trained)
    found["cost_usd"] = spread_of(
        dollars(seconds, price.median)
        for r in trained
        if (seconds := train_seconds(r)) is not None and (price := price_of(r)) is not None
    )
    found["variant_bytes"] = spread_of(r.serve.variant_bytes for r in records if r.serve)
    return {key: value for key, value in found.items() if value is not None}


def spread_memory(records: list[Record]) -> dict[tuple[str, str], Spread]:
    """Peaks by (measure, stage), the largest over seeds; a run out of memory counts as reached."""
    found = {}
    for kind in MEMORY:
        for stage in STAGES:
            measures = [stage_measures(r).get(stage) for r in records]
            peak = spread_of((getattr(m, kind) for m in measures if m), peak=True)
            if peak is not None:
                found[kind, stage] = peak
    return found


def stage_measures(record: Record) -> dict[str, StageMeasure]:
    blocks = {stage: getattr(record, stage) for stage in STAGES}
    return {stage: block.measure for stage, block in blocks.items() if block is not None}


def train_seconds(record: Record) -> float | None:
    """Wall clock of the load and train stages, None where nothing was trained."""
    if record.train is None or record.load is None:
        return None
    return record.load.measure.wall_seconds + record.train.measure.wall_seconds


def watt_hours(record: Record) -> float | None:
    if record.train is None or record.load is None:
        return None
    load, train = record.load.measure.energy_joules, record.train.measure.energy_joules
    return None if load is None or train is None else (load + train) / 3600


def wall_seconds(record: Record) -> float:
    return sum(measure.wall_seconds for measure in stage_measures(record).values())


@dataclass(frozen=True)
class Price:
    """Dollars for an hour of what one run occupied, and where the figure comes from."""

    cheapest: float
    median: float
    dearest: float
    note: str

    @property
    def single(self) -> bool:
        return self.cheapest == self.dearest


@lru_cache(maxsize=1)
def shipped_offers() -> tuple[Offer, ...]:
    return tuple(load_prices())


def price_of(record: Record) -> Price | None:
    """What an hour of this run cost, or None where nothing states a price."""
    hardware = record.run.hardware
    if runs_on_card(record) > 1:
        return None  # a share of a card has no price
    gpu = match_gpu(record.environment.device)
    prices = price_range(gpu.name, shipped_offers()) if gpu else None
    if gpu and prices:
        cards = max(record.run.gpus, 1)
        dated = sorted({offer.as_of for offer in prices.offers})
        return Price(
            prices.cheapest * cards,
            prices.median * cards,
            prices.dearest * cards,
            f"{cards} × {gpu.label}: {len(prices.offers)} offers, ${prices.cheapest:.2f} to "
            f"${prices.dearest:.2f} an hour, median ${prices.median:.2f} ({', '.join(dated)})",
        )
    if hardware.usd_per_hour is None:
        return None
    sharing = 1 if hardware.gpus else max(record.environment.concurrent_runs, 1)
    shared = f", shared by {sharing} runs at a time" if sharing > 1 else ""
    note = f" ({hardware.usd_note})" if hardware.usd_note else ""
    hour = hardware.usd_per_hour / sharing
    return Price(hour, hour, hour, f"${hardware.usd_per_hour:g} a machine hour{note}{shared}")


def dollars(seconds: float, hourly: float) -> float:
    return seconds / 3600 * hourly
