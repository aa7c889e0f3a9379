"""The report's sentences, computed from the summary: what was found and how sure it is.

No figure is typed here: each sentence takes its numbers from estimates and says in words whether
they settle anything. Where accuracy cannot be told from guessing, no conclusion is drawn from it.

Not covered: tables (studylib.tables) and the order of the report (studylib.report).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.metrics import METRICS, percent, plain_number, points
from studylib.stats import Estimate
from studylib.summary import MEMORY, Comparison, Row, Summary
from studylib.tables import interval_cell


def count_of(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def join_words(words: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def machine_line(summary: Summary) -> str:
    """Where and when the runs were made, as the records say it."""
    records = summary.study.records
    devices = sorted({record.environment.device for record in records})
    days = sorted({record.environment.finished_at[:10] for record in records})
    host = records[0].environment.host
    memory = host.get("memory_total_bytes")
    parts = [join_words(devices), f"{host.get('cores_logical', '?')} cores"]
    if memory:
        parts.append(f"{plain_number(memory / 1e9, 3)} GB of host memory")
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{', '.join(parts)}; runs of {when}; {count_of(len(records), 'record')}"


# The answer ---------------------------------------------------------------------------------------


def answer(summary: Summary) -> str:
    """The answer in a paragraph: one part a track, on the largest model that can answer."""
    parts = [answer_track(summary, track) for track in summary.tracks]
    return " ".join(part for part in parts if part)


def answer_track(summary: Summary, track: str) -> str:
    comparisons = [c for c in summary.comparisons if c.track == track]
    able = [c for c in comparisons if c.row("full") and c.row("full").complete]  # type: ignore[union-attr]
    where = "" if len(summary.tracks) == 1 else f"**Track {track}.** "
    if not able:
        return where + "No full fine-tuning run is complete, so that nothing can be compared to it."
    main = able[-1]
    sentences = [f"**{headline(main)}**", opening(main)]
    if not main.above_chance:
        sentences.append(at_chance(main))
    else:
        sentences += [learned(main), gaps(main)]
        sentences += [other_sizes([c for c in able[:-1] if c.above_chance])]
    sentences += [resources(main), forgotten(main) if main.above_chance else ""]
    return where + " ".join(sentence for sentence in sentences if sentence)


def headline(comparison: Comparison) -> str:
    """The finding in one sentence."""
    if not comparison.above_chance:
        return "These runs cannot say which method learns more."
    judged = [row for row in comparison.rows if row.gap is not None]
    if not judged:
        return "Only full fine-tuning was measured, so that there is nothing to compare it with."
    behind = [row for row in judged if settled(row) and row.gap.value < 0]  # type: ignore[union-attr]
    ahead = [row for row in judged if settled(row) and row.gap.value > 0]  # type: ignore[union-attr]
    open_ = [row for row in judged if not settled(row)]
    parts = []
    for rows, words in ((behind, "fell short of full fine-tuning by"), (ahead, "beat it by")):
        if rows:
            named = [f"{r.method.label} {words} {percent(abs(r.gap.value))} pp" for r in rows]  # type: ignore[union-attr]
            parts.append(join_words(named))
    if open_:
        parts.append(
            f"{join_words([r.method.label for r in open_])} could not be told from full fine-tuning"
        )
    return "; ".join(parts) + "."


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
    chance = next(row.chance.chance for row in comparison.rows if row.chance)
    items = max(row.accuracy.items for row in comparison.rows if row.accuracy)
    return (
        f"no accuracy is distinguishable from chance ({percent(chance)} % by guessing, "
        f"{items:,} questions), the untouched model's included. These runs therefore say nothing "
        "on which method learns more; what each of them takes is measured all the same."
    )


def learned(comparison: Comparison) -> str:
    full, base = comparison.row("full"), comparison.row("base")
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
    full = comparison.row("full")
    assert full is not None
    kind, parts = comparison.memory_kind, []
    for row in comparison.rows:
        if not row.method.kind.adapter or not row.complete:
            continue
        pairs = {
            f"its peak memory ({MEMORY[kind]})": (
                row.memory.get((kind, "train")), full.memory.get((kind, "train"))),
            "its step time": (row.figures.get("clean_step_seconds"),
                              full.figures.get("clean_step_seconds")),
            "its cost": (row.figures.get("cost_usd"), full.figures.get("cost_usd")),
            "its bytes for one more variant": (row.figures.get("variant_bytes"),
                                               full.figures.get("variant_bytes")),
        }  # fmt: skip
        ratios = [
            f"{plain_number(a.value / b.value, 2)} × {words}"
            for words, (a, b) in pairs.items()
            if a and b and b.value
        ]
        share = row.figures.get("trainable_share")
        moved = (
            f"moves {METRICS['trainable_share'].text(share.value)} of the weights" if share else ""
        )
        parts.append(f"{row.method.label} {moved} and takes {join_words(ratios)}.")
    if not parts:
        return ""
    return "Against full fine-tuning, " + " ".join(parts)


def forgotten(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.forgetting is not None]
    if not rows:
        return ""
    parts = [f"{row.method.label} {interval_cell(row.forgetting)} pp" for row in rows]
    return f"On what the base knew before, training changed accuracy by: {join_words(parts)}."


# Readings under tables ----------------------------------------------------------------------------


def memory_note(comparisons: Sequence[Comparison]) -> str:
    kind = comparisons[0].memory_kind
    text = f"Train peak is {MEMORY[kind]}, the largest over seeds."
    if kind == "host_peak_bytes":
        text += (
            " There was no card to read: it is the whole process's memory, Python and its libraries"
            " included, which hides most of the difference between methods on models this small."
        )
    return text


def price_note(comparisons: Sequence[Comparison]) -> str:
    notes = sorted({row.price.note for c in comparisons for row in c.rows if row.price})
    if notes:
        return "Cost is seconds of loading and training × price: " + "; ".join(notes) + "."
    return (
        "No price is stated for this device and no offer in the catalog names it: set "
        "`hardware: {usd_per_hour: ..., usd_note: ...}` in the profile to have dollars."
    )


def spread_note(comparisons: Sequence[Comparison]) -> str:
    several = any(len(row.complete) > 1 for c in comparisons for row in c.rows)
    text = "Accuracies and differences are given with 95 % intervals over subjects"
    text += " and seeds" if several else ", for these runs alone: one seed says nothing of others"
    ranges = "; resources are medians over seeds with their range" if several else ""
    return text + ranges + "."


def chance_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each size at which some accuracy cannot be told from guessing."""
    notes = []
    for comparison in comparisons:
        rows = [row for row in comparison.rows if row.chance is not None]
        at = [row.method.label for row in rows if not row.above_chance]
        if not at:
            continue
        chance = percent(rows[0].chance.chance)  # type: ignore[union-attr]
        who = "no accuracy" if len(at) == len(rows) else f"the accuracy of {join_words(at)}"
        verb = "is" if len(at) == len(rows) else "is not"
        notes.append(f"At {comparison.name} {who} {verb} distinguishable from chance ({chance} %).")
    return notes


