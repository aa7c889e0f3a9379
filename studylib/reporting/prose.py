"""The report's answer, computed from the summary: what was found and how sure it is.

No figure is typed here: each sentence takes its numbers from estimates and says in words whether
they settle anything. Where accuracy cannot be told from guessing, no conclusion is drawn from it.

Not covered: sentences under tables (studylib.reporting.notes) and the order of the report.
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.core.metrics import METRICS, percent, plain_number, points
from studylib.core.stats import Estimate
from studylib.reporting import measure_tables
from studylib.reporting.cells import interval_cell, why_unasked
from studylib.reporting.notes import count_of, join_words
from studylib.reporting.resources import MEMORY
from studylib.reporting.summary import Comparison, Row, Summary
from studylib.schema.methods import UNTRAINED, WHOLE


def answer(summary: Summary) -> str:
    """The answer: for each track a paragraph on what was learned and one on what it took.

    It speaks of the largest model with a complete full fine-tuning run; other sizes are named.
    """
    return "\n\n".join(part for track in summary.tracks for part in answer_track(summary, track))


def answer_briefly(summary: Summary) -> str:
    """For each track the finding and its figures in two or three sentences."""
    return "\n\n".join(brief_track(summary, track) for track in summary.tracks)


def brief_track(summary: Summary, track: str) -> str:
    comparison = main_comparison(summary, track)
    if comparison is None or not comparison.above_chance:
        return answer_track(summary, track)[0]
    where = "" if len(summary.tracks) == 1 else f"*Track {track}.* "
    full = comparison.row(WHOLE)
    assert full is not None
    figures = [f"full {percent(full.accuracy.value)} % right"] if full.accuracy else []
    figures[0:1] = [f"{f} ({interval_cell(full.gain)} pp over the base)" if full.gain else f
                    for f in figures]  # fmt: skip
    figures += [f"{row.method.label} {interval_cell(row.gap)} pp against it"
                for row in comparison.rows if row.gap]  # fmt: skip
    kept = [f"{row.method.label} {points(row.forgetting.value)} pp"
            for row in comparison.rows if row.forgetting]  # fmt: skip
    text = f"{where}**{headline(comparison)}** {opening(comparison)} {', '.join(figures)}."
    text += f" What the base knew before changed by: {join_words(kept)}." if kept else ""
    took = brief_resources(comparison) if track == summary.tracks[0] else ""
    return f"{text} {took}".rstrip()


def brief_resources(comparison: Comparison) -> str:
    """Memory, time and disk of each adapter method beside full fine-tuning's, as ratios."""
    full = comparison.row(WHOLE)
    kind = (comparison.memory_kind, "train")
    parts = []
    for row in comparison.rows if full else ():
        if not row.method.kind.adapter or not row.complete:
            continue
        assert full is not None
        pairs = {
            "memory": (row.memory.get(kind), full.memory.get(kind)),
            "time of a step": (row.figures.get("clean_step_seconds"),
                               full.figures.get("clean_step_seconds")),
            "disk": (row.figures.get("variant_bytes"), full.figures.get("variant_bytes")),
        }  # fmt: skip
        ratios = [f"{plain_number(a.value / b.value, 2)} × {words}"
                  for words, (a, b) in pairs.items() if a and b and b.value]  # fmt: skip
        parts.append(f"{row.method.label} {', '.join(ratios)}")
    return f"Beside full fine-tuning they take: {'; '.join(parts)}." if parts else ""


def main_comparison(summary: Summary, track: str) -> Comparison | None:
    """The largest model of a track with a complete full fine-tuning run."""
    able = [c for c in summary.comparisons
            if c.track == track and (row := c.row(WHOLE)) and row.complete]  # fmt: skip
    return able[-1] if able else None


def answer_track(summary: Summary, track: str, named: bool = True) -> list[str]:
    """One or two paragraphs, without empty ones. named: the track is named where there are more."""
    comparisons = [c for c in summary.comparisons if c.track == track]
    able = [c for c in comparisons if (row := c.row(WHOLE)) and row.complete]
    where = f"*Track {track}.* " if named and len(summary.tracks) > 1 else ""
    if not able:
        return [f"{where}No full fine-tuning run is complete: there is nothing to compare with."]
    main = able[-1]
    if main.above_chance:
        others = [c for c in able[:-1] if c.above_chance]
        found = [learned(main), gaps(main), forgotten(main), other_sizes(others)]
    else:
        found = [at_chance(main)] if asked(main) or not main.measured else []
    found.append(measure_tables.tell(main))
    first = [f"{where}**{headline(main)}**", opening(main), *found]
    return [p for p in (" ".join(s for s in first if s), resources(main)) if p]


def headline(comparison: Comparison) -> str:
    """The finding in one sentence, without figures."""
    if not asked(comparison) and (found := measure_tables.headline(comparison)):
        return found
    if not comparison.above_chance:
        return "These runs cannot say which method learns more."
    judged = [(row, row.gap.value) for row in comparison.rows if row.gap is not None]
    if not judged:
        return "Only full fine-tuning was measured, so that there is nothing to compare it with."
    groups = {
        "full fine-tuning learned more than {}": [r for r, v in judged if settled(r) and v < 0],
        "{} learned more than full fine-tuning": [r for r, v in judged if settled(r) and v > 0],
        "{} could not be told from full fine-tuning": [r for r, _ in judged if not settled(r)],
    }
    parts = [
        words.format(join_words([row.method.label for row in rows]))
        for words, rows in groups.items()
        if rows
    ]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def asked(comparison: Comparison) -> bool:
    """Whether any row answered questions."""
    return any(row.accuracy for row in comparison.rows)


