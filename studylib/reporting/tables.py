"""The report's tables, for reading: rows are methods, over their seeds.

Not covered: single cells (studylib.reporting.cells), csv files (studylib.reporting.exports) and
prose.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from studylib.core import stats
from studylib.core.metrics import METRICS, MISSING, percent
from studylib.reporting import measure_tables
from studylib.reporting.blocks import NAMED, Number, Table, around, cell_of, figures, named, words
from studylib.reporting.cells import (
    NOT_RUN,
    NOT_TRAINED,
    SHARED,
    absent,
    accuracy_cell,
    cost_cell,
    difference_cell,
    interval_cell,
    method_cell,
    p_value,
    peak_cell,
    spread_cell,
    trainable_cell,
    trained_cell,
)
from studylib.reporting.claims import Finding, article_rule
from studylib.reporting.comparable import SAME_FOR_ALL
from studylib.reporting.notes import judged_by_measure, not_run, shown_keys
from studylib.reporting.resources import MEMORY, STAGES, TIMED
from studylib.reporting.summary import Comparison, Row, Summary
from studylib.schema.differences import find_mismatches
from studylib.schema.measures import MEASURES
from studylib.schema.methods import WHOLE
from studylib.schema.tuning import TuneRecord

# Tables of one track ------------------------------------------------------------------------------


TAKEN = ("clean_step_seconds", "cost_usd", "variant_bytes")


def headline_table(comparisons: Sequence[Comparison], brief: bool = False) -> Table:
    """Base and methods of every size of a track: what each reaches and what it takes. brief: of
    what it takes only memory and trained weights."""
    rows_ = [row for c in comparisons for row in c.rows]
    judged = measure_tables.headline_heads(comparisons)
    keys = ["accuracy", "gap"] if not judged or any(row.accuracy for row in rows_) else []
    keys += ["forgetting"] if any(row.retention for row in rows_) else []
    keys += ["train_peak_bytes", *([] if brief else TAKEN), "trainable_params"]
    heads = judged | {key: METRICS[key].header for key in shown_keys(comparisons, keys)}
    keys = [*heads]
    header = (*NAMED, *figures(*heads.values()))
    rows = []
    for comparison in comparisons:
        for row in comparison.rows:
            cells = [headline_cell(comparison, row, key) for key in keys]
            rows.append((comparison.name, method_cell(row), *cells))
        for label, why in missing_methods(comparison):
            rows.append((comparison.name, f"{label} — {why}", *("—" for _ in keys)))
    return Table(header, tuple(rows))


def headline_cell(comparison: Comparison, row: Row, key: str) -> str:
    trains = row.method.kind.trains
    if key in measure_tables.JUDGED:
        shown = measure_tables.measured_headline_cell(comparison, row, key)
        return shown if row.complete else absent(row)
    if key == "train_peak_bytes":
        return peak_cell(row, comparison.memory_kind, "train")
    if key == "cost_usd":
        return cost_cell(row, brief=True) if row.complete else absent(row)
    if key == "accuracy":
        return accuracy_cell(row)
    if key == "trainable_params":
        return trainable_cell(row)
    if not trains and key in ("gap", "clean_step_seconds"):
        return NOT_TRAINED
    if (key, row.method.name) == ("gap", WHOLE) or (key == "forgetting" and not trains):
        return "reference"
    if key in ("gap", "forgetting"):
        return difference_cell(comparison, row, key)
    spread = row.figures.get(key)
    if spread is None:
        return SHARED if key in TIMED and row.shares_card else absent(row)
    return cell_of(spread.value, METRICS[key].number)  # its range stands in the table of times


def missing_methods(comparison: Comparison) -> list[tuple[str, str]]:
    """Planned runs without a record, by method: label, and the words for them. Seeds of a method
    that has a row are told below the table, unless they failed."""
    told, failed = not_run(comparison), comparison.study.failed
    found: dict[str, list[str]] = {}
    for spec in comparison.missing:
        if str(spec.seed) not in told.get(spec.method.label, ()):
            name = f"s{spec.seed}" if spec.method.kind.trains else "base"
            end = f"failed ({failed[spec.run_id]})" if spec.run_id in failed else NOT_RUN
            found.setdefault(spec.method.label, []).append(f"{name} {end}")
    return [(label, ", ".join(ends)) for label, ends in found.items()]


def memory_table(comparisons: Sequence[Comparison]) -> Table:
    """Peaks by stage, every measure that at least one run has."""
    header = (*NAMED, *words("Measure"),
              *figures(*(METRICS[f"{s}_peak_bytes"].header for s in STAGES)))  # fmt: skip
    rows = [
        (comparison.name, row.method.label, label,
         *(peak_cell(row, kind, stage) for stage in STAGES))
        for comparison in comparisons
        for row in comparison.rows
        for kind, label in MEMORY.items()
        if any((kind, stage) in row.memory for stage in STAGES)
    ]  # fmt: skip
    return Table(header, tuple(rows))


def time_table(comparisons: Sequence[Comparison]) -> Table:
    """Clean step and its parts, tokens, training, end to end, energy and cost.

    What no row has (utilisation where no datasheet is known, say) takes no column.
    """
    keys = ["clean_step_seconds", "tokens_per_second", "model_flops_per_token",
            "recomputed_flops_per_token", "model_flops_utilisation", "optimizer_share",
            "data_share", "train_seconds", "end_to_end_seconds", "energy_watt_hours"]  # fmt: skip
    found = {key for c in comparisons for row in c.rows for key, v in row.figures.items() if v.high}
    keys = [key for key in shown_keys(comparisons, keys) if key in found]
    cost = shown_keys(comparisons, ["cost_usd"])
    header = (*NAMED, *figures(*(METRICS[key].header for key in [*keys, *cost])))
    rows = [
        (comparison.name, row.method.label,
         *(spread_cell(key, row.figures.get(key))
           if key == "end_to_end_seconds" and not row.shares_card else trained_cell(row, key)
           for key in keys),
         *(cost_cell(row) for _ in cost))
        for comparison in comparisons
        for row in comparison.rows
        if row.complete
    ]  # fmt: skip
    return Table(header, tuple(rows))


def gap_table(comparisons: Sequence[Comparison]) -> Table:
    """The paired differences: what they are, how sure, and what these data could have shown."""
    header = (*NAMED, *figures(METRICS["gap"].header, "Standard error, items / seeds (pp)",
              "p (Holm)", "Only this / only full right", "McNemar p"),
              *words("Equivalent within"),
              *figures("Smallest gap these data show (pp)"))  # fmt: skip
    rows = [
        (comparison.name, row.label, *gap_cells(row, row.gap, comparison.track))
        for comparison in comparisons
        for row in comparison.scored
        if row.gap is not None
    ]
    return Table(header, tuple(rows))


def accuracy_table(comparisons: Sequence[Comparison]) -> Table:
    """Micro and macro means, which weights were scored, and the gain over the base."""
    header = (*NAMED, *words("Scored on"), *figures("Micro mean (%) ↑", "Macro mean (%) ↑",
              METRICS["gain"].header), *words("Better than guessing"))  # fmt: skip
    rows = [
        (comparison.name, row.label, row.weights or MISSING,
         interval_cell(row.accuracy, signed=False),
         interval_cell(row.macro, signed=False) if row.macro else "one subject",
         difference_cell(comparison, row, "gain") if row.method.kind.trains else "reference",
         f"{'yes' if row.above_chance else 'no'} ({percent(row.chance.chance)} %)")
        for comparison in comparisons
        for row in comparison.scored
        if row.accuracy and row.chance
    ]  # fmt: skip
    return Table(header, tuple(rows))


def gap_cells(row: Row, gap: stats.Estimate, track: str) -> tuple[str, ...]:
    test, detectable = row.mcnemar, row.detectable
    return (
        interval_cell(gap),
        Number(f"{percent(gap.item_se)} / "
               + ("one seed" if gap.seed_se is None else percent(gap.seed_se)), gap.item_se),
        MISSING if row.gap_p_holm is None else p_value(row.gap_p_holm),
        Number(f"{test.only_method} / {test.only_reference}", test.only_method)
        if test else MISSING,
        p_value(test.p_value) if test else MISSING,
        equivalence_cell(row, track),
        cell_of(detectable, percent),
    )  # fmt: skip


def equivalence_cell(row: Row, track: str) -> str:
    """Whether two one-sided tests put the gap within the article's largest for the method."""
    rule = article_rule(row.method.name, track)
    if rule is None or row.gap is None:
        return "no margin claimed"
    test = stats.judge_equivalence(row.gap, rule.high / 100)
    shown = "yes" if test.equivalent else "not shown"
    return f"±{rule.high:g} pp: {shown} (p {p_value(test.p_value)})"


