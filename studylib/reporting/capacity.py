"""The learning-capacity curve: how many new facts each method takes in, against full fine-tuning.

A study whose tracks differ in the number of facts is read as one curve a method. Where a method
stops being enough is said by a rule: the first number of facts at which it lies clearly behind
full fine-tuning (Holm's p at most 0.05) and by more than MARGIN. What that end may owe to training
and not to rank is said beside it: few seeds, rates tuned at one number of facts, a higher rank that
learned less than a lower one.

Not covered: studies that compare methods at one number of facts (studylib.reporting.tables, prose).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from studylib.core import stats
from studylib.core.metrics import METRICS, MISSING, percent, plain_number
from studylib.reporting.blocks import Block, Table, Text, around, figures, named
from studylib.reporting.cells import interval_cell, trainable_cell
from studylib.reporting.glossary import say
from studylib.reporting.notes import count_of, join_words
from studylib.reporting.panels import (
    INK,
    Names,
    colour,
    draw_panels,
    error_bar,
    note_on_line,
    tint,
)
from studylib.reporting.summary import Comparison, Row, Summary, right_answers
from studylib.schema.methods import METHODS, WHOLE

MARGIN = 0.05  # of accuracy: a smaller gap to full is not called a limit
RANK_LOOKS = (("^", "-"), ("s", (0, (5, 2))), ("D", (0, (1, 1.5))), ("v", (0, (5, 2, 1, 2))))
CAPTION = ("Accuracy by number of new facts, and the facts known beyond guessing, 95 % intervals "
           "over questions")  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One method at one number of facts."""

    facts: int
    comparison: Comparison
    row: Row


def is_capacity(summary: Summary) -> bool:
    """Whether the tracks ask the same of different numbers of facts, three or more."""
    counts = {(r.run.track, r.run.evaluate.facts) for r in summary.study.records}
    facts = {count for _, count in counts}
    return None not in facts and len(facts) == len(counts) and len(facts) >= 3


def read_curves(summary: Summary) -> dict[str, list[Point]]:
    """Points by the method's label, methods in their order, facts rising; one model's."""
    found: dict[str, list[Point]] = {}
    for comparison in summary.comparisons:
        for row in comparison.rows:
            facts = row.records[0].run.evaluate.facts
            if row.accuracy is not None and facts is not None:
                found.setdefault(row.method.label, []).append(Point(facts, comparison, row))
    return {label: sorted(points, key=lambda p: p.facts) for label, points in found.items()}


def falls_short(row: Row) -> bool:
    """Whether a method is clearly behind full fine-tuning, and by more than the margin."""
    return row.gap is not None and row.settled and row.gap.high < 0 and row.gap.value < -MARGIN


def tell_capacity(summary: Summary) -> str:
    """Where each method stops being enough, how far full came, and what higher ranks did."""
    curves = read_curves(summary)
    full = curves.get(METHODS[WHOLE].label, [])
    parts = [tell_limits(summary), tell_full(full), tell_ranks(curves)]
    return " ".join(part for part in parts if part)


def tell_limits(summary: Summary) -> str:
    """Where each method stops being enough, in one or two sentences."""
    judged = {
        label: beside
        for label, points_ in read_curves(summary).items()
        if (beside := [p for p in points_ if p.row.gap is not None])
    }
    if not judged:
        return "Nothing can be said of capacity: no method stands beside full fine-tuning."
    short, enough = [], []
    for label, points_ in judged.items():
        behind = [p for p in points_ if falls_short(p.row)]
        if behind:
            gap = f"{interval_cell(behind[0].row.gap)} pp"
            short.append(f"{label} at {behind[0].facts:,} facts ({gap})")
        else:
            worst = min(points_, key=lambda p: p.row.gap.value)  # type: ignore[union-attr]
            gap = f"{interval_cell(worst.row.gap)} pp"
            enough.append(f"{label} (at worst {gap}, at {worst.facts:,} facts)")
    most = max(p.facts for points_ in judged.values() for p in points_)
    parts = []
    if short:
        parts.append(f"**Adapters stop being enough:** {join_words(short)}. That is the first "
                     "number of facts at which the gap to full fine-tuning is clear of zero and "
                     f"beyond {100 * MARGIN:g} pp; {reservation(summary)}.")  # fmt: skip
    parts.append(tell_caught_up(judged, most))
    if enough:
        verb = "was" if len(enough) == 1 else "were"
        parts.append(f"{join_words(enough)} {verb} enough by that rule up to {most:,} facts.")
    return " ".join(filter(None, parts))


