"""The report's tables: as Markdown for reading and as csv for calculating.

A cell is a figure with its interval or a word (not measured, out of memory, not run). The csv files
hold the unrounded figures, one a line, with the way in which each was got.

Not covered: aggregating (studylib.summary), the claims (studylib.claims) and prose.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from studylib import stats
from studylib.claims import Finding, read_claims
from studylib.costs import dollars
from studylib.metrics import METRICS, MISSING, percent, plain_number, points
from studylib.profile import RunSpec
from studylib.records import Record
from studylib.summary import MEMORY, STAGES, Comparison, Row, Spread, Summary
from studylib.verdicts import Rule, parse_rule

NOT_RUN = "not run"
NOT_TRAINED = "not trained"


@dataclass(frozen=True)
class Table:
    """A header and rows of text, all of one length."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join("| " + " | ".join(escape(c) for c in row) + " |" for row in lines)


def escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def write_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Bytes of a csv file: None is empty, floats have 7 significant figures."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{c:.7g}" if isinstance(c, float) else "" if c is None else c
                         for c in row])  # fmt: skip
    return text.getvalue().encode()


# Cells --------------------------------------------------------------------------------------------


def spread_cell(key: str, spread: Spread | None) -> str:
    """Median (or peak) with the range over seeds where it shows."""
    metric = METRICS[key]
    if spread is None:
        return MISSING
    value, low, high = (metric.number(x) for x in (spread.value, spread.low, spread.high))
    return value if low == high else f"{value} ({low}–{high})"


def accuracy_cell(row: Row) -> str:
    """Accuracy ± half of its interval (items × seeds)."""
    estimate = row.accuracy
    if estimate is None:
        return row.status or MISSING
    count = f"{estimate.items:,}"
    count += f" × {estimate.seeds} seeds" if estimate.seeds > 1 else ""
    return f"{interval_cell(estimate, signed=False)} (n={count})"


def interval_cell(estimate: stats.Estimate | None, signed: bool = True) -> str:
    """value ± half-width, or value [low, high] where the interval is not symmetric."""
    if estimate is None:
        return MISSING
    show = points if signed else percent
    up, down = estimate.high - estimate.value, estimate.value - estimate.low
    if abs(up - down) < 5e-4:
        return f"{show(estimate.value)} ± {percent(up)}"
    return f"{show(estimate.value)} [{show(estimate.low)}, {show(estimate.high)}]"


def record_link(comparison: Comparison, record: Record) -> str:
    name = f"s{record.run.seed}" if record.run.method.kind.trains else "base"
    return f"[{name}]({run_path(comparison.study.link, record.run_id)}/record.json)"


def run_path(link: str, run_id: str) -> str:
    return "/".join(part for part in (link, "runs", run_id) if part)


def record_links(comparison: Comparison, row: Row) -> str:
    return " ".join(record_link(comparison, record) for record in row.records)


def method_cell(row: Row) -> str:
    return f"{row.method.label} — {row.status}" if row.status else row.method.label


def cost_cell(row: Row, brief: bool = False) -> str:
    """Dollars at the median price, and from the cheapest to the dearest offer."""
    if not row.method.kind.trains:
        return NOT_TRAINED
    spread, price = row.figures.get("cost_usd"), row.price
    if spread is None or price is None:
        return "no price stated"
    if brief:
        return METRICS["cost_usd"].number(spread.value)
    if price.single:
        return spread_cell("cost_usd", spread)
    seconds = row.figures["train_seconds"].value
    ends = (plain_number(dollars(seconds, hour), 3) for hour in (price.cheapest, price.dearest))
    return f"{METRICS['cost_usd'].number(spread.value)} ({'–'.join(ends)})"


def trained_cell(row: Row, key: str) -> str:
    if not row.method.kind.trains:
        return NOT_TRAINED
    return spread_cell(key, row.figures.get(key)) if row.complete else row.status


