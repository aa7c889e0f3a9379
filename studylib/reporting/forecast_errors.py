"""Forecast against measured: each kind of run's peak, its parts and its step, side by side.

Not covered: making forecasts (studylib.forecasting.run_forecasts), published peaks
(studylib.reporting.forecast_tables).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from studylib.core.metrics import METRICS, MISSING, byte_size, plain_number, points
from studylib.reporting.blocks import (
    NAMED,
    Block,
    Number,
    Table,
    Text,
    cell_of,
    figures,
    titled,
    words,
)
from studylib.reporting.cells import SHARED, rows_of
from studylib.reporting.glossary import say
from studylib.reporting.study import Study
from studylib.schema.nvml_peak import nvml_bytes
from studylib.schema.records import Record
from studylib.schema.run_forecasts import RunForecast
from studylib.schema.shared_card import runs_on_card

PARTS = ("Weights", "Optimizer states", "Rest of the step", "Allocator's reserve", "CUDA context")


@dataclass(frozen=True)
class MeasuredAndForecast:
    """One quantity in bytes, measured and forecast."""

    measured: float
    forecast: float

    @property
    def error(self) -> float:
        """How far the forecast is off, as a share of what was measured."""
        return self.forecast / self.measured - 1


def set_beside(measured: float | None, forecast: float | None) -> MeasuredAndForecast | None:
    """None where one of the two was not told."""
    return MeasuredAndForecast(measured, forecast) if measured and forecast else None


@dataclass(frozen=True)
class RunBesideForecast:
    """A run beside its forecast. peak: None where it ran out of memory before it had one."""

    record: Record
    forecast: RunForecast
    counter: str
    peak: MeasuredAndForecast | None
    parts: dict[str, MeasuredAndForecast]

    @property
    def kind(self) -> tuple[object, ...]:
        """What runs share that have the same forecast: they stand in one row."""
        run = self.record.run
        return (self.record.environment.device, run.model, run.method.slug, pass_of(self.record),
                self.forecast.peak_bytes, self.counter, self.record.status)  # fmt: skip


def compare_runs(studies: Iterable[Study]) -> list[RunBesideForecast]:
    """Every record that has a forecast of its own, by study and run id."""
    found = []
    for study in studies:
        records = {record.run_id: record for record in study.records}
        for made in study.forecasts:
            record = records.get(made.run_id)
            if record is not None and record.digest == made.record_digest:
                found.append(compare_run(record, made))
    return found


def compare_run(record: Record, made: RunForecast) -> RunBesideForecast:
    if record.train is None or not record.complete:
        return RunBesideForecast(record, made, "", None, {})
    measure, alone = record.train.measure, record.run.gpus <= 1
    counters = {  # the first that was read speaks
        "NVML": (nvml_bytes(record), made.card_bytes),
        "torch allocated": (measure.torch_peak_allocated_bytes if alone else None,
                            made.allocated_bytes),
        "live tensors": (measure.live_tensor_peak_bytes, made.peak_bytes),
    }  # fmt: skip
    pairs = {name: pair for name, both in counters.items() if (pair := set_beside(*both))}
    counter, peak = next(iter(pairs.items()), ("", None))
    parts = compare_parts(record, made) if alone else {}
    return RunBesideForecast(record, made, counter, peak, parts)


def compare_parts(record: Record, made: RunForecast) -> dict[str, MeasuredAndForecast]:
    """The parts of a peak that can be told apart from outside, by name of PARTS.

    The rest of the step is the peak without weights and optimizer states: gradients, activations,
    the loss and what operators need for themselves.
    """
    train = record.train
    assert train is not None
    measure, states = train.measure, made.parts.get("optimizer_states", 0)
    process = measure.nvml_process_peak_bytes or less(nvml_bytes(record), made.paged_bytes)
    in_tensors = measure.torch_peak_allocated_bytes or measure.live_tensor_peak_bytes
    reserved, context = measure.torch_peak_reserved_bytes, made.parts.get("cuda_context", 0)
    pairs = {
        "Weights": (train.weights_bytes, made.weights_bytes),
        "Optimizer states": (train.optimizer_states_bytes, states),
        "Rest of the step": (
            less(in_tensors, train.weights_bytes, train.optimizer_states_bytes),
            made.allocated_bytes - made.weights_bytes - states,
        ),
        "Allocator's reserve": (
            less(reserved, measure.torch_peak_allocated_bytes),
            made.peak_bytes - context - made.allocated_bytes,
        ),
        "CUDA context": (less(process, reserved), context),
    }
    return {name: MeasuredAndForecast(seen, ours) for name, (seen, ours) in pairs.items() if seen}


def less(whole: int | None, *parts: int | None) -> int | None:
    """What is left of a figure without its parts; None where one of them was not read."""
    known = [part for part in parts if part is not None]
    return None if whole is None or len(known) < len(parts) else whole - sum(known)


def group(found: Iterable[RunBesideForecast]) -> list[list[RunBesideForecast]]:
    """Like runs together, in the order in which the first of each came."""
    groups: dict[tuple[object, ...], list[RunBesideForecast]] = {}
    for one in found:
        groups.setdefault(one.kind, []).append(one)
    return list(groups.values())


def pass_of(record: Record) -> str:
    """Rows × tokens of a pass, and how many passes make a step."""
    times = record.run.train.accumulation
    return f"{rows_of(record)}, {times} times" if times > 1 else rows_of(record)


def worst(pairs: Sequence[MeasuredAndForecast]) -> MeasuredAndForecast:
    return max(pairs, key=lambda pair: abs(pair.error))


# What the report shows ----------------------------------------------------------------------------


def peak_table(found: Sequence[RunBesideForecast]) -> Table:
    """One row for runs of the same forecast: the worst error of their peaks, and their step."""
    header = (*NAMED, *figures("Rows × tokens", "Runs"), *words("Counter"),
              *figures("Peak, measured", "Peak, forecast", "Worst error", "Step (s)",
              "Step, forecast (s)"))  # fmt: skip
    return Table(header, tuple(peak_row(like) for like in group(found)))


def peak_row(like: Sequence[RunBesideForecast]) -> tuple[str, ...]:
    first, run = like[0], like[0].record.run
    pairs = [one.peak for one in like if one.peak]
    peaks: tuple[str, ...] = (
        first.record.status,
        cell_of(first.forecast.peak_bytes, byte_size),
        "—",
    )
    if pairs:
        error = worst(pairs).error
        measured = statistics.median(pair.measured for pair in pairs)
        peaks = (cell_of(measured, byte_size), cell_of(pairs[0].forecast, byte_size),
                 Number(f"{points(error)} %", error))  # fmt: skip
    return (run.model, run.method.label, pass_of(first.record), str(len(like)),
            first.counter or "—", *peaks, *step_cells(like))  # fmt: skip


def step_cells(like: Sequence[RunBesideForecast]) -> tuple[str, str]:
    own = [one for one in like if runs_on_card(one.record) == 1]
    seconds = [s for one in own if (s := one.record.train and one.record.train.clean_step_seconds)]
    show = METRICS["clean_step_seconds"].number
    measured = MISSING if own else SHARED
    if seconds:
        measured = cell_of(statistics.median(seconds), show)
    span = like[0].forecast.step_seconds
    if span is None:
        return measured, "none"
    return measured, Number(f"{show(span.mid)} ({show(span.low)}–{show(span.high)})", span.mid)


def part_table(found: Sequence[RunBesideForecast]) -> Table:
    """Each part as it was measured (median of like runs) and the forecast's worst error."""
    names = [name for name in PARTS if any(name in one.parts for one in found)]
    rows = []
    for like in group(one for one in found if one.parts):
        run = like[0].record.run
        cells = []
        for name in names:
            pairs = [one.parts[name] for one in like if name in one.parts]
            if not pairs:
                cells.append(MISSING)
                continue
            measured = statistics.median(pair.measured for pair in pairs)
            text = f"{byte_size(measured)} ({points(worst(pairs).error)} %)"
            cells.append(Number(text, measured))
        rows.append((run.model, run.method.label, pass_of(like[0].record), *cells))
    return Table((*NAMED, *figures("Rows × tokens", *names)), tuple(rows))


