"""One cell of a table: a figure with its interval, or a word where there is none.

Words are the same everywhere: not measured, not known, not trained, not run, out of memory, not a
number, no price stated, shared (the card, so that no clock speaks of the run). So are the notes on
what a method's name does not say: a base hardly in 4 bits, layers without an adapter, a merged form
that could not be made.

Not covered: which cells make a table (studylib.reporting.tables).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

from studylib.core.metrics import METRICS, MISSING, decimals, percent, plain_number, points
from studylib.core.stats import Estimate
from studylib.reporting.blocks import Number, cell_of
from studylib.reporting.measured import RIGHT_ANSWERS
from studylib.reporting.resources import TIMED, Spread, dollars
from studylib.reporting.summary import Comparison, Row
from studylib.schema.extent_words import WHOLE_SHARE, percent_below, tell_base, tell_reach
from studylib.schema.measures import Measure
from studylib.schema.methods import UNTRAINED, WHOLE
from studylib.schema.records import Record

DECIMALS = 3  # of nats and bits
NOT_KNOWN = "not known"
NOT_RUN = "not run"
NOT_TRAINED = "not trained"
SHARED = "shared"


def spread_cell(key: str, spread: Spread | None) -> str:
    """Median (or peak) with the range over seeds where it shows."""
    metric = METRICS[key]
    if spread is None:
        return MISSING
    value, low, high = (metric.number(x) for x in (spread.value, spread.low, spread.high))
    return Number(value if low == high else f"{value} ({low}–{high})", spread.value)


def accuracy_cell(row: Row) -> str:
    """Accuracy ± half of its interval; how many items and seeds, the note below the table says."""
    if row.accuracy is None:
        return row.status or why_unasked(row)
    return interval_cell(row.accuracy, signed=False)


def why_unasked(row: Row) -> str:
    """The words that whole runs without answers left: random weights are not asked."""
    blocks = [record.evaluate for record in row.complete if record.evaluate]
    return next((block.reason for block in blocks if block.reason), MISSING)


def measure_number(value: float, measure: Measure = RIGHT_ANSWERS, signed: bool = True) -> Number:
    """A figure or a difference in the unit shown: points of a share, or nats and bits."""
    if measure.is_share:
        return Number(points(value) if signed else percent(value), value)
    return Number(decimals(value, DECIMALS, signed), value)


def interval_cell(
    estimate: Estimate | None, measure: Measure = RIGHT_ANSWERS, signed: bool = True
) -> str:
    """value ± half-width, or value [low, high] where a bound cut one side."""
    if estimate is None:
        return MISSING
    up, down = estimate.high - estimate.value, estimate.value - estimate.low
    value = measure_number(estimate.value, measure, signed)
    if abs(up - down) < 5e-4:
        return Number(f"{value} ± {measure_number(up, measure, signed=False)}", value.value)
    ends = (measure_number(end, measure, signed) for end in (estimate.low, estimate.high))
    return Number(f"{value} [{', '.join(ends)}]", value.value)


def difference_cell(comparison: Comparison, row: Row, key: str) -> str:
    """Gain, gap or what was kept; not known where what it is measured against has no numbers."""
    estimate = getattr(row, key)
    if estimate is not None:
        return interval_cell(estimate)
    reference = comparison.row(WHOLE if key == "gap" else UNTRAINED)
    if row.accuracy and reference and "not a number" in reference.status:
        return NOT_KNOWN
    return absent(row)


def link_record(folder: str, record: Record, words: str) -> str:
    """Words that lead to a record below a study's folder, as it is seen from the report."""
    return f"[{words}]({posixpath.join(folder, 'runs', record.run_id)}/record.json)"


def absent(row: Row) -> str:
    """What stands where a figure is missing: the method's cell has the word if no run is whole."""
    return MISSING if row.complete or not row.status else "—"


def method_cell(row: Row) -> str:
    name = name_method(row)
    return f"{name} — {row.status}" if row.status else name


def cost_cell(row: Row, brief: bool = False) -> str:
    """Dollars at the median price, and from the cheapest to the dearest offer."""
    if not row.method.kind.trains:
        return NOT_TRAINED
    spread, price = row.figures.get("cost_usd"), row.price
    if spread is None or price is None:
        return SHARED if row.shares_card else "no price stated"
    if brief:
        return cell_of(spread.value, METRICS["cost_usd"].number)
    if price.single:
        return spread_cell("cost_usd", spread)
    seconds, show = row.figures["train_seconds"].value, METRICS["cost_usd"].number
    low, high = (show(dollars(seconds, hour)) for hour in (price.cheapest, price.dearest))
    return Number(f"{show(spread.value)} ({low}–{high})", spread.value)


def trained_cell(row: Row, key: str) -> str:
    if not row.method.kind.trains:
        return NOT_TRAINED
    if key in TIMED and row.shares_card:
        return SHARED
    return spread_cell(key, row.figures.get(key)) if row.complete else absent(row)


def trainable_cell(row: Row) -> str:
    count, share = (row.figures.get(f"trainable_{what}") for what in ("params", "share"))
    if count is None or share is None:
        return absent(row)
    if not count.value:
        return Number("0", 0)
    text = f"{int(count.value):,} ({METRICS['trainable_share'].number(share.value)} %)"
    return Number(text, count.value)


def peak_cell(row: Row, kind: str, stage: str) -> str:
    if stage == "train" and not row.method.kind.trains:
        return NOT_TRAINED
    spread = row.memory.get((kind, stage))
    if spread is None:
        return absent(row)
    return cell_of(spread.value, METRICS[f"{stage}_peak_bytes"].number)


def rows_of(record: Record) -> str:
    """Rows × tokens of one pass."""
    return f"{record.run.train.micro_batch} × {record.run.train.seq_len:,}"


def short_number(value: float) -> Number:
    return Number(plain_number(value, 3), value)


def p_value(p: float) -> str:
    return Number("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def base_share(row: Row) -> float | None:
    """The smallest share of a row's bases in 4 bits; None where none is, or none says so."""
    loads = [record.load for record in row.records if record.load]
    return min((b.four_bit_share for b in loads if b.four_bit_share is not None), default=None)


def name_method(row: Row) -> str:
    """The method's name, and how much of its base is in 4 bits where that is not most of it."""
    share = base_share(row)
    if share is None or share >= WHOLE_SHARE:
        return row.method.label
    return f"{row.method.label} ({percent_below(share)} in 4 bits)"


def method_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each thing of a method at a size that its name does not tell."""
    told = (f"At {c.name} {words}." for c in comparisons for row in c.rows
            for words in tell_row(row) if words)  # fmt: skip
    return list(dict.fromkeys(told))


def tell_row(row: Row) -> Iterator[str]:
    label = row.method.label
    yield tell_base(label, base_share(row))
    for record in row.records:
        if record.load and record.load.reached:
            yield tell_reach(label, record.load.reached, row.method.rank)
    for record in row.complete:
        if record.evaluate and record.evaluate.scores and record.evaluate.reason:
            yield f"{label}, {record.evaluate.reason.rstrip('.')}"
