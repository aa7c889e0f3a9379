"""Intervals and paired differences of any figure that is a sum over items over another sum.

Accuracy is such a figure (right answers over questions), and so are nats over tokens and bits over
bytes. Items that belong together (turns of a conversation, windows of a document) are resampled
together; differences are taken on the same items; seeds add their own part. The method and its
sources are those of studylib.core.stats, which this module applies to values other than 0 and 1.

Arrays: `sums` is [seeds, items], what stands above the line; `sizes` is [items], what stands below
it; `groups` is [items], or None where every item stands for itself.

Not covered: how an item is measured, and what a figure is called (studylib.schema.measures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from studylib.core import stats
from studylib.core.errors import StudyError
from studylib.core.stats import Estimate, Floats

SHARE, SHARE_GAP = (0.0, 1.0), (-1.0, 1.0)
ANY = (-np.inf, np.inf)
FEWEST_DRAWS = 2000


@dataclass(frozen=True)
class ItemScores:
    """What runs of one method gave on the same items. share: each item is 0 to 1, sizes are 1.

    fixed: the model was not trained here (base), so that seeds add no spread.
    """

    sums: Floats
    sizes: Floats
    groups: np.ndarray
    share: bool = False
    fixed: bool = False

    @classmethod
    def of(
        cls, sums: ArrayLike, sizes: ArrayLike, groups: ArrayLike | None = None,
        share: bool = False, fixed: bool = False,
    ) -> ItemScores:  # fmt: skip
        """Checked arrays; StudyError: shapes that do not fit, values that are no numbers, or
        fewer than two items."""
        top = np.atleast_2d(np.asarray(sums, dtype=np.float64))
        below = np.asarray(sizes, dtype=np.float64)
        labels = np.arange(top.shape[1]) if groups is None else np.asarray(groups)
        if below.shape != top.shape[1:] or labels.shape != below.shape:
            raise StudyError(top.shape, "one size and one group an item", "Align the items.")
        if len(below) < 2:
            raise StudyError(f"{len(below)} items", "an interval needs two", "Hold out more.")
        if not (np.isfinite(top).all() and (below > 0).all()):
            raise StudyError("an item", "sums are finite and sizes above zero", "Leave it out.")
        if len(set(labels.tolist())) < 2:
            labels = np.arange(len(below))  # one document alone: its parts are all there is
        return cls(top, below, labels, share, fixed)

    @classmethod
    def of_tables(cls, tables: Sequence[Any], measure: Any, fixed: bool) -> ItemScores:
        """What one method's runs gave for a figure: a table a run, of the same items in their
        order. measure: a row of studylib.schema.measures."""
        sums = np.stack([t[measure.column].to_numpy(dtype=float) for t in tables])
        first = tables[0]
        sizes = np.ones(len(first)) if measure.over is None else first[measure.over].to_numpy()
        share = measure.over is None
        return cls.of(sums * measure.factor, sizes, first["group"].to_numpy(), share, fixed)

    def grouped(self) -> stats.Totals:
        """Sums and sizes by group."""
        names, member = np.unique(self.groups, return_inverse=True)
        sizes: Floats = np.bincount(member, weights=self.sizes).astype(np.float64)
        scores: Floats = np.stack([np.bincount(member, weights=row) for row in self.sums])
        return stats.Totals(scores, sizes, tuple(map(str, names)), len(self.sizes))

    @property
    def value(self) -> float:
        """The figure: mean over seeds of sum over sum."""
        return float(self.sums.mean(0).sum() / self.sizes.sum())


def measure(items: ItemScores) -> Estimate:
    """One method's figure over items and seeds."""
    totals = items.grouped()
    fixed = (items.fixed, True)
    parts = stats.split_parts(totals.scores, None, totals.sizes, fixed, draws(totals))
    seeds = len(totals.scores)
    known = items.fixed or seeds > 1
    bounds = SHARE if items.share else ANY
    apart = apart_se(items.sums.mean(0)) if items.share else 0.0
    return build(parts, totals, seeds, known, bounds, apart)