def trainable_cell(row: Row) -> str:
    count, share = (row.figures.get(f"trainable_{what}") for what in ("params", "share"))
    if count is None or share is None:
        return row.status or MISSING
    if not count.value:
        return "0"
    return f"{int(count.value):,} ({METRICS['trainable_share'].number(share.value)} %)"


def peak_cell(row: Row, kind: str, stage: str) -> str:
    if stage == "train" and not row.method.kind.trains:
        return NOT_TRAINED
    return spread_cell(f"{stage}_peak_bytes", row.memory.get((kind, stage)))


# Tables of one track ------------------------------------------------------------------------------


def headline_table(comparisons: Sequence[Comparison]) -> Table:
    """Base and methods of every size of a track: what each takes and what it reaches."""
    kept = any(row.forgetting for c in comparisons for row in c.rows)
    keys = ["trainable_params", "train_peak_bytes", "clean_step_seconds", "end_to_end_seconds",
            "cost_usd", "accuracy", "gap", *(["forgetting"] if kept else []),
            "variant_bytes"]  # fmt: skip
    header = ("Model", "Method", *(METRICS[key].header for key in keys), "Records")
    rows = []
    for comparison in comparisons:
        for row in comparison.rows:
            cells = [headline_cell(comparison, row, key) for key in keys]
            rows.append((comparison.name, method_cell(row), *cells, record_links(comparison, row)))
        for label, words in missing_methods(comparison):
            rows.append((comparison.name, label, *("—" for _ in keys), words))
    return Table(header, tuple(rows))


def headline_cell(comparison: Comparison, row: Row, key: str) -> str:
    trains = row.method.kind.trains
    if key == "train_peak_bytes":
        return peak_cell(row, comparison.memory_kind, "train")
    if key == "cost_usd":
        return cost_cell(row, brief=True) if row.complete else row.status
    if key == "accuracy":
        return accuracy_cell(row)
    if key == "gap":
        reference = "reference" if row.method.name == "full" else interval_cell(row.gap)
        return reference if trains else NOT_TRAINED
    if key == "forgetting":
        return interval_cell(row.forgetting) if trains else "reference"
    if key == "trainable_params":
        return trainable_cell(row)
    spread = row.figures.get(key)
    if key == "clean_step_seconds" and not trains:
        return NOT_TRAINED
    if spread is None:
        return row.status or MISSING
    return METRICS[key].number(spread.value)  # its range stands in the table of times


def missing_methods(comparison: Comparison) -> list[tuple[str, str]]:
    """Planned runs without a record, by method: label, and the words for them."""
    groups: dict[str, list[RunSpec]] = {}
    for spec in comparison.missing:
        groups.setdefault(spec.method.label, []).append(spec)
    failed = comparison.study.failed
    found = []
    for label, specs in groups.items():
        words = []
        for spec in specs:
            name = f"s{spec.seed}" if spec.method.kind.trains else "base"
            end = f"failed ({failed[spec.run_id]})" if spec.run_id in failed else NOT_RUN
            words.append(f"{name} {end}")
        found.append((label, ", ".join(words)))
    return found


def memory_table(comparisons: Sequence[Comparison]) -> Table:
    """Peaks by stage, every measure that at least one run has."""
    header = ("Model", "Method", "Measure", *(METRICS[f"{s}_peak_bytes"].header for s in STAGES))
    rows = []
    for comparison in comparisons:
        for row in comparison.rows:
            for kind, label in MEMORY.items():
                if any((kind, stage) in row.memory for stage in STAGES):
                    cells = [peak_cell(row, kind, stage) for stage in STAGES]
                    rows.append((comparison.name, method_cell(row), label, *cells))
    return Table(header, tuple(rows))


