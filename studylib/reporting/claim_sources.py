"""Where our figures for the article's claims come from: counts, records, servings, forecasts.

Each source turns a part of claims.yaml into figures: what we found, in words and for the rule.

Not covered: the verdict (studylib.reporting.claims), peaks and dollars, which depend on the pass
(studylib.reporting.claims), and how a figure was measured or traced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from studylib.core import stats
from studylib.core.metrics import percent, plain_number, points
from studylib.core.verdicts import Measured
from studylib.planning.catalog import Shape, find_shape
from studylib.planning.counts import checkpoint_bytes, count_adapter, count_parameters
from studylib.reporting.cells import p_value
from studylib.reporting.kept import kept_of_gain
from studylib.reporting.measure_tables import first_measure, gap_sentence
from studylib.reporting.passes import PassSettings, commit_words
from studylib.reporting.summary import Comparison, Row
from studylib.schema.methods import UNTRAINED, WHOLE
from studylib.schema.serve_records import ServeRecord
from studylib.schema.serving import PairedRatio


@dataclass(frozen=True)
class ClaimFigure:
    """Our figure for a part: in words, how it was got, for the rule, and what hinders comparing.

    settled: verdict and reason where the rule is in words and no figure alone decides. beside: what
    a reader of the figure alone has to know, in words.
    """

    ours: str
    how: str
    measured: Measured | None
    obstacle: str | None = None
    settled: tuple[str, str] | None = None
    beside: str = ""


@dataclass(frozen=True)
class ClaimForecast:
    """A figure traced without the device, in the unit of the claim's rule.

    low, high: what its error leaves possible. source: how it was got, in words. more: what else
    belongs beside the figure. job: what it is a forecast of; it gives way where that was measured.
    """

    value: float
    low: float
    high: float
    source: str
    more: str = ""
    job: PassSettings | None = None


Part = Mapping[str, Any]
KEPT = "% of full's gain"
HELD_OUT_SEEDS = 3  # as many as the rules of the claims ask for


# Counted ------------------------------------------------------------------------------------------


def count_figure(source: Part) -> ClaimFigure:
    """A figure by arithmetic on the source's shape alone."""
    shape = find_shape(source["shape"])
    ours, measured = COUNTS[source["count"]](shape, source)
    return ClaimFigure(ours, f"counted from the shape of {shape.name}", measured)


def count_adapter_parameters(shape: Shape, source: Part) -> tuple[str, Measured]:
    count = count_adapter(shape, source["rank"], targets_of(source))
    return f"{count:,} on {where(source)}", Measured(count / 1e6, "M")


def count_adapter_share(shape: Shape, source: Part) -> tuple[str, Measured]:
    total = count_parameters(shape)
    share = 100 * count_adapter(shape, source["rank"], targets_of(source)) / total
    every = 100 * count_adapter(shape, source["rank"]) / total
    ours = f"{share:.4f} % of {total:,}; {every:.4f} % on all linear layers"
    return ours, Measured(share, "%")


def count_checkpoint_size(shape: Shape, source: Part) -> tuple[str, Measured]:
    size = checkpoint_bytes(count_parameters(shape), source["dtype"])
    ours = f"{size:,} bytes = {size / 1e9:.2f} GB in {source['dtype']}"
    return ours, Measured(size / 1e9, "GB")


def count_adapter_size(shape: Shape, source: Part) -> tuple[str, Measured]:
    """Bytes of an adapter in bf16 and in fp32, as one range."""
    count = count_adapter(shape, source["rank"], targets_of(source))
    low, high = (checkpoint_bytes(count, dtype) / 1e6 for dtype in ("bf16", "fp32"))
    ours = f"{low:.1f} MB in bf16, {high:.1f} MB in fp32, r={source['rank']} on {where(source)}"
    return ours, Measured(high, "MB", low, high)


def targets_of(source: Part) -> tuple[str, ...] | None:
    return tuple(source["targets"]) if "targets" in source else None


def where(source: Part) -> str:
    return ",".join(t[0] for t in source["targets"]) if "targets" in source else "all linear layers"


# Measured -----------------------------------------------------------------------------------------


