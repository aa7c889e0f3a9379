"""From records to what is compared: one row a method, over its seeds, with intervals.

Resources are medians over seeds with their range (peaks: the largest). Accuracies and differences
are studylib.core.stats' estimates on the very same items. Only runs that share what must be shared
stand in one comparison (studylib.reporting.comparable).

Not covered: words and pictures (tables, figures, prose).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from studylib.core import stats
from studylib.reporting.comparable import Refusal, name_refusals, split_comparable
from studylib.reporting.evidence_kinds import short_name
from studylib.reporting.measured import MeasuredFigure, measure_all
from studylib.reporting.resources import Price, Spread, price_of, spread_figures, spread_memory
from studylib.reporting.study import RightAnswers, Study, gather_answers
from studylib.schema.methods import METHODS, UNTRAINED, WHOLE
from studylib.schema.profile import MethodSettings, RunSpec
from studylib.schema.records import Record
from studylib.schema.shared_card import runs_on_card
from studylib.schema.tuning import TuneRecord


@dataclass(frozen=True)
class Row:
    """One method in one comparison. Estimates are None where they were not measured.

    weights: which weights were scored. other_weights: a second row of the same runs, scored on
    other weights (a QLoRA adapter merged into 16 bits); it has estimates and no resources.
    judged: how many gaps of its table Holm's correction counts.
    """

    method: MethodSettings
    records: tuple[Record, ...]
    figures: dict[str, Spread]
    memory: dict[tuple[str, str], Spread]
    price: Price | None
    accuracy: stats.Estimate | None = None
    macro: stats.Estimate | None = None
    chance: stats.ChanceTest | None = None
    gain: stats.Estimate | None = None
    gap: stats.Estimate | None = None
    gap_p_holm: float | None = None
    judged: int = 1
    chance_p_holm: float | None = None
    mcnemar: stats.McNemar | None = None
    retention: stats.Estimate | None = None
    forgetting: stats.Estimate | None = None
    weights: str | None = None
    other_weights: bool = False

    @property
    def label(self) -> str:
        """The method's name, and on which other weights this row was scored."""
        if not self.other_weights:
            return self.method.label
        words = str(self.weights)
        return f"{self.method.label}, {'merged' if 'merged' in words else words}"

    @property
    def complete(self) -> list[Record]:
        return [record for record in self.records if record.complete]

    @property
    def status(self) -> str:
        """Empty where all runs are complete, else what the others ended in, in words."""
        ends = [record.status for record in self.records if not record.complete]
        if len(self.records) == 1:
            return "".join(ends)
        every = len(self.records)
        return "; ".join(f"{end} ({ends.count(end)} of {every} runs)" for end in sorted(set(ends)))

    @property
    def shares_card(self) -> bool:
        """Whether all of its complete runs shared a card, so that no clock speaks of it."""
        return bool(self.complete) and all(runs_on_card(r) > 1 for r in self.complete)

    @property
    def above_chance(self) -> bool:
        """Whether the accuracy can be told from guessing, all rows of the table considered."""
        return self.chance_p_holm is not None and self.chance_p_holm <= 0.05

    @property
    def settled(self) -> bool:
        """Whether the gap to full is clear of zero, the number of methods considered."""
        return self.gap_p_holm is not None and self.gap_p_holm <= 0.05

    @property
    def detectable(self) -> float | None:
        """Smallest true gap to full that runs like these find 8 times in 10, a share.

        At the first step of Holm's correction, by which a gap is told from zero: another row that
        shows nothing cannot hide it.
        """
        if self.gap is None:
            return None
        return stats.detectable_difference(self.gap.se, self.gap.df, alpha=0.05 / self.judged)