def detectable_note(comparisons: Sequence[Comparison]) -> str:
    parts = [
        f"{percent(row.detectable)} pp for {row.method.label} at {comparison.name}"
        for comparison in comparisons
        for row in comparison.rows
        if row.detectable is not None
    ]
    if not parts:
        return ""
    return (
        "The smallest true gap to full fine-tuning that a study of this size finds 8 times in 10: "
        f"{join_words(parts)}. Smaller gaps may exist and would not show here."
    )


def limits(summaries: Sequence[Summary]) -> list[str]:
    """What the figures do not say, as far as the records show it."""
    found = [
        "A verdict speaks for the models, data and questions named beside it. The article's claims "
        "are about 13B models; where smaller ones were run, size is a difference left open.",
    ]
    records = [record for summary in summaries for record in summary.study.records]
    rates = {r.run.learning_rate_source for r in records if r.run.method.kind.trains}
    if any("not tuned" in source for source in rates):
        found.append("Some learning rates are the method's defaults and not tuned: a method may "
                     "look worse for its rate alone.")  # fmt: skip
    if any(record.environment.concurrent_runs > 1 for record in records):
        found.append("Some runs shared the machine with others at the time: their seconds are not "
                     "those of a machine of their own.")  # fmt: skip
    if any(record.environment.git_dirty for record in records):
        found.append("Some runs were made from code with changes that no commit holds.")
    if all(not record.environment.devices for record in records):
        found.append("No run used a card: memory is the process's host memory, energy and card "
                     "memory were not measured.")  # fmt: skip
    if any(r.train and r.train.resumed_at_steps for r in records):
        found.append("Some runs were interrupted and resumed from a checkpoint (see the runs).")
    seeds = {len(row.complete) for s in summaries for c in s.comparisons for row in c.rows
             if row.method.kind.trains}  # fmt: skip
    if seeds and min(seeds) < 3:
        found.append("Some methods have fewer than three complete seeds: their intervals say "
                     "little or nothing of what another seed would give.")  # fmt: skip
    return found
