"""Tables and sentences of what was measured on held-out examples.

A study without such measures gets none of them.

Not covered: the figures (studylib.reporting.measured), what they mean (studylib.schema.measures),
csv files (studylib.reporting.exports).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from studylib.core.metrics import MISSING, percent
from studylib.reporting.blocks import Block, Number, Table, Text, figures, named, words
from studylib.reporting.cells import NOT_TRAINED, interval_cell, measure_number
from studylib.reporting.measured import HELD_OUT, RETENTION, MeasuredFigure
from studylib.reporting.notes import join_words
from studylib.reporting.summary import Comparison, Row, Summary
from studylib.schema.methods import WHOLE

NO_DIFFERENCE = "no clear difference between {} and full fine-tuning"
JUDGED = ("judged", "judged_gap", "judged_share")  # of the measure that a track is judged by
MEASURED = (*words("Model", "Measure"), named("Method"), *figures("Figure"))
SHARE_HEADER = "Share of full's gain (%) ↑"
GAINS = {  # of each set of examples, the columns beside a figure
    HELD_OUT: ("Gain over base", "Less full's", SHARE_HEADER, "Smallest gap these data show"),
    RETENTION: ("Change from base", "Less full's"),
}
COUNTS = {
    "too_long": "left out: their prompt alone fills the row or the model's context",
    "left_out": "left out: nothing in them that this measure needs",
    "unknown_labels": "with a label that never occurs in training, counted as wrong",
    "unfinished": "answers that reached the longest length allowed",
    "prompts_cut": "prompts cut from the left to fit the model's context",
}


def measured_section(comparisons: Sequence[Comparison]) -> list[Block]:
    """A track's figures on held-out examples by every measure; empty where there are none."""
    told: list[Block] = []
    if any(c.measured for c in comparisons):
        told += [Text("**On held-out examples**"), held_out_table(comparisons)]
        told += [Text(tell_measured(comparisons))]
    if any(found.of == RETENTION for c in comparisons for found in c.measured):
        told += [Text("**What the base knew before, by held-out loss**")]
        told += [held_out_table(comparisons, RETENTION)]
    return told


def held_out_table(comparisons: Sequence[Comparison], of: str = HELD_OUT) -> Table:
    """A row a measure and method: the figure, its difference from full, the share of full's gain,
    and the smallest gap that these data can show."""
    rows = [
        (comparison.name, found.measure.header, found.label, figure_cell(found),
         *gain_cells(found)[: len(GAINS[of])])
        for comparison in comparisons
        for found in comparison.measured
        if found.of == of
    ]  # fmt: skip
    return Table((*MEASURED, *figures(*GAINS[of])), tuple(rows))


def figure_cell(found: MeasuredFigure) -> str:
    estimate = found.estimate
    count = f"{estimate.items:,}"
    count += f" in {estimate.clusters:,} groups" if estimate.clusters != estimate.items else ""
    count += f" × {estimate.seeds} seeds" if estimate.seeds > 1 else ""
    shown = interval_cell(estimate, found.measure, signed=False)
    return Number(f"{shown} (n={count})", estimate.value)


def gain_cells(found: MeasuredFigure) -> tuple[str, str, str, str]:
    """Gain over the base, gap to full, share of full's gain, smallest gap."""
    if not found.trains:
        return "reference", NOT_TRAINED, NOT_TRAINED, "—"
    gain = interval_cell(found.gain, found.measure)
    if found.method == WHOLE and found.gap is None:
        return gain, "reference", "reference", "—"
    if found.gap is None:
        return gain, MISSING, MISSING, MISSING
    share = "full shows no gain" if found.gain else MISSING
    if found.share is not None:
        half = found.share.high - found.share.value
        share = Number(f"{percent(found.share.value)} ± {percent(half)}", found.share.value)
    least = found.detectable
    smallest = MISSING if least is None else measure_number(least, found.measure, signed=False)
    return gain, interval_cell(found.gap, found.measure), share, smallest


def tell_measured(comparisons: Sequence[Comparison]) -> str:
    """What was measured, what the intervals rest on, and what was counted beside it."""
    shown = [found for c in comparisons for found in c.measured if found.of == HELD_OUT]
    one_seed = any(found.trains and found.estimate.seeds == 1 for found in shown)
    text = (
        "Differences are taken on the same examples; intervals of 95 % are over "
        f"{'examples alone, one seed a method' if one_seed else 'examples and seeds'}. The share "
        "is the method's gain over the base as part of full fine-tuning's. The smallest gap is "
        "what data like these show 8 times in 10."
    )
    told = dict.fromkeys(
        f"{found.measure.label.lower()}: {count:,} {COUNTS[key]}"
        for found in shown
        for key, count in found.counts.items()
        if key in COUNTS
    )
    return text + (f" Of the examples, {'; '.join(told)}." if told else "")