def measure_behind_full(comparison: Comparison, row: Row, held_out: bool) -> ClaimFigure | None:
    """How far a method's accuracy lies behind full fine-tuning's, in points.

    held_out: by the measure that judges the track, where it has one, instead of its questions:
    whether held-out examples show the method clearly behind.
    """
    if held_out and first_measure(comparison):
        return judge_held_out(comparison, row)
    if row.gap is None:
        return None
    gap = row.gap
    measured = Measured(-100 * gap.value, "pp", -100 * gap.high, -100 * gap.low, gap.seeds)
    ours = f"{row.label}: {points_interval(gap)} against full"
    judged = sum(other.gap is not None for other in comparison.scored)
    if row.gap_p_holm is not None and judged > 1:
        ours += f", p {p_value(row.gap_p_holm)} by Holm for {judged} rows"
    if row.detectable is not None:
        ours += f"; a gap of {percent(row.detectable)} pp would have shown"
    beside = tell_unmoved(comparison)
    ours += f"; {beside}" if beside else ""
    obstacle = find_obstacle(comparison, row)
    return ClaimFigure(ours, measured_on(comparison), measured, obstacle, beside=beside)


def tell_unmoved(comparison: Comparison) -> str:
    """That full fine-tuning itself moved no accuracy that shows, from what to what; else empty."""
    full, base = comparison.row(WHOLE), comparison.row(UNTRAINED)
    if not (full and base and full.gain and full.accuracy and base.accuracy):
        return ""
    if not full.gain.low <= 0 <= full.gain.high:
        return ""
    ends = [f"{percent(row.accuracy.value)} %" for row in (base, full) if row.accuracy]
    return f"full fine-tuning itself did not clearly move it ({' to '.join(ends)})"


def judge_held_out(comparison: Comparison, row: Row) -> ClaimFigure | None:
    """Whether a method ends clearly behind full by the first measure on held-out examples."""
    found = next((f for f in first_measure(comparison) if f.label == row.label), None)
    if found is None or found.gap is None:
        return None
    words = gap_sentence(found)
    ends = sorted(end * found.measure.sign for end in (found.gap.low, found.gap.high))
    verdict = "reproduced" if ends[1] < 0 else "differs" if ends[0] > 0 else "inconclusive"
    if found.estimate.seeds < HELD_OUT_SEEDS:
        verdict, words = "inconclusive", f"{words} Too few seeds."
    ours = f"{found.measure.label}: {words}"
    return ClaimFigure(ours, measured_on(comparison), measured_share(comparison, row),
                       settled=(verdict, words))  # fmt: skip


def measured_share(comparison: Comparison, row: Row) -> Measured | None:
    """A method's share of full fine-tuning's gain, for the rule; None where full has none."""
    share = kept_of_gain(comparison, row)
    if share is None:
        return None
    value, low, high = (100 * end for end in share[:3])
    return Measured(value, KEPT, low, high, share[3])


def measure_share_of_gain(comparison: Comparison, row: Row, held_out: bool) -> ClaimFigure | None:
    """A method's share of full fine-tuning's gain over the base, in per cent."""
    full = comparison.row(WHOLE)
    if measured_first := first_measure(comparison) if held_out else []:
        found = next((f for f in measured_first if f.label == row.label), None)
        if found is None or found.gap is None:
            return None
        ours, obstacle = f"{found.measure.label}: {gap_sentence(found)}", None
    elif row.gap is not None and full is not None and full.gain is not None:
        gained = points(full.gain.value + row.gap.value)
        ours = f"{row.label} {gained} pp, full {points_interval(full.gain)}"
        obstacle = find_obstacle(comparison, row)
    else:
        return None
    measured = measured_share(comparison, row)
    if measured is None:
        obstacle = "full fine-tuning's own gain is not clear of zero"
    return ClaimFigure(ours, measured_on(comparison), measured, obstacle)


def find_obstacle(comparison: Comparison, row: Row) -> str | None:
    full = comparison.row(WHOLE)
    if row.gap and not row.above_chance and not (full and full.above_chance):
        return "neither accuracy is clearly better than guessing"
    return None


def measured_on(comparison: Comparison) -> str:
    device = comparison.rows[0].records[0].environment.device
    where = f"{comparison.name}, track {comparison.track}{commit_words(comparison)}"
    return f"measured on {device}: {where}"


def points_interval(estimate: stats.Estimate) -> str:
    """A difference in points with its 95 % interval."""
    return f"{points(estimate.value)} pp [{points(estimate.low)}, {points(estimate.high)}]"


# Served -------------------------------------------------------------------------------------------