def time_table(comparisons: Sequence[Comparison]) -> Table:
    """Clean step, tokens, training, end to end, energy and cost."""
    keys = ["clean_step_seconds", "tokens_per_second", "train_seconds", "end_to_end_seconds"]
    if any("energy_watt_hours" in row.figures for c in comparisons for row in c.rows):
        keys.append("energy_watt_hours")
    header = ("Model", "Method", *(METRICS[key].header for key in keys), METRICS["cost_usd"].header)
    rows = []
    for comparison in comparisons:
        for row in comparison.rows:
            if not row.complete:
                continue
            cells = [
                spread_cell(key, row.figures.get(key))
                if key == "end_to_end_seconds"
                else trained_cell(row, key)
                for key in keys
            ]
            rows.append((comparison.name, row.method.label, *cells, cost_cell(row)))
    return Table(header, tuple(rows))


def gap_table(comparisons: Sequence[Comparison]) -> Table:
    """The paired differences: what they are, how sure, and what these data could have shown."""
    header = ("Model", "Method", METRICS["gap"].header, "Standard error, items / seeds (pp)",
              "p (Holm)", "Only this / only full right", "McNemar p",
              "Equivalent within", "Smallest gap these data show (pp)")  # fmt: skip
    rows = []
    for comparison in comparisons:
        for row in comparison.rows:
            if row.gap is not None:
                rows.append((comparison.name, row.method.label, *difference_cells(row, row.gap)))
    return Table(header, tuple(rows))


def accuracy_table(comparisons: Sequence[Comparison]) -> Table:
    """Micro and macro means, which weights were scored, and the gain over the base."""
    header = ("Model", "Method", "Scored on", "Micro mean (%) ↑", "Macro mean (%) ↑",
              METRICS["gain"].header, "Told from chance")  # fmt: skip
    rows = []
    for comparison in comparisons:
        for row in comparison.rows:
            if row.accuracy is None or row.chance is None:
                continue
            chance = percent(row.chance.chance)
            rows.append((
                comparison.name, row.method.label, row.weights or MISSING,
                interval_cell(row.accuracy, signed=False),
                interval_cell(row.macro, signed=False) if row.macro else "one subject",
                interval_cell(row.gain) if row.method.kind.trains else "reference",
                f"yes ({chance} %)" if row.above_chance else f"no ({chance} %)",
            ))  # fmt: skip
    return Table(header, tuple(rows))


def difference_cells(row: Row, gap: stats.Estimate) -> tuple[str, ...]:
    test, detectable = row.mcnemar, row.detectable
    return (
        interval_cell(gap),
        f"{percent(gap.item_se)} / "
        + ("one seed" if gap.seed_se is None else percent(gap.seed_se)),
        MISSING if row.gap_p_holm is None else p_value(row.gap_p_holm),
        f"{test.only_method} / {test.only_reference}" if test else MISSING,
        p_value(test.p_value) if test else MISSING,
        equivalence_cell(row),
        MISSING if detectable is None else percent(detectable),
    )


def equivalence_cell(row: Row) -> str:
    """Whether two one-sided tests put the gap within the article's largest for the method."""
    rule = article_rule(row.method.name)
    if rule is None or row.gap is None:
        return "no margin claimed"
    test = stats.judge_equivalence(row.gap, rule.high / 100)
    shown = "yes" if test.equivalent else "not shown"
    return f"±{rule.high:g} pp: {shown} (p {p_value(test.p_value)})"


def article_rule(method: str) -> Rule | None:
    """The rule by which the article's gap of a method is judged (C4), in points behind full."""
    parts = read_claims()["C4"]["parts"]
    return next((parse_rule(part["rule"]) for part in parts if part["key"] == method), None)


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# Claims and sides ---------------------------------------------------------------------------------


def claims_table(findings: Iterable[Finding]) -> Table:
    """Claim by claim: the article's figure, ours, how it was got, the verdict and why."""
    header = ("Claim", "Article", "Ours", "How it was got", "Verdict", "Decided by")
    rows, last = [], ""
    for found in findings:
        name = f"**{found.claim}** {found.topic}" if found.claim != last else ""
        last = found.claim
        verdict = f"**{found.verdict}**" if found.decided_by else found.verdict
        rows.append((name, found.article, found.ours, found.how, verdict,
                     found.decided_by or "—"))  # fmt: skip
    return Table(header, tuple(rows))