def meanings(summaries: Iterable[Summary]) -> list[tuple[str, str]]:
    """Name and meaning of every figure that is shown, for the table of columns."""
    shown = [found.measure for s in summaries for c in s.comparisons for found in c.measured]
    return list({m.key: (m.label, m.meaning) for m in shown}.values())


def first_measure(comparison: Comparison) -> list[MeasuredFigure]:
    """Each method's figure of the measure that was asked first, on its own weights: the one that
    chose the learning rates, and so the one that a track is judged by. Empty where questions do."""
    rows = [f for f in comparison.measured if f.of == HELD_OUT and not f.other_weights]
    return [found for found in rows if found.measure is rows[0].measure]


def headline_heads(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """The first table's columns of the measure that judges; none where questions do."""
    measures = [found.measure for c in comparisons for found in first_measure(c)[:1]]
    if not measures:
        return {}
    return dict(zip(JUDGED, (measures[0].header, "Less full's", SHARE_HEADER), strict=True))


def measured_headline_cell(comparison: Comparison, row: Row, key: str) -> str:
    """A method's figure of the first measure, its difference to full, or its share of the gain."""
    found = next((f for f in first_measure(comparison) if f.label == row.label), None)
    if found is None:
        return MISSING
    _, gap, share, _ = gain_cells(found)
    return {JUDGED[0]: figure_cell(found), JUDGED[1]: gap, JUDGED[2]: share}[key]


def tell_finding(comparison: Comparison) -> str:
    """The finding on held-out examples by the first measure, in sentences; empty without one."""
    rows = first_measure(comparison)
    full = next((found for found in rows if found.method == WHOLE), None)
    if full is None or full.gain is None:
        return ""
    measure = full.measure
    better = full.gain.value * measure.sign > 0
    sure = full.gain.low > 0 or full.gain.high < 0
    moved = ("improved" if better else "worsened") if sure else "did not clearly change"
    items, groups = full.estimate.items, full.estimate.clusters
    windows = f" ({items:,} windows)" if items != groups else ""  # where texts were divided
    text = (
        f"On {groups:,} held-out examples{windows} full fine-tuning {moved} the "
        f"{measure.label.lower()} to {interval_cell(full.estimate, measure, signed=False)} "
        f"{measure.unit} ({interval_cell(full.gain, measure)} against the base)."
    )
    return " ".join([text, *(gap_sentence(found) for found in rows if found.gap is not None)])


def gap_sentence(found: MeasuredFigure) -> str:
    gap, measure = found.gap, found.measure
    assert gap is not None
    unit = "pp" if measure.is_share else measure.unit
    kept = "" if found.share is None else f" and kept {percent(found.share.value)} % of its gain"
    figures = f"{interval_cell(gap, measure)} {unit}{kept}"
    if gap.low > 0 or gap.high < 0:
        word = "better" if gap.value * measure.sign > 0 else "worse"
        return f"{found.label} ended {word} than it ({figures})."
    return f"{found.label} shows no clear difference from it ({figures})."


def measured_headline(comparison: Comparison) -> str:
    """The finding by the first measure in one sentence without figures; empty without one."""
    rows = first_measure(comparison)
    judged = [found for found in rows if found.gap is not None]
    if not judged:
        return ""
    gain = next((found.gain for found in rows if found.method == WHOLE), None)
    if gain is not None and gain.low <= 0 <= gain.high:
        return "These runs cannot say which method learns more."
    kinds: dict[str, list[str]] = {}
    for found in judged:
        assert found.gap is not None
        worse = found.gap.value * found.measure.sign < 0
        words = NO_DIFFERENCE
        if found.gap.low > 0 or found.gap.high < 0:
            words = "full fine-tuning did better than {}" if worse else "{} did better than full"
        kinds.setdefault(words, []).append(found.label)
    return f"{join_findings(kinds)} ({rows[0].measure.label.lower()})."


def join_findings(found: Mapping[str, Sequence[str]]) -> str:
    """Sentences with a hole, and whom each is about, as one that begins with a capital."""
    text = "; ".join(form.format(join_words(names)) for form, names in found.items() if names)
    return f"{text[0].upper()}{text[1:]}"