@dataclass(frozen=True)
class Comparison:
    """Rows that may be compared: one track, one model, one set of shared values.

    rows: one a method. also: the same methods scored on other weights.
    """

    study: Study
    track: str
    model: str
    mark: str
    rows: tuple[Row, ...]
    missing: tuple[RunSpec, ...] = ()
    also: tuple[Row, ...] = ()

    @property
    def scored(self) -> list[Row]:
        """Every row with answers of its own: each method's, then the same on other weights."""
        return [
            found
            for row in self.rows
            for found in (row, *(other for other in self.also if other.method == row.method))
        ]

    def row(self, name: str) -> Row | None:
        """The first row of a method's name."""
        return next((row for row in self.rows if row.method.name == name), None)

    @cached_property
    def memory_kind(self) -> str:
        """The measure that all complete runs have and that is nearest to what one rents."""
        trained = [r for r in self.rows if r.complete and r.method.kind.trains]
        for kind in ("nvml_peak_bytes", "torch_peak_reserved_bytes", "live_tensor_peak_bytes"):
            if trained and all((kind, "train") in row.memory for row in trained):
                return kind
        return "host_peak_bytes"

    @cached_property
    def measured(self) -> list[MeasuredFigure]:
        """Every method's figures on held-out examples; empty where none was taken."""
        return measure_all(self.study, [(row.method.label, row.records) for row in self.rows])

    @property
    def total_params(self) -> int | None:
        """Parameters of the untouched model."""
        return untouched_params(record for row in self.rows for record in row.records)

    @property
    def sweeps(self) -> list[TuneRecord]:
        """The searches for learning rates of this track and model."""
        own = (self.track, self.model)
        return [sweep for sweep in self.study.sweeps if (sweep.track, sweep.model) == own]

    @property
    def name(self) -> str:
        """The model in few words, and its mark."""
        return " ".join(x for x in (short_name(self.model), self.mark) if x)

    @property
    def above_chance(self) -> bool:
        """Whether any row's accuracy can be told from guessing."""
        return any(row.above_chance for row in self.rows)


@dataclass(frozen=True)
class Summary:
    """A study, aggregated."""

    study: Study
    comparisons: tuple[Comparison, ...]
    refusals: tuple[Refusal, ...] = field(default=())

    @property
    def tracks(self) -> dict[str, list[Comparison]]:
        """Track -> its comparisons, in the order in which they come."""
        found: dict[str, list[Comparison]] = {}
        for comparison in self.comparisons:
            found.setdefault(comparison.track, []).append(comparison)
        return found


def summarise_study(study: Study) -> Summary:
    """Aggregate a study's records, whatever their order."""
    comparisons, refusals = [], []
    for track, model in order_groups(study):
        group = [r for r in study.records if (r.run.track, r.run.model) == (track, model)]
        missing = tuple(s for s in study.missing if (s.track, s.model) == (track, model))
        refusals += name_refusals(track, model, group)
        sets = split_comparable(group)
        for i, members in enumerate(sets):
            mark = f"(set {i + 1} of {len(sets)})" if len(sets) > 1 else ""
            built = build_rows(study, members)
            rows = tuple(row for row in built if not row.other_weights)
            also = tuple(row for row in built if row.other_weights)
            left = missing if i == 0 else ()
            comparisons.append(Comparison(study, track, model, mark, rows, left, also))
    return Summary(study, tuple(comparisons), tuple(refusals))


def order_groups(study: Study) -> list[tuple[str, str]]:
    """Tracks (main first), then models by size, then by name."""
    sizes: dict[tuple[str, str], int] = {}
    for record in study.records:
        key = (record.run.track, record.run.model)
        sizes[key] = sizes.get(key) or untouched_params([record]) or 0
    return sorted(sizes, key=lambda key: (key[0] != "main", key[0], sizes[key], key[1]))


def method_order(method: MethodSettings) -> tuple[int, int, str]:
    return (list(METHODS).index(method.name), method.rank or 0, str(method))


def build_rows(study: Study, records: Iterable[Record]) -> tuple[Row, ...]:
    """One row a method and set of weights, in the order of the table of methods, with differences.

    What a method was scored on first is its row; whatever else it was scored on follows.
    """
    groups: dict[MethodSettings, list[Record]] = {}
    for record in records:
        groups.setdefault(record.run.method, []).append(record)
    methods = sorted(groups, key=method_order)
    weights = {m: scored_weights(groups[m]) for m in methods}
    answers = {(m, w): right_answers(study, groups[m], w) for m in methods for w in weights[m] if w}
    first = {m.name: answers.get((m, weights[m][0]), {}) for m in reversed(methods)}
    base, full = (first.get(name, {}) for name in (UNTRAINED, WHOLE))
    total = untouched_params(record for m in methods for record in groups[m])
    rows = []
    for m in methods:
        main, *others = weights[m]
        rows.append(build_row(m, groups[m], total))
        rows[-1] = with_answers(rows[-1], main, answers.get((m, main), {}), base, full)
        empty = Row(m, rows[-1].records, {}, {}, None, other_weights=True)
        rows += [with_answers(empty, w, answers[m, w], base, full) for w in others]
    return tuple(with_holm(rows))


