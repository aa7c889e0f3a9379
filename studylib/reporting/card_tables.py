"""Tables of a card's study: peaks beside their forecasts, speed, energy, MMLU by two ways.

Not covered: which records stand in one table (studylib.reporting.card_section).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from studylib.core.metrics import METRICS, MISSING, byte_size, percent, plain_number, points
from studylib.reporting.blocks import NAMED, Number, Table, around, cell_of, figures, named, words
from studylib.reporting.cells import rows_of, run_path
from studylib.reporting.forecast_errors import MeasuredAndForecast
from studylib.reporting.study import Study
from studylib.schema.nvml_peak import nvml_bytes
from studylib.schema.records import Record
from studylib.schema.run_forecasts import RunForecast

WATT_HOUR = 3600  # joules
NOT_FORECAST = "not forecast"


def method_and_optimizer(record: Record) -> str:
    """Method, and its optimizer where it is not the usual one."""
    optimizer = record.run.optimizer
    other = "" if optimizer == "adamw" else f", {optimizer}"
    status = "" if record.complete else f" — {record.status}"
    return f"{record.run.method.label}{other}{status}"


def name_cells(study: Study, record: Record) -> tuple[str, str, str]:
    link = f"{run_path(study.link, record.run_id)}/record.json"
    return record.run.model, method_and_optimizer(record), f"[{rows_of(record)}]({link})"


def card_memory_table(study: Study, records: Iterable[Record]) -> Table:
    """Each run's peak by three counters, with what was forecast of it by each."""
    made = {f.record_digest: f for f in study.forecasts}
    header = (*NAMED, *figures("Rows × tokens", "Allocated ↓; forecast",
              "Reserved ↓; forecast", "NVML ↓; forecast"))  # fmt: skip
    rows = [
        (*name_cells(study, r), *peak_cells(r, made.get(r.digest) if r.complete else None))
        for r in records
        if r.train
    ]
    return Table(header, tuple(rows))


def peak_cells(record: Record, made: RunForecast | None) -> tuple[str, ...]:
    """Allocated, reserved and NVML's, each measured and forecast."""
    assert record.train is not None
    measure = record.train.measure
    seen = (measure.torch_peak_allocated_bytes, measure.torch_peak_reserved_bytes,
            nvml_bytes(record))  # fmt: skip
    if made is None:
        return tuple(bytes_beside_forecast(count, None) for count in seen)
    context = made.parts.get("cuda_context", 0)
    ours = (made.allocated_bytes, made.peak_bytes - context, made.card_bytes)
    return tuple(bytes_beside_forecast(*pair) for pair in zip(seen, ours, strict=True))


def bytes_beside_forecast(seen: int | None, ours: int | None) -> str:
    """Measured; forecast, with the forecast's error."""
    if seen is None:
        return MISSING
    if ours is None:
        return Number(f"{byte_size(seen)}; {NOT_FORECAST}", seen)
    off = points(MeasuredAndForecast(seen, ours).error)
    return Number(f"{byte_size(seen)}; {byte_size(ours)} ({off} %)", seen)


def card_speed_table(study: Study, records: Iterable[Record]) -> Table:
    """Each run's step, tokens, shares of the card's arithmetic, and energy where it was read."""
    header = (*NAMED, *figures("Rows × tokens", METRICS["clean_step_seconds"].header,
              METRICS["tokens_per_second"].header, "Of the datasheet's bf16 peak (%) ↑",
              "Of the peak measured here (%) ↑", "The same with what is computed again (%) ↑",
              "Energy (Wh a million tokens) ↓"))  # fmt: skip
    ceiling = study.card.study.card.bf16_peak if study.card else None
    rows = []
    for record in records:
        train = record.train
        if train is None or not record.complete:
            continue
        rate, flops = train.tokens_per_second, train.model_flops_per_token
        again = train.recomputed_flops_per_token
        every = None if flops is None or again is None else flops + again
        sheet = train.model_flops_utilisation
        rows.append((
            record.run.model, method_and_optimizer(record), rows_of(record),
            cell_of(train.clean_step_seconds, METRICS["clean_step_seconds"].number),
            cell_of(rate, METRICS["tokens_per_second"].number),
            cell_of(sheet, percent),
            share_cell(rate, flops, ceiling),
            share_cell(rate, every, ceiling),
            energy_cell(record),
        ))  # fmt: skip
    return Table(header, tuple(rows))


def plain_cell(value: float) -> Number:
    return Number(plain_number(value, 3), value)


def share_cell(rate: float | None, flops: float | None, ceiling: float | None) -> str:
    return cell_of(rate * flops / ceiling, percent) if rate and flops and ceiling else MISSING


def energy_cell(record: Record) -> str:
    """Of the whole training stage, its warm-up steps included, over all of its tokens; missing for
    a run that went on after a kill, which has spent more than its tokens tell."""
    assert record.train is not None
    joules, tokens = record.train.measure.energy_joules, record.train.tokens_seen
    if not joules or not tokens or record.environment.sessions > 1:
        return MISSING
    return plain_cell(1e6 * joules / tokens / WATT_HOUR)


# Columns of the peers' table that are worth a reader's minute; the file has the others.
PEER_COLUMNS = ("peer", "tokens/s", "by ", "allocated", "reserved", "card (NVML)", "padding",
                "did the same work")  # fmt: skip


def peers_table(content: Mapping[str, Any]) -> Table:
    """Other libraries beside ours, as benchmarks/peers.py reckons it; empty where it did not."""
    head, *rows = content.get("table") or [[]]
    keep = [i for i, name in enumerate(head) if name.startswith(PEER_COLUMNS)]
    names = [head[i] for i in keep]
    header = (*map(named, names[:1]), *figures(*names[1:-1]), *words(*names[1:][-1:]))
    return Table(header, tuple(tuple(row[i] for i in keep) for row in rows))


def mmlu_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """The usual way to score MMLU beside shared prefixes: the same questions, one row a dtype."""
    header = (named("Model"), *words("dtype"), *figures("Questions", "Usual way (s) ↓",
              "Ours (s) ↓", "Ratio ↑", "Answers changed ↓",
              "Largest difference of log-likelihoods ↓"))  # fmt: skip
    rows = [
        (str(one["model"]), str(one["dtype"]), cell_of(one["items"]),
         plain_cell(one["stock_model_seconds"]), plain_cell(one["our_model_seconds"]),
         around(f"{plain_cell(one['time_ratio'])} ×", plain_cell(one["time_ratio"])),
         cell_of(one["answers_changed"]),
         cell_of(one["max_abs_loglikelihood_difference"], "{:.2g}".format))
        for one in found
    ]  # fmt: skip
    return Table(header, tuple(rows))