def tell_caught_up(judged: dict[str, list[Point]], most: int) -> str:
    """Methods that fall short somewhere and no longer do so at the most facts."""
    back = [
        label
        for label, points_ in judged.items()
        if any(falls_short(p.row) for p in points_)
        and points_[-1].facts == most
        and not falls_short(points_[-1].row)
    ]
    if not back:
        return ""
    verb = "is" if len(back) == 1 else "are"
    full = judged[back[0]][-1].comparison.row(WHOLE)
    known = f", where full itself is {percent(full.accuracy.value)} % right" if (
        full and full.accuracy) else ""  # fmt: skip
    return f"At {most:,} facts{known}, {join_words(back)} {verb} not behind by that rule."


def reservation(summary: Summary) -> str:
    """How far an end can be laid to the rank: seeds a point, and where the rates were tuned."""
    trained = [row for c in summary.comparisons for row in c.rows if row.method.kind.trains]
    text = f"{count_of(min(len(row.complete) for row in trained), 'seed')} a point"
    facts = {r.run.track: r.run.evaluate.facts for r in summary.study.records}
    tuned = {facts.get(sweep.track) for sweep in summary.study.sweeps} & set(facts.values())
    if tuned and len(tuned) < len(set(facts.values())):
        where = join_words([f"{n:,}" for n in sorted(n for n in tuned if n is not None)])
        text += f", learning rates tuned at {where} facts alone"
    return text


def tell_ranks(curves: dict[str, list[Point]]) -> str:
    """Where a higher rank of a method learned clearly less than the next lower one."""
    judged = [
        (label, lower, one.facts, gap)
        for lower, label in neighbours(curves)
        for one in curves[label]
        for other in curves[lower]
        if one.facts == other.facts and (gap := compare_points(one, other)) is not None
    ]
    found = stats.adjust_holm([gap.p_value for _, _, _, gap in judged])
    worse = [
        f"by {label} than by {lower} at {facts:,} facts ({interval_cell(gap)} pp)"
        for (label, lower, facts, gap), p in zip(judged, found, strict=True)
        if p <= 0.05 and gap.high < 0
    ]
    return say("higher_rank", found=join_words(worse)) if worse else ""


def neighbours(curves: dict[str, list[Point]]) -> list[tuple[str, str]]:
    """Labels of a method's next lower and higher rank."""
    ranked = sorted(
        (p[0].row.method.name, p[0].row.method.rank, label)
        for label, p in curves.items()
        if p[0].row.method.rank
    )
    return [(a[2], b[2]) for a, b in pairwise(ranked) if a[0] == b[0]]


def compare_points(one: Point, other: Point) -> stats.Estimate | None:
    """Accuracy of one less the other's on the same questions; None where an answer is missing."""
    ours, theirs = (
        right_answers(p.comparison.study, p.row.complete, p.row.weights or "").get("questions")
        for p in (one, other)
    )
    if ours is None or theirs is None or ours.correct.shape[1] != theirs.correct.shape[1]:
        return None
    return stats.compare_methods(ours.correct, theirs.correct, ours.clusters)


def tell_full(points_: Sequence[Point]) -> str:
    """What full fine-tuning itself learned: no method can fall behind what was not learned."""
    if len(points_) < 2:
        return ""
    first, last = points_[0], points_[-1]
    text = (
        f"Full fine-tuning itself went from {percent(first.row.accuracy.value)} % at "  # type: ignore[union-attr]
        f"{first.facts:,} facts to {percent(last.row.accuracy.value)} % at {last.facts:,}"  # type: ignore[union-attr]
    )
    epochs = [r.train.epochs for p in (first, last) for r in p.row.complete if r.train]
    if len(epochs) >= 2:
        text += (
            f", each fact being read about {plain_number(epochs[0], 2)} and "
            f"{plain_number(epochs[-1], 2)} times: the number of updates is the same for all"
        )
    return f"{text}."


def detectable_sentence(summary: Summary) -> str:
    sizes = [100 * d for c in summary.comparisons for row in c.rows if (d := row.detectable)]
    if not sizes:
        return ""
    seeds = max(len(row.complete) for c in summary.comparisons for row in c.rows)
    return (
        "The smallest gap to full that one point could have shown (p by Holm of 0.05 or less, 8 "
        f"times in 10) is {plain_number(min(sizes), 2)} to {plain_number(max(sizes), 2)} pp; with "
        f"{count_of(seeds, 'seed')} the intervals speak of "
        + ("the questions alone, not of another seed." if seeds == 1 else "questions and seeds.")
    )


