"""A ranking of many methods: each beside tuned LoRA, by intervals that hold for all pairs at once.

For studies of six trained methods or more. What is judged is the first measure on held-out
examples, which chose the rates, turned so that more is better; right answers where there is none.

Not covered: words, tables and the picture (studylib.reporting.ranking_section), what the
rates made of it (studylib.reporting.ranking_section).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from studylib.core import stats
from studylib.core.all_pairs import Pair, compare_all
from studylib.core.stats import Estimate, Totals
from studylib.reporting.measure_tables import first_measure
from studylib.reporting.measured import HELD_OUT, RIGHT_ANSWERS, read_arms
from studylib.reporting.summary import Comparison, Row, right_answers
from studylib.schema.measures import Measure
from studylib.schema.methods import ADAPTER

MANY = 6  # trained methods from which on a comparison is a ranking


@dataclass(frozen=True)
class RankedMethod:
    """One method: what it scored (turned so that more is better), and less the reference's with
    its interval, None of the reference itself. memory: peak of training in bytes."""

    row: Row
    score: float
    gain: Estimate | None
    lead: Pair | None
    memory: float | None


@dataclass(frozen=True)
class Ranking:
    """Methods from the best to the worst. apart: how many pairs are told apart, of `pairs`. tuned:
    whether every rate came from a search of its own."""

    comparison: Comparison
    places: tuple[RankedMethod, ...]
    reference: Row
    measure: Measure
    pairs: int
    apart: int
    seeds_known: bool
    tuned: bool

    @property
    def unit(self) -> str:
        """Of a difference."""
        return "pp" if self.measure.is_share else self.measure.unit

    @property
    def others(self) -> list[tuple[RankedMethod, Pair]]:
        return [(place, place.lead) for place in self.places if place.lead is not None]

    @property
    def ahead(self) -> list[RankedMethod]:
        """What is told apart from the reference, and better."""
        return [place for place, lead in self.others if lead.low > 0]

    @property
    def behind(self) -> list[RankedMethod]:
        return [place for place, lead in self.others if lead.high < 0]

    def most(self, adapters: bool) -> tuple[RankedMethod, Pair] | None:
        """Who could be furthest ahead of the reference, by the upper ends of the intervals; of the
        adapters alone if so asked."""
        able = [o for o in self.others if not adapters or o[0].row.method.kind.adapter]
        return max(able, key=lambda other: other[1].high, default=None)

    @property
    def frontier(self) -> list[RankedMethod]:
        """Methods than which none scores as much with less memory, from the cheapest."""
        known = [place for place in self.places if place.memory is not None]
        kept: list[RankedMethod] = []
        for place in sorted(known, key=lambda p: (p.memory, -p.score)):
            if not kept or place.score > kept[-1].score:
                kept.append(place)
        return kept


def rank_methods(comparison: Comparison) -> Ranking | None:
    """The ranking of a comparison; None of few methods, or without LoRA as it comes."""
    rows = ranked_rows(comparison)
    if (reference := find_reference(rows)) is None:
        return None
    found = first_measure(comparison)
    asked = all(row.accuracy is not None for row in rows)
    if not asked and not found:
        return None
    measure = found[0].measure if found else RIGHT_ANSWERS
    totals = [read_totals(comparison, row, measure) for row in rows]
    pairs = compare_all(totals, shares=measure.is_share)
    gains = {f.label: f.gain for f in found}
    kind = (comparison.memory_kind, "train")
    at, places = rows.index(reference), []
    for i, (row, own) in enumerate(zip(rows, totals, strict=True)):
        spread = row.memory.get(kind)
        places.append(RankedMethod(
            row, float(own.scores.mean(0).sum() / own.sizes.sum()),
            gains.get(row.label) if found else row.gain,
            None if i == at else pairs.between(i, at), spread.value if spread else None,
        ))  # fmt: skip
    runs = [record.run for row in rows for record in row.complete]
    return Ranking(
        comparison=comparison,
        places=tuple(sorted(places, key=lambda place: -place.score)),
        reference=reference,
        measure=measure,
        pairs=len(pairs.pairs),
        apart=sum(pair.low > 0 or pair.high < 0 for pair in pairs.pairs),
        seeds_known=pairs.seeds_known,
        tuned=all(run.learning_rate_source.startswith("tuned") for run in runs),
    )


def ranked_rows(comparison: Comparison) -> list[Row]:
    """The trained methods of a comparison of many; none of few, or without LoRA as it comes."""
    rows = [row for row in comparison.rows if row.method.kind.trains and row.complete]
    return rows if len(rows) >= MANY and find_reference(rows) else []


def find_reference(rows: list[Row]) -> Row | None:
    """LoRA as it comes: of several ranks the one that most of the others have, else the highest."""
    ranks = [row.method.rank or 0 for row in rows]
    able = [row for row in rows if row.method.name == ADAPTER]
    return max(
        able, key=lambda r: (ranks.count(r.method.rank or 0), r.method.rank or 0), default=None
    )


def read_totals(comparison: Comparison, row: Row, measure: Measure) -> Totals:
    """What a row's runs scored by subject, or by group of held-out examples."""
    study = comparison.study
    if measure is RIGHT_ANSWERS:
        answers = right_answers(study, list(row.records), str(row.weights))["questions"]
        return stats.sum_subjects(answers.correct, answers.clusters)
    arm = read_arms(study, row.label, list(row.records))[0]
    items = arm.items(HELD_OUT, measure)
    assert items is not None  # it has a figure in `measured`
    totals = items.grouped()
    return Totals(measure.sign * totals.scores, totals.sizes, totals.names, totals.items)


def rankings(comparisons: Iterable[Comparison]) -> list[Ranking]:
    return [ranking for ranking in map(rank_methods, comparisons) if ranking is not None]