def tuning_table(comparisons: Sequence[Comparison]) -> Table:
    """Each search for a learning rate: what was tried, what was chosen, and a best at the edge."""
    judged = ("Validation accuracy (%) ↑", "Questions", "Ahead of the next best (questions)")
    if judged_by_measure(comparisons):
        judged = ("On the validation part", "Examples or questions", "Ahead of the next best")
    header = (*NAMED, *words("Rates tried"), *figures("Chosen", *judged,
              "Dropped, also in the test"), *words("At the edge"))  # fmt: skip
    rows = []
    for comparison in comparisons:
        for sweep in comparison.sweeps:
            rates = ", ".join(f"{p.learning_rate:g}" + " (stopped early)" * bool(p.stopped)
                              for p in sweep.points)  # fmt: skip
            link = posixpath.join(comparison.study.link, "tune", f"{sweep.sweep_id}.json")
            name = (comparison.name, f"[{sweep.method}]({link})", rates)
            if all(point.is_out for point in sweep.points):
                rows.append((*name, "none: all diverged", MISSING, "—", "—", "—", "—"))
                continue
            best = sweep.best
            reached = cell_of(best.accuracy, percent)
            if best.value is not None:
                reached = Number(best.text(), best.value)
            rows.append((*name, cell_of(best.learning_rate, "{:g}".format), reached,
                         cell_of(best.questions), lead_of(sweep), cell_of(sweep.overlap_dropped),
                         "**yes**" if sweep.at_edge else "no"))  # fmt: skip
    return Table(header, tuple(rows))