def settled(row: Row) -> bool:
    """Whether the gap to full is told from zero, the number of methods considered."""
    return row.gap_p_holm is not None and row.gap_p_holm <= 0.05


def opening(comparison: Comparison) -> str:
    device = comparison.rows[0].records[0].environment.device
    size = comparison.total_params
    size_text = f" ({parameter_count(size)} parameters)" if size else ""
    seeds = max(len(row.complete) for row in comparison.rows)
    return f"Measured on {device}, {comparison.name}{size_text}, {count_of(seeds, 'seed')}:"


def parameter_count(count: float) -> str:
    """1.42M, 7.3B: parameters in the field's short form."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{plain_number(count / size, 3)}{unit}"
    return f"{int(count)}"


def at_chance(comparison: Comparison) -> str:
    scored = [row for row in comparison.rows if row.chance and row.accuracy]
    if not scored:
        why = why_unasked(next(row for row in comparison.rows if row.complete))
        return f"accuracy: {why}. What each method takes is measured all the same."
    chance = next(row.chance.chance for row in scored if row.chance)
    base = ", the untouched model's included" if comparison.row(UNTRAINED) else ""
    items = max(row.accuracy.items for row in comparison.rows if row.accuracy)
    return (
        f"no accuracy is distinguishable from chance ({percent(chance)} % by guessing, "
        f"{items:,} questions){base}. These runs therefore say nothing "
        "on which method learns more; what each of them takes is measured all the same."
    )


def learned(comparison: Comparison) -> str:
    full, base = comparison.row(WHOLE), comparison.row(UNTRAINED)
    assert full is not None
    if full.gain is None or base is None or base.accuracy is None or full.accuracy is None:
        return ""
    sure = sureness(full.gain)
    return (
        f"full fine-tuning took accuracy from {percent(base.accuracy.value)} % to "
        f"{percent(full.accuracy.value)} % ({interval_cell(full.gain)} pp, {sure})."
    )


def sureness(estimate: Estimate) -> str:
    clear = estimate.low > 0 or estimate.high < 0
    return "an interval clear of zero" if clear else "not distinguishable from zero"


def gaps(comparison: Comparison) -> str:
    found = [gap_sentence(row) for row in comparison.rows if row.gap is not None]
    found += [f"{row.label}: {interval_cell(row.gap)} pp." for row in comparison.also if row.gap]
    return " ".join(found)


def gap_sentence(row: Row) -> str:
    gap = row.gap
    assert gap is not None
    if settled(row):
        side = "below" if gap.value < 0 else "above"
        ends = sorted(abs(end) for end in (gap.low, gap.high))
        return (
            f"{row.method.label} ended {percent(abs(gap.value))} pp {side} full fine-tuning "
            f"(95 % interval {percent(ends[0])} to {percent(ends[1])})."
        )
    detectable = row.detectable
    could = f"; a gap of {percent(detectable)} pp would have shown" if detectable else ""
    if not row.above_chance:
        could += "; its own accuracy is not told from chance"
    return (
        f"{row.method.label} cannot be told from full fine-tuning ({points(gap.value)} pp, 95 % "
        f"interval {points(gap.low)} to {points(gap.high)}{could})."
    )


def other_sizes(comparisons: Sequence[Comparison]) -> str:
    parts = [
        f"{comparison.name}: "
        + join_words([f"{row.method.label} {interval_cell(row.gap)} pp" for row in comparison.rows
                      if row.gap is not None])
        for comparison in comparisons
        if any(row.gap for row in comparison.rows)
    ]  # fmt: skip
    if not parts:
        return ""
    word = "At the other size" if len(parts) == 1 else "At the other sizes"
    return f"{word}, gap to full: {'; '.join(parts)}."


def resources(comparison: Comparison) -> str:
    """What each adapter method took beside full fine-tuning, as ratios of medians."""
    full = comparison.row(WHOLE)
    assert full is not None
    kind, parts = comparison.memory_kind, []
    for row in comparison.rows:
        if not row.method.kind.adapter or not row.complete:
            continue
        pairs = {
            f"the peak memory ({MEMORY[kind]})": (
                row.memory.get((kind, "train")), full.memory.get((kind, "train"))),
            "the time of a step": (row.figures.get("clean_step_seconds"),
                              full.figures.get("clean_step_seconds")),
            "the cost of training": (row.figures.get("cost_usd"), full.figures.get("cost_usd")),
            "the disk of one more variant": (row.figures.get("variant_bytes"),
                                               full.figures.get("variant_bytes")),
        }  # fmt: skip
        ratios = [
            f"{plain_number(a.value / b.value, 2)} × {words}"
            for words, (a, b) in pairs.items()
            if a and b and b.value
        ]
        share = row.figures.get("trainable_share")
        moved = (
            f"trains {METRICS['trainable_share'].text(share.value)} of the weights" if share else ""
        )
        parts.append(f"{row.method.label} {moved} and takes {join_words(ratios)}.")
    if not parts:
        return ""
    return "What it takes, full fine-tuning being 1: " + " ".join(parts)


def forgotten(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.forgetting is not None]
    if not rows:
        return ""
    parts = [f"{row.method.label} {interval_cell(row.forgetting)} pp" for row in rows]
    return f"On what the base knew before, training changed accuracy by: {join_words(parts)}."
