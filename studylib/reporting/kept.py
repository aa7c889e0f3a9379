"""What each method keeps of full fine-tuning's gain over the base, and at what memory.

The gain is in the first measure on held-out examples, by which the learning rates were chosen; in
right answers where there is none. Nothing is kept of a gain that is not clear of zero.

Not covered: words (studylib.reporting.team_advice), the picture (studylib.reporting.decision).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from studylib.reporting.capacity import is_capacity
from studylib.reporting.evidence_kinds import kind_of_model, rank_learning
from studylib.reporting.measure_tables import first_measure
from studylib.reporting.memory_grid import is_grid
from studylib.reporting.ranking import ranked_rows
from studylib.reporting.summary import Comparison, Row, Summary
from studylib.schema.methods import WHOLE
from studylib.schema.settings import MethodSettings


@dataclass(frozen=True)
class KeptGain:
    """One method of a comparison: the share of full's gain (1 is all) with its 95 % interval, over
    how many seeds, and its peak memory of training as a share of full's, None where either was not
    measured."""

    method: MethodSettings
    share: float
    low: float
    high: float
    seeds: int
    memory: float | None

    @property
    def is_full(self) -> bool:
        return self.method.name == WHOLE


def kept_of_gain(comparison: Comparison, row: Row) -> tuple[float, float, float, int] | None:
    """A method's share of full fine-tuning's gain, with its ends and the seeds that it rests on;
    None where full has no clear gain.

    Of right answers the interval is the paired gap's, over full's gain taken as known: a gain that
    is clear of zero by far makes its own error small beside it.
    """
    if measured := first_measure(comparison):
        share = next((f.share for f in measured if f.label == row.label), None)
        improved = any(
            min(f.gain.low * f.measure.sign, f.gain.high * f.measure.sign) > 0
            for f in measured
            if f.method == WHOLE and f.gain
        )
        if share is None or not improved:
            return None
        return share.value, share.low, share.high, share.seeds
    full = comparison.row(WHOLE)
    if row.gap is None or full is None or full.gain is None or full.gain.low <= 0:
        return None
    ends = (row.gap.value, row.gap.low, row.gap.high)
    value, low, high = (1 + end / full.gain.value for end in ends)
    return value, low, high, row.gap.seeds


def read_kept(comparison: Comparison) -> list[KeptGain]:
    """Full fine-tuning and every method of which a share is known; empty without such a method."""
    full = comparison.row(WHOLE)
    if full is None or kind_of_model(comparison.model) == "random":
        return []
    found = [
        KeptGain(row.method, *share, memory_share(comparison, row, full))
        for row in comparison.rows
        if row.method.kind.trains and row.method.name != WHOLE
        if (share := kept_of_gain(comparison, row)) is not None
    ]
    seeds = min((one.seeds for one in found), default=0)
    return [KeptGain(full.method, 1.0, 1.0, 1.0, seeds, 1.0), *found] if found else []


def memory_share(comparison: Comparison, row: Row, full: Row) -> float | None:
    key = (comparison.memory_kind, "train")
    ours, theirs = row.memory.get(key), full.memory.get(key)
    return ours.value / theirs.value if ours and theirs and theirs.value else None


def is_pretrained(summary: Summary) -> bool:
    """Whether a study trained a pretrained model: it then comes before the toys'."""
    return any(kind_of_model(c.model) == "pretrained" for c in summary.comparisons)


def is_toy(summary: Summary) -> bool:
    """Whether toy models alone were trained: beside others they take less room."""
    return all(kind_of_model(c.model) == "toy" for c in summary.comparisons)


def best_evidence(studies: Iterable[Summary]) -> list[Comparison]:
    """The comparisons that say most of what methods learn: of the best kind of model, the largest,
    one a track, in the order of the tracks. Pretrained models come before toys. Of many methods the
    article's speak: whether another is better, their ranking tells."""
    able = [
        c
        for summary in studies
        if summary.study.card is None and not is_capacity(summary) and not is_grid(summary)
        for c in summary.comparisons
        if read_kept(c)
    ]
    if not able:
        return []
    best = max(rank_learning(c.model, c.total_params) for c in able)
    found = [c for c in able if rank_learning(c.model, c.total_params) == best]
    return [with_article_methods(c) if ranked_rows(c) else c for c in found]


def with_article_methods(comparison: Comparison) -> Comparison:
    rows = (row for row in comparison.rows if not row.method.kind.trains or row.method.kind.article)
    return replace(comparison, rows=tuple(rows))
