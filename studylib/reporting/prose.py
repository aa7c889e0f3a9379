"""What a track shows in words, computed from the summary: who learned more and what it took.

No figure is typed here: each sentence takes its numbers from estimates and says in words whether
they settle anything. Where accuracy cannot be told from guessing, no conclusion is drawn from it.

Not covered: sentences under tables (studylib.reporting.notes) and the order of the report.
"""

from __future__ import annotations

from studylib.core.metrics import percent, plain_number
from studylib.reporting import measure_tables
from studylib.reporting.cells import p_value, why_unasked
from studylib.reporting.evidence_kinds import parameter_count
from studylib.reporting.notes import edge_sentence, join_words, seed_words
from studylib.reporting.summary import Comparison, Summary
from studylib.schema.methods import UNTRAINED, WHOLE


def answer_track(summary: Summary, track: str) -> list[str]:
    """One or two paragraphs on a track: who learned more, and what it took beside full.

    They speak of the largest model with a complete full fine-tuning run; the table has the rest.
    """
    able = [c for c in summary.tracks[track] if (row := c.row(WHOLE)) and row.complete]
    if not able:
        return ["No full fine-tuning run is complete: there is nothing to compare with."]
    main = able[-1]
    if measure_tables.first_measure(main):
        found = [measure_tables.tell_finding(main), tell_questions(main)]
    else:
        learned = tell_learned(main) if main.above_chance else at_chance(main)
        found = [learned, tell_borderline(main)]
    first = [f"**{comparison_headline(main)}**", tell_setting(main), *found, edge_sentence(main)]
    return [p for p in (" ".join(s for s in first if s), resources(main)) if p]


def comparison_headline(comparison: Comparison) -> str:
    """The finding in one sentence, without figures."""
    if found := measure_tables.measured_headline(comparison):
        return found
    if not comparison.above_chance:
        return "These runs cannot say which method learns more."
    judged = [(row, row.method.label, row.gap.value) for row in comparison.rows if row.gap]
    if not judged:
        return "Only full fine-tuning was measured, so that there is nothing to compare it with."
    groups = {
        "full fine-tuning learned more than {}": [n for r, n, v in judged if r.settled and v < 0],
        "{} learned more than full fine-tuning": [n for r, n, v in judged if r.settled and v > 0],
        measure_tables.NO_DIFFERENCE: [name for row, name, _ in judged if not row.settled],
    }
    return f"{measure_tables.join_findings(groups)}."


def tell_questions(comparison: Comparison) -> str:
    """What questions show beside the measure that judges; a model near guessing is told as one."""
    rows = [row for row in comparison.rows if row.accuracy and row.chance]
    if not rows:
        return ""
    chance = percent(rows[0].chance.chance)  # type: ignore[union-attr]
    items = max(row.accuracy.items for row in rows if row.accuracy)
    guessing = [row for row in rows if not row.above_chance]
    moved = tell_learned(comparison)
    parts = [f"On {items:,} questions {moved}" if moved else ""]
    if guessing:
        names = join_words([row.method.label for row in guessing])
        parts.append(f"Guessing gives {chance} %: there {names} cannot be told from it.")
    return " ".join(filter(None, [*parts, tell_borderline(comparison)]))


def tell_setting(comparison: Comparison) -> str:
    device = comparison.rows[0].records[0].environment.device
    size = comparison.total_params
    of_size = f" ({parameter_count(size)} parameters)" if size else ""
    return f"Measured on {device}, {comparison.name}{of_size}, {seed_words(comparison.rows)}:"


def at_chance(comparison: Comparison) -> str:
    scored = [row for row in comparison.rows if row.chance and row.accuracy]
    if not scored:
        why = why_unasked(next(row for row in comparison.rows if row.complete))
        return f"accuracy: {why}. What each method takes is measured all the same."
    chance = next(row.chance.chance for row in scored if row.chance)
    base = ", the untouched model's included" if comparison.row(UNTRAINED) else ""
    items = max(row.accuracy.items for row in comparison.rows if row.accuracy)
    return (
        f"no accuracy is clearly better than guessing ({percent(chance)} %, "
        f"{items:,} questions){base}. These runs therefore say nothing "
        "on which method learns more; what each of them takes is measured all the same."
    )


def tell_borderline(comparison: Comparison) -> str:
    """Methods whose own interval holds no zero, which does not count as clear among several."""
    rows = [
        row
        for row in comparison.rows
        if row.gap and not row.settled and (row.gap.low > 0 or row.gap.high < 0)
    ]
    if not rows:
        return ""
    names = join_words([f"{row.method.label} (p {p_value(row.gap_p_holm or 1)})" for row in rows])
    return (
        f"The interval of {names} alone holds no zero; with {rows[0].judged} rows judged together "
        "that may be chance."
    )


def tell_learned(comparison: Comparison) -> str:
    full, base = comparison.row(WHOLE), comparison.row(UNTRAINED)
    assert full is not None
    if full.gain is None or base is None or base.accuracy is None or full.accuracy is None:
        return ""
    clear = full.gain.low > 0 or full.gain.high < 0
    return (
        f"full fine-tuning took accuracy from {percent(base.accuracy.value)} % to "
        f"{percent(full.accuracy.value)} %{'' if clear else ', which may be chance'}."
    )


def resources(comparison: Comparison) -> str:
    """Memory, time and disk of each adapter method beside full fine-tuning's, as ratios."""
    full = comparison.row(WHOLE)
    assert full is not None
    kind, parts = (comparison.memory_kind, "train"), []
    for row in comparison.rows:
        if not row.method.kind.adapter or not row.complete:
            continue
        pairs = {
            "the memory": (row.memory.get(kind), full.memory.get(kind)),
            "the time of a step": (row.figures.get("clean_step_seconds"),
                                   full.figures.get("clean_step_seconds")),
            "the disk": (row.figures.get("variant_bytes"), full.figures.get("variant_bytes")),
        }  # fmt: skip
        ratios = [f"{plain_number(a.value / b.value, 2)} × {words}"
                  for words, (a, b) in pairs.items() if a and b and b.value]  # fmt: skip
        parts.append(f"{row.method.label} takes {join_words(ratios)}")
    return f"Beside full fine-tuning, {'; '.join(parts)}." if parts else ""