def paired_difference(ours: ItemScores, theirs: ItemScores) -> Estimate:
    """Difference ours - theirs on the same items, seeds averaged on each side.

    StudyError: they are not the same items.
    """
    same = np.array_equal(ours.sizes, theirs.sizes) and np.array_equal(ours.groups, theirs.groups)
    if not same:
        raise StudyError(
            f"{len(ours.sizes)} and {len(theirs.sizes)} items", "items are paired", "Align them."
        )
    mine, other = ours.grouped(), theirs.grouped()
    fixed = (ours.fixed, theirs.fixed)
    parts = stats.split_parts(mine.scores, other.scores, mine.sizes, fixed, draws(mine))
    trained = [len(side.sums) for side in (ours, theirs) if not side.fixed]
    seeds = min(trained, default=1)
    share = ours.share and theirs.share
    apart = apart_se(ours.sums.mean(0) - theirs.sums.mean(0)) if share else 0.0
    bounds = SHARE_GAP if share else ANY
    return build(parts, mine, seeds, seeds > 1 or not trained, bounds, apart)


def share_of_gain(ours: ItemScores, full: ItemScores, base: ItemScores) -> Estimate | None:
    """What share of full's gain over the base a method has, 1 being all of it.

    None where full's own gain is not told from zero: a share of nothing has no meaning. The
    interval is the delta method's: at the share found, the method less that mixture of full and
    base.
    """
    gain = paired_difference(full, base)
    if gain.low <= 0 <= gain.high:
        return None
    whole = full.value - base.value
    share = (ours.value - base.value) / whole
    mixed = share * full.sums + (1 - share) * base.sums[:1]
    rest = paired_difference(ours, ItemScores(mixed, full.sizes, full.groups))
    half = (rest.high - rest.low) / 2 / abs(whole)
    return Estimate(
        value=share, low=share - half, high=share + half, se=rest.se / abs(whole), df=rest.df,
        item_se=rest.item_se / abs(whole),
        seed_se=None if rest.seed_se is None else rest.seed_se / abs(whole),
        items=rest.items, clusters=rest.clusters, seeds=rest.seeds,
    )  # fmt: skip


def detectable(estimate: Estimate) -> float | None:
    """The smallest true difference that data like these show 8 times in 10; None without spread."""
    if not estimate.se > 0:
        return None
    return stats.detectable_difference(estimate.se, estimate.df)


def shown_by(spread: float, items: int) -> float:
    """The same of a study to come. spread: standard deviation of one item's paired difference."""
    return stats.detectable_difference(spread / math.sqrt(items), max(items - 1, 1))


def items_to_show(spread: float, difference: float) -> int:
    """The fewest items that show a true difference 8 times in 10."""
    if not (spread > 0 and difference > 0):
        raise StudyError(f"{spread}, {difference}", "both are above zero", "Give a planned one.")
    high = 2
    while shown_by(spread, high) > difference:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shown_by(spread, middle) > difference else (low, middle)
    return high


def item_spread(estimate: Estimate) -> float:
    """Standard deviation of one item's part, as a finished study shows it."""
    return estimate.item_se * math.sqrt(estimate.clusters)


def draws(totals: stats.Totals) -> int:
    """Resamples: fewer where there are so many groups that Student's t is as good."""
    return max(FEWEST_DRAWS, min(stats.DRAWS, stats.CELLS_PER_CHUNK // len(totals.sizes)))


def apart_se(values: Floats) -> float:
    """Standard error of a mean with every item for itself."""
    return float(distributions.sem(values))


def build(
    parts: stats.Parts, totals: stats.Totals, seeds: int, known: bool,
    bounds: tuple[float, float], apart: float,
) -> Estimate:  # fmt: skip
    """The estimate; where nothing varies and no bound is known, an interval of no width."""
    still = float(np.hypot(parts.item_se, parts.seed_se)) <= 1e-12 and apart <= 1e-12
    if not still or bounds != ANY:
        return stats.build_estimate(parts, totals, seeds, known, bounds, apart)
    value = float(parts.value)
    return Estimate(
        value=value, low=value, high=value, se=0.0, df=1e6, item_se=0.0,
        seed_se=0.0 if known else None, items=totals.items,
        clusters=len(totals.sizes), seeds=seeds,
    )  # fmt: skip