def capacity_table_read(summary: Summary) -> list[Block]:
    """The table, and how to read it."""
    reading = f"{detectable_sentence(summary)} Bold: behind full fine-tuning by the rule above."
    return [capacity_table(summary), Text(reading.strip())]


def capacity_table(summary: Summary) -> Table:
    """One row a method: accuracy at each number of facts, with the gap to full beneath it."""
    curves = read_curves(summary)
    facts = sorted({p.facts for points_ in curves.values() for p in points_})
    header = (named("Method"), *figures(METRICS["trainable_params"].header,
              *(f"{n:,} facts: accuracy (%) ↑; gap (pp)" for n in facts)))  # fmt: skip
    rows = []
    for label, points_ in curves.items():
        at = {p.facts: p for p in points_}
        cells = [capacity_cell(at[n].row) if n in at else MISSING for n in facts]
        rows.append((label, trainable_cell(points_[0].row), *cells))
    return Table(header, tuple(rows))


def capacity_cell(row: Row) -> str:
    text = interval_cell(row.accuracy, signed=False)
    if row.gap is None:
        return text
    both = f"{text}; {interval_cell(row.gap)}"
    return around(f"**{both}**" if falls_short(row) else both, text)


def draw_capacity(summary: Summary) -> Figure | None:
    """Accuracy, and facts known beyond guessing, against the number of facts; one line a method."""
    curves = read_curves(summary)
    facts = sorted({p.facts for points_ in curves.values() for p in points_})
    chances = [p.row.chance.chance for points_ in curves.values()
               for p in points_ if p.row.chance]  # fmt: skip

    def draw(panel: Axes, scaled: bool) -> Names:
        labels = []
        for label, points_ in curves.items():
            method = points_[0].row.method
            told = method.kind.trains or any(p.row.above_chance for p in points_)
            if not told or (scaled and not method.kind.trains):
                continue  # it lies on the line of guessing
            shade, marker, style = line_look(method.label, curves)
            xs = [p.facts for p in points_]
            ys, bars = zip(*(point_height(p, scaled) for p in points_), strict=True)
            below, above = ([bar[side] for bar in bars] for side in (0, 1))
            panel.errorbar(
                xs, ys, yerr=[below, above], color=shade, capsize=2, linewidth=1.5,
                marker=marker, markersize=5, linestyle=style,
            )  # fmt: skip
            labels.append((xs[-1], ys[-1], label, colour(method)))  # pale names do not read
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator(facts))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticklabels([f"{n:,}" for n in facts])
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
        panel.margins(x=0.08, y=0.12)
        level = 0 if scaled or not chances else 100 * chances[0]
        panel.axhline(level, color=INK, linewidth=0.8, linestyle=":")
        note_on_line(panel, level, "guessing", below=True)
        panel.set_xlabel("new facts in the training data")
        panel.set_ylabel("facts known beyond guessing ↑" if scaled else "accuracy (%) ↑")
        return labels

    return draw_panels((False, True), draw, sharey=False) if curves else None


def point_height(point: Point, scaled: bool) -> tuple[float, tuple[float, float]]:
    """The point's height with its error bar: per cent, or facts with guessing taken out."""
    estimate, chance = point.row.accuracy, point.row.chance
    assert estimate is not None
    (down,), (up,) = error_bar(estimate)
    if not scaled or chance is None:
        return 100 * estimate.value, (down, up)
    factor = point.facts / (1 - chance.chance)
    return factor * (estimate.value - chance.chance), (factor * down / 100, factor * up / 100)


def line_look(label: str, curves: dict[str, list[Point]]) -> tuple[str, str, Any]:
    """Colour, marker and line: ranks of one method share its hue and differ in all three."""
    method = curves[label][0].row.method
    ranks = sorted({p[0].row.method.rank or 0 for p in curves.values()
                    if p[0].row.method.name == method.name})  # fmt: skip
    if len(ranks) < 2:
        return colour(method), method.kind.marker, "-" if method.kind.trains else "--"
    place = ranks.index(method.rank or 0)
    marker, style = RANK_LOOKS[(len(ranks) - 1 - place) % len(RANK_LOOKS)]
    return tint(colour(method), 0.45 * (1 - place / (len(ranks) - 1))), marker, style
