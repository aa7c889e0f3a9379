"""From records to what is compared: one row a method, over its seeds, with intervals.

Resources are medians over seeds with their range (peaks: the largest). Accuracies and differences
are studylib.stats' estimates on the very same items. Only runs that share what must be shared
stand in one comparison (studylib.comparable).

Not covered: words and pictures (tables, figures, prose).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd

from studylib import stats
from studylib.comparable import Refusal, name_refusals, split_comparable
from studylib.costs import Price, price_of
from studylib.profile import METHODS, MethodSettings, ModelRef, RunSpec
from studylib.records import Record
from studylib.resources import Spread, spread_figures, spread_memory
from studylib.study import Answers, Study, gather_answers
from studylib.tuning import TuneRecord


@dataclass(frozen=True)
class Row:
    """One method in one comparison. Estimates are None where they were not measured."""

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
    chance_p_holm: float | None = None
    mcnemar: stats.McNemar | None = None
    retention: stats.Estimate | None = None
    forgetting: stats.Estimate | None = None
    weights: str | None = None

    @property
    def complete(self) -> list[Record]:
        return [record for record in self.records if record.complete]

    @property
    def status(self) -> str:
        """Empty where all runs are complete, else what the others ended in, in words."""
        ends = [record.status for record in self.records if not record.complete]
        words = []
        for end in sorted(set(ends)):
            share = f" ({ends.count(end)} of {len(self.records)} runs)"
            words.append(end + (share if len(self.records) > 1 else ""))
        return "; ".join(words)

    @property
    def above_chance(self) -> bool:
        """Whether the accuracy can be told from guessing, all rows of the table considered."""
        return self.chance_p_holm is not None and self.chance_p_holm <= 0.05

    @property
    def detectable(self) -> float | None:
        """Smallest true gap to full that runs like these find 8 times in 10, a share."""
        return None if self.gap is None else stats.detectable_difference(self.gap.se, self.gap.df)


@dataclass(frozen=True)
class Comparison:
    """Rows that may be compared: one track, one model, one set of shared values."""

    study: Study
    track: str
    model: str
    mark: str
    rows: tuple[Row, ...]
    missing: tuple[RunSpec, ...] = ()

    def row(self, name: str) -> Row | None:
        """The first row of a method's name."""
        return next((row for row in self.rows if row.method.name == name), None)

    @cached_property
    def memory_kind(self) -> str:
        """The measure that all complete runs have and that is nearest to what one rents."""
        for kind in ("nvml_peak_bytes", "torch_peak_reserved_bytes"):
            trained = [r for r in self.rows if r.complete and r.method.kind.trains]
            if trained and all((kind, "train") in row.memory for row in trained):
                return kind
        return "host_peak_bytes"

    @property
    def total_params(self) -> int | None:
        """Parameters of the untouched model."""
        return untouched_params(record for row in self.rows for record in row.records)

    @property
    def sweeps(self) -> list[TuneRecord]:
        """The searches for learning rates of this track and model."""
        return [
            sweep
            for sweep in self.study.sweeps
            if (sweep.track, sweep.model) == (self.track, self.model)
        ]

    @property
    def name(self) -> str:
        """The model in few words: a folder or hub name by its last part."""
        ref = ModelRef.parse(self.model)
        short = {"path": ref.slug, "hub": ref.name.rsplit("/", 1)[-1]}.get(ref.kind, str(ref))
        return " ".join(x for x in (short, self.mark) if x)

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
    def tracks(self) -> list[str]:
        return list(dict.fromkeys(c.track for c in self.comparisons))


def summarise(study: Study) -> Summary:
    """Aggregate a study's records, whatever their order."""
    comparisons, refusals = [], []
    for track, model in order_groups(study):
        group = [r for r in study.records if (r.run.track, r.run.model) == (track, model)]
        missing = tuple(s for s in study.missing if (s.track, s.model) == (track, model))
        refusals += name_refusals(track, model, group)
        sets = split_comparable(group)
        for i, members in enumerate(sets):
            mark = f"(set {i + 1} of {len(sets)})" if len(sets) > 1 else ""
            rows = build_rows(study, members)
            comparisons.append(
                Comparison(study, track, model, mark, rows, missing if i == 0 else ())
            )
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
    """One row a method, in the order of the table of methods, differences filled in."""
    groups: dict[MethodSettings, list[Record]] = {}
    for record in records:
        groups.setdefault(record.run.method, []).append(record)
    methods = sorted(groups, key=method_order)
    answers = {m: read_answers(study, groups[m]) for m in methods}
    base = next((answers[m] for m in methods if m.name == "base"), {})
    full = next((answers[m] for m in methods if m.name == "full"), {})
    total = untouched_params(record for m in methods for record in groups[m])
    rows = [build_row(m, groups[m], total, answers[m], base, full) for m in methods]
    return tuple(with_holm(rows))