def measure_overhead(source: Part, record: ServeRecord) -> ClaimFigure | None:
    """What a variant adds to the time between tokens, in per cent, at the smallest batch and
    prompt; the range over all settings stands beside it."""
    rows = [r for r in record.measures.overheads(source["variant"]) if r.against == "base"]
    known = [(row, ratio) for row in rows if (ratio := row.between_tokens_ratio) is not None]
    if record.spec.method.name != source["method"] or not known:
        return None
    row, ratio = known[0]
    low, value, high = (100 * (end - 1) for end in (ratio.low, ratio.value, ratio.high))
    ours = (
        f"{record.spec.method.label} {source['variant']}: {overhead_text(ratio)} between tokens at "
        f"batch {row.batch}, prompt of {row.prompt_tokens:,} tokens"
    )
    if len(known) > 1:
        middles = sorted(r.value - 1 for _, r in known)
        ours += f"; {points(middles[0])} to {points(middles[-1])} % over {len(known)} settings"
    return ClaimFigure(ours, served_on(record), Measured(value, "%", low, high))


def overhead_text(ratio: PairedRatio) -> str:
    """A paired ratio as what is added, in per cent with its 95 % interval."""
    value, low, high = (points(end - 1) for end in (ratio.value, ratio.low, ratio.high))
    return f"{value} % [{low}, {high}]"


def measure_hot_swap(source: Part, record: ServeRecord) -> ClaimFigure | None:
    """Whether a switch gives the other adapter's answers, and sooner than loading the model."""
    swap = record.measures.swap
    if swap is None or not record.spec.method.kind.article:
        return None
    switch, load = swap.switch_seconds, swap.load_model_seconds
    label = record.spec.method.label
    ours = f"{label}: switch {milliseconds(switch.p50)} ms, at most {milliseconds(switch.highest)}"
    ours += f"; loading the model {milliseconds(load.p50)} ms" if load else ""
    required = [check for check in swap.checks if check.required]
    held = sum(check.holds for check in required)
    proof = f"{held} of {len(required)} equalities hold, adapters are {swap.contrast:.2g} apart"
    if not swap.proven:
        verdict = ("differs", f"the answers after a swap are not proven equal: {proof}")
    elif swap.sooner is None or load is None:
        verdict = ("inconclusive", f"{proof}; loading the model was not timed")
    else:
        word = "less" if swap.sooner else "not less"
        figures = (
            f"slowest switch {milliseconds(switch.highest)} ms is {word} than the fastest load, "
            f"{milliseconds(load.lowest)} ms; {proof}"
        )
        verdict = ("reproduced" if swap.sooner else "differs", figures)
    took = Measured(1e3 * switch.p50, "ms")
    return ClaimFigure(ours, served_on(record), took, settled=verdict)


def milliseconds(seconds: float) -> str:
    return plain_number(1e3 * seconds, 3)


def served_on(record: ServeRecord) -> str:
    model = record.spec.model_ref
    return f"measured on {record.environment.device}: {model}, {record.spec.dtype}"


# Forecast -----------------------------------------------------------------------------------------


def forecast_figure(part: Part, forecast: ClaimForecast) -> ClaimFigure:
    """A forecast with what its error leaves possible."""
    unit = part["rule"]["unit"]
    low, high = (plain_number(end, 3) for end in (forecast.low, forecast.high))
    ours = f"{with_unit(forecast.value, unit)} ({low} to {high})"
    ours += f"; {forecast.more}" if forecast.more else ""
    measured = Measured(forecast.value, unit, forecast.low, forecast.high)
    return ClaimFigure(ours, f"forecast: {forecast.source}", measured)


def with_unit(value: float, unit: str) -> str:
    text = f"{float(f'{value:.3g}'):,g}".replace("-", "−")
    return f"${text}" if unit == "$" else f"{text} {unit}"


COUNTS: dict[str, Callable[[Shape, Part], tuple[str, Measured]]] = {
    "adapter_parameters": count_adapter_parameters,
    "adapter_share": count_adapter_share,
    "checkpoint_size": count_checkpoint_size,
    "adapter_size": count_adapter_size,
}
MEASURES: dict[str, Callable[[Comparison, Row, bool], ClaimFigure | None]] = {
    "behind_full": measure_behind_full,
    "share_of_gain": measure_share_of_gain,
}
SERVED: dict[str, Callable[[Part, ServeRecord], ClaimFigure | None]] = {
    "overhead": measure_overhead,
    "hot_swap": measure_hot_swap,
}