def lead_of(sweep: TuneRecord) -> str:
    """By how much the chosen rate leads, and over which rate: right answers, or the measure."""
    others = [p for p in sweep.points if not p.is_out and p is not sweep.best]
    if not others:
        return "—"
    second = max(others, key=lambda p: p.merit)
    lead = sweep.best.merit - second.merit
    measure = sweep.best.measure
    text = f"{lead:.0f}" if measure is None else MEASURES[measure].text(lead)
    return Number(f"{text} (over {second.learning_rate:g})", lead)


# Claims and sides ---------------------------------------------------------------------------------


def claims_table(findings: Iterable[Finding]) -> Table:
    """A claim's findings: the article's figure, ours, how it was got, the verdict and why."""
    header = (named("Article"), *words("Ours", "How it was got", "Verdict", "Decided by"))
    rows, last = [], ""
    for found in findings:
        article = found.article if found.article != last else ""
        last = found.article
        verdict = f"**{found.verdict}**" if found.decided_by else found.verdict
        verdict += " (a toy model)" if found.is_toy else ""
        how = "; ".join((found.how, *found.cautions))
        rows.append((article, found.ours, how, verdict, found.decided_by or "—"))
    return Table(header, tuple(rows))


def side_by_side_table(own: Summary, reference: Summary) -> Table:
    """The reader's figures beside the reference's for rows that both have.

    The last column names shared fields that differ: such rows differ in more than the machine.
    """
    keys = ("accuracy", "gap", "clean_step_seconds", "train_seconds", "train_peak_bytes")
    header = (*words("Track"), *NAMED, *figures(*(METRICS[key].header for key in keys)),
              *words("Differs in"))  # fmt: skip
    theirs = {
        (c.track, c.model, str(row.method)): (c, row)
        for c in reference.comparisons
        for row in c.rows
    }
    rows = []
    for comparison in own.comparisons:
        for row in comparison.rows:
            other = theirs.get((comparison.track, comparison.model, str(row.method)))
            if other is None or not row.complete or not other[1].complete:
                continue
            pairs = [[trained_cell(r, key) if key == "train_seconds" else headline_cell(c, r, key)
                      for c, r in ((comparison, row), other)] for key in keys]  # fmt: skip
            cells = [around(f"**{ours}** / {its}", ours) for ours, its in pairs]
            apart = find_mismatches((row.complete[0], other[1].complete[0]))
            fields = ", ".join(field for field in apart if field in SAME_FOR_ALL)
            rows.append((comparison.track, comparison.name, row.method.label, *cells,
                         fields or "nothing that must be shared"))  # fmt: skip
    return Table(header, tuple(rows))