def untouched_params(records: Iterable[Record]) -> int | None:
    """Parameters of the model itself: an adapter's are on top of them."""
    for record in records:
        if record.load:
            added = record.load.trainable_params if record.run.method.kind.adapter else 0
            return record.load.total_params - added
    return None


def read_answers(study: Study, records: list[Record]) -> dict[str, Answers]:
    """Answers of a method's complete runs by task, seeds in order."""
    complete = sorted((r for r in records if r.complete), key=lambda r: r.run.seed)
    frames = [frame for r in complete if isinstance(frame := study.items(r), pd.DataFrame)]
    found = {task: gather_answers(frames, task) for task in ("questions", "retention")}
    return {task: answers for task, answers in found.items() if answers is not None}


def build_row(
    method: MethodSettings,
    records: list[Record],
    total_params: int | None,
    answers: dict[str, Answers],
    base: dict[str, Answers],
    full: dict[str, Answers],
) -> Row:
    complete = sorted((r for r in records if r.complete), key=lambda r: r.run.seed)
    price = next((p for r in complete if (p := price_of(r))), None)
    row = {
        "method": method,
        "records": tuple(sorted(records, key=lambda r: r.run.seed)),
        "figures": spread_figures(complete, total_params),
        "memory": spread_memory(records),
        "price": price,
    }
    asked = answers.get("questions")
    if asked is not None:
        scores = [r.evaluate.score("questions") for r in complete if r.evaluate]
        score = next(s for s in scores if s is not None)
        fixed = not method.kind.trains
        row["weights"] = score.weights
        row["accuracy"] = stats.measure_accuracy(asked.correct, asked.clusters, fixed=fixed)
        row["macro"] = (
            stats.measure_accuracy(asked.correct, asked.subjects, "macro", fixed=fixed)
            if asked.clusters is not None
            else None
        )
        row["chance"] = stats.compare_to_chance(asked.correct, asked.clusters, score.chance)
        if not fixed:
            row["gain"] = difference(asked, base.get("questions"), reference_fixed=True)
        if method.name != "full" and not fixed:
            row["gap"] = difference(asked, full.get("questions"))
            row["mcnemar"] = paired_test(asked, full.get("questions"))
    kept = answers.get("retention")
    if kept is not None:
        row["retention"] = stats.measure_accuracy(
            kept.correct, kept.clusters, fixed=not method.kind.trains
        )
        if method.kind.trains:
            row["forgetting"] = difference(kept, base.get("retention"), reference_fixed=True)
    return Row(**row)  # type: ignore[arg-type]


def difference(
    ours: Answers, theirs: Answers | None, reference_fixed: bool = False
) -> stats.Estimate | None:
    if theirs is None:
        return None
    return stats.compare_methods(
        ours.correct, theirs.correct, ours.clusters, reference_fixed=reference_fixed
    )


def paired_test(ours: Answers, theirs: Answers | None) -> stats.McNemar | None:
    if theirs is None:
        return None
    seeds = min(len(ours.correct), len(theirs.correct))
    return stats.exact_mcnemar(ours.correct[:seeds], theirs.correct[:seeds])


def with_holm(rows: list[Row]) -> list[Row]:
    """P-values of gaps and of chance, corrected for how many methods are judged in this table."""
    gaps = {i: row.gap.p_value for i, row in enumerate(rows) if row.gap}
    chances = {
        i: max(row.chance.binomial_p, row.chance.clustered_p)
        for i, row in enumerate(rows)
        if row.chance
    }
    gaps, chances = (correct_values(values) for values in (gaps, chances))
    return [
        replace(row, gap_p_holm=gaps.get(i), chance_p_holm=chances.get(i))
        for i, row in enumerate(rows)
    ]


def correct_values(values: dict[int, float]) -> dict[int, float]:
    if not values:
        return {}
    return dict(zip(values, stats.adjust_holm(list(values.values())).tolist(), strict=True))