def scored_weights(records: Iterable[Record]) -> list[str]:
    """The weights that a method's complete runs were scored on, as they come; never empty."""
    blocks = [r.evaluate for r in records if r.complete and r.evaluate]
    return list(dict.fromkeys(score.weights for b in blocks for score in b.scores)) or [""]


def untouched_params(records: Iterable[Record]) -> int | None:
    """Parameters of the model itself: an adapter's are on top of them."""
    for record in records:
        if record.load:
            added = record.load.trainable_params if record.run.method.kind.adapter else 0
            return record.load.total_params - added
    return None


def right_answers(study: Study, records: list[Record], weights: str) -> dict[str, RightAnswers]:
    """Answers of a method's complete runs by task, seeds in order, on one set of weights."""
    complete = sorted((r for r in records if r.complete), key=lambda r: r.run.seed)
    asked = study.items(complete)
    found = {t: gather_answers(asked, t, weights) for t in ("questions", "retention")}
    return {task: answers for task, answers in found.items() if answers is not None}


def build_row(method: MethodSettings, records: list[Record], total_params: int | None) -> Row:
    """What a method took; its answers are not in yet."""
    ordered = sorted(records, key=lambda r: r.run.seed)
    complete = [r for r in ordered if r.complete]
    return Row(
        method=method,
        records=tuple(ordered),
        figures=spread_figures(complete, total_params),
        memory=spread_memory(records),
        price=next((p for r in complete if (p := price_of(r))), None),
    )


def with_answers(
    row: Row,
    weights: str,
    answers: dict[str, RightAnswers],
    base: dict[str, RightAnswers],
    full: dict[str, RightAnswers],
) -> Row:
    """The row with its accuracy and differences on one set of weights."""
    found: dict[str, Any] = {}
    fixed = not row.method.kind.trains
    asked, kept = answers.get("questions"), answers.get("retention")
    if asked is not None:
        found["weights"] = weights
        found["accuracy"] = stats.measure_accuracy(asked.correct, asked.clusters, fixed=fixed)
        if asked.clusters is not None:
            found["macro"] = stats.measure_accuracy(
                asked.correct, asked.subjects, "macro", fixed=fixed
            )
        scores = (s for r in row.complete if r.evaluate for s in r.evaluate.scores)
        asked_so = ("questions", weights)
        chance = next(s.chance for s in scores if (s.task, s.weights) == asked_so)
        found["chance"] = stats.compare_to_chance(asked.correct, asked.clusters, chance)
        if not fixed:
            found["gain"] = difference(asked, base.get("questions"), reference_fixed=True)
        theirs = full.get("questions")
        if theirs is not None and row.method.name != WHOLE and not fixed:
            found["gap"] = difference(asked, theirs)
            seeds = min(len(asked.correct), len(theirs.correct))
            found["mcnemar"] = stats.exact_mcnemar(asked.correct[:seeds], theirs.correct[:seeds])
    if kept is not None:
        found["retention"] = stats.measure_accuracy(kept.correct, kept.clusters, fixed=fixed)
        if not fixed:
            found["forgetting"] = difference(kept, base.get("retention"), reference_fixed=True)
    return replace(row, **found)


def difference(
    ours: RightAnswers, theirs: RightAnswers | None, reference_fixed: bool = False
) -> stats.Estimate | None:
    if theirs is None:
        return None
    return stats.compare_methods(
        ours.correct, theirs.correct, ours.clusters, reference_fixed=reference_fixed
    )


def with_holm(rows: list[Row]) -> list[Row]:
    """P-values of gaps and of chance, corrected for how many methods are judged in this table."""
    gaps = {i: row.gap.p_value for i, row in enumerate(rows) if row.gap}
    chances = {
        i: max(row.chance.binomial_p, row.chance.clustered_p)
        for i, row in enumerate(rows)
        if row.chance
    }
    gaps, chances = (
        dict(zip(values, stats.adjust_holm([*values.values()]).tolist(), strict=True))
        for values in (gaps, chances)
    )
    return [
        replace(row, gap_p_holm=gaps.get(i), chance_p_holm=chances.get(i), judged=max(len(gaps), 1))
        for i, row in enumerate(rows)
    ]
