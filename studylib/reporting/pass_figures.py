"""Our figures for the claims that depend on the rows and tokens of a pass: peaks and dollars.

Not covered: which pass a claim is judged by (studylib.reporting.passes), other figures
(studylib.reporting.claim_sources).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from studylib.core.metrics import plain_number, points
from studylib.core.verdicts import Measured
from studylib.planning.alpaca_run import TOKENS
from studylib.reporting.cells import rows_of
from studylib.reporting.claim_sources import ClaimFigure, measured_on, with_unit
from studylib.reporting.passes import Cell, why_judged
from studylib.reporting.resources import Spread, spread_of
from studylib.reporting.summary import Comparison, Row
from studylib.schema.nvml_peak import nvml_bytes
from studylib.schema.records import Record

Measure = Callable[[Comparison, Row], ClaimFigure | None]
TORCH_ALONE = "torch's allocator alone (reserved; NVML told nothing)"


def measure_train_peak(comparison: Comparison, row: Row) -> ClaimFigure | None:
    """The peak of training in GB, all cards together: of NVML, which is what one rents; of torch's
    allocator, and named so, where NVML told nothing."""
    found = ((nvml_peak(row), "NVML"),
             (row.memory.get(("torch_peak_reserved_bytes", "train")), TORCH_ALONE))  # fmt: skip
    peak, words = next(((p, words) for p, words in found if p is not None), (None, ""))
    if peak is None:
        return None
    value, low, high = (b / 1e9 for b in (peak.value, peak.low, peak.high))
    first = row.records[0]
    switches = first.fingerprint.get("recipe.switches", "")
    ours = f"{row.label}, {rows_of(first)} tokens at once ({switches}): "
    if not row.complete:
        ours += f"{row.status}, {plain_number(value, 3)} GB reached"
        return ClaimFigure(
            ours, measured_on(comparison), None, "the run needs more than was reached"
        )
    ours += f"{plain_number(value, 3)} GB by {words}"
    if words == "NVML" and (made := forecast_of(comparison, first)):
        ours += f" (forecast without it: {plain_number(made / 1e9, 3)} GB, {off(made, peak.value)})"
    return ClaimFigure(ours, measured_on(comparison), Measured(value, "GB", low, high))


def nvml_peak(row: Row) -> Spread | None:
    """What NVML showed over the seeds, as every other table of a card has it; of several cards
    their sum."""
    if any(record.run.gpus > 1 for record in row.records):
        return row.memory.get(("nvml_peak_bytes", "train"))
    return spread_of((nvml_bytes(record) for record in row.records), peak=True)


def forecast_of(comparison: Comparison, record: Record) -> int | None:
    """The peak that was forecast of this very record, on one card, in bytes."""
    made = (f for f in comparison.study.forecasts if f.record_digest == record.digest)
    return next((f.card_bytes for f in made), None) if record.run.gpus <= 1 else None


def off(made: float, measured: float) -> str:
    """How far a forecast is off, in per cent of what was measured."""
    return f"{points(made / measured - 1)} %"


def measure_run_dollars(comparison: Comparison, row: Row) -> ClaimFigure | None:
    """Dollars of the article's Alpaca-style run at the measured tokens/s and listed prices."""
    speed, price = row.figures.get("tokens_per_second"), row.price
    if speed is None or price is None or price.single:
        return None
    hours = TOKENS["packed"] / speed.value / 3600
    low, mid, high = (hours * hour for hour in (price.cheapest, price.median, price.dearest))
    ours = (
        f"{row.label}: {plain_number(TOKENS['packed'] / 1e6, 3)}M tokens at "
        f"{plain_number(speed.value, 3)} tokens/s, {plain_number(hours, 3)} h: "
        f"{with_unit(mid, '$')} ({plain_number(low, 3)} to {plain_number(high, 3)}); {price.note}"
    )
    return ClaimFigure(ours, measured_on(comparison), Measured(mid, "$", low, high))


def measure_passes(measure: Measure, cells: Sequence[Cell]) -> ClaimFigure | None:
    """The figure of one job at the pass to judge by (the first), the others' beside it."""
    figures = [(row, figure) for cell in cells if (figure := measure(*cell)) for row in [cell[1]]]
    if not figures:
        return None
    row, judged = figures[0]
    if len(figures) == 1:
        return judged
    known = [figure.measured for _, figure in figures if figure.measured]
    words = [
        f"{rows_of(other.records[0])} "
        + (with_unit(f.measured.value, f.measured.unit) if f.measured else other.status)
        for other, f in figures[1:]
    ]
    ours = f"{judged.ours}; {why_judged(row)}; at the others tried {', '.join(words)}"
    if len(known) > 1:
        values, unit = [measured.value for measured in known], known[0].unit
        ours += f": {with_unit(min(values), unit)} to {with_unit(max(values), unit)} in all"
    return replace(judged, ours=ours)


BY_PASS: dict[str, Measure] = {"train_peak": measure_train_peak, "run_dollars": measure_run_dollars}