def sentence(found: Sequence[RunBesideForecast]) -> str:
    """How far the forecasts are off, by counter, and what they leave out."""
    by_counter: dict[str, list[MeasuredAndForecast]] = {}
    for one in found:
        if one.peak:
            by_counter.setdefault(one.counter, []).append(one.peak)
    if not by_counter:
        return "No run of this study was set beside its forecast."
    parts = []
    for counter, pairs in by_counter.items():
        errors = [100 * abs(pair.error) for pair in pairs]
        mean, most = (plain_number(e, 2) for e in (statistics.fmean(errors), max(errors)))
        parts.append(f"{len(pairs)} trainings by {counter}: {mean} % on average, {most} % at worst")
    text = f"The forecast of the peak is off, over {'; '.join(parts)}."
    return text + (f" {say('forecast_without_card')}" if [*by_counter] == ["live tensors"] else "")


def forecast_errors_section(studies: Sequence[Study]) -> list[Block]:
    """The report's part, or nothing where no forecast was made of a run."""
    found = compare_runs(studies)
    if not found:
        return []
    told = f"{sentence(found)} Nothing of a run goes into its own forecast."
    if any(runs_on_card(one.record) > 1 for one in found):
        told += f" {SHARED.capitalize()}: other runs were on the card."
    parts = part_table(found)
    by_part = Text("By part, measured, with the forecast's worst error:")
    return [*titled("Forecast against measured", peak_table(found), told),
            *((by_part, parts) if parts.rows else ())]  # fmt: skip