def rules_table(findings: Iterable[Finding]) -> Table:
    """The rule of each part of a claim, once."""
    rows = dict.fromkeys((f.claim, f.article, f.rule) for f in findings)
    return Table(("Claim", "Article", "Rule"), tuple(rows))


def side_by_side_table(own: Summary, reference: Summary) -> Table | None:
    """The reader's figures beside the reference's for rows that both have; None if there are none.

    The last column names shared fields that differ: such rows differ in more than the machine.
    """
    keys = ("accuracy", "gap", "clean_step_seconds", "train_seconds", "train_peak_bytes")
    header = ("Track", "Model", "Method", *(METRICS[key].header for key in keys),
              "Differs in")  # fmt: skip
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
            cells = [
                f"**{headline_or_time(comparison, row, key)}** / {headline_or_time(*other, key)}"
                for key in keys
            ]
            rows.append((comparison.track, comparison.name, row.method.label, *cells,
                         differing_fields(row, other[1])))  # fmt: skip
    return Table(header, tuple(rows)) if rows else None


def headline_or_time(comparison: Comparison, row: Row, key: str) -> str:
    if key == "train_seconds":
        return trained_cell(row, key)
    return headline_cell(comparison, row, key)


def differing_fields(own: Row, other: Row) -> str:
    from studylib.records import find_mismatches
    from studylib.study import PER_SEED_FIELDS

    pair = (own.complete[0], other.complete[0])
    fields = [f for f in find_mismatches(pair) if f not in PER_SEED_FIELDS]
    return ", ".join(fields) or "nothing that must be shared"


# Csv ----------------------------------------------------------------------------------------------


def comparison_csv(summary: Summary) -> bytes:
    """Every figure of every row, one a line, unrounded."""
    header = ("track", "model", "method", "metric", "unit", "value", "low", "high", "runs", "got",
              "memory")  # fmt: skip
    rows: list[tuple] = []
    for comparison in summary.comparisons:
        for row in comparison.rows:
            name = (comparison.track, comparison.name, row.method.slug)
            for key, spread in row.figures.items():
                got = "counted" if key.startswith("trainable") else "measured"
                rows.append((*name, key, base_unit(key), spread.value, spread.low, spread.high,
                             spread.runs, got, None))  # fmt: skip
            for (kind, stage), spread in row.memory.items():
                rows.append((*name, f"{stage}_peak_bytes", "bytes", spread.value, spread.low,
                             spread.high, spread.runs, "measured", MEMORY[kind]))  # fmt: skip
            for key in ("accuracy", "gain", "gap", "retention", "forgetting"):
                estimate = getattr(row, key)
                if estimate is not None:
                    rows.append((*name, key, "share", estimate.value, estimate.low, estimate.high,
                                 estimate.seeds, "measured", None))  # fmt: skip
    return write_csv(header, rows)


def base_unit(key: str) -> str:
    """The unit in which records hold a figure, as its name says."""
    for end in ("bytes", "seconds", "usd", "watt_hours", "share"):
        if key.endswith(end):
            return end
    return "tokens per second" if key == "tokens_per_second" else "count"


def claims_csv(findings: Iterable[Finding]) -> bytes:
    header = ("claim", "part", "article", "ours", "how", "verdict", "decided_by", "rule")
    rows = [[getattr(found, name) for name in header] for found in findings]
    return write_csv(header, rows)


def subjects_csv(summary: Summary) -> bytes:
    """Right answers by subject of every run."""
    rows = []
    for record in summary.study.records:
        for score in record.evaluate.scores if record.evaluate else ():
            rows += [(record.run_id, score.task, subject, n, right)
                     for subject, (n, right) in sorted(score.by_subject.items())]  # fmt: skip
    return write_csv(("run_id", "task", "subject", "questions", "correct"), rows)
