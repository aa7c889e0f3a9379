"""All differences between several methods at once: intervals that hold together, with p-values.

With seventeen methods there are 136 pairs, and of intervals that cover 95 % each some six would
miss. These are wider, by one factor for all pairs, so that with 95 % none misses (Tukey's idea; the
largest |t| of all pairs is simulated as in Westfall & Young 1993). A p-value is the share of
simulated studies without any difference in which some pair looks as far apart as this one does.

Two parts make a pair's standard error, as in studylib.core.stats. Items are paired: whole subjects
are drawn with replacement, the same for all pairs, which keeps that pairs hang together. Seeds are
not paired: their variance is pooled over the methods, since three runs of one tell little of it;
where one method's own is larger, that counts for it. Normal draws with the pooled degrees of
freedom stand for it, so that methods whose runs spread far less than others' get intervals that are
too wide.

Not covered: which method is the reference (the pairs with it are among all), words and tables
(studylib.reporting.ranking).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats as distributions

from studylib.core.errors import StudyError
from studylib.core.stats import (
    CELLS_PER_CHUNK,
    CONFIDENCE,
    Floats,
    Totals,
    cluster_variance,
    seed_variance,
)

DRAWS, FEWEST_DRAWS = 5_000, 500


@dataclass(frozen=True)
class Pair:
    """Method `first` less method `second` (places in the list given), with its interval.

    All intervals hold together with CONFIDENCE; p_value is corrected for all pairs.
    """

    first: int
    second: int
    value: float
    low: float
    high: float
    p_value: float

    @property
    def turned(self) -> Pair:
        """The same pair the other way round."""
        return Pair(self.second, self.first, -self.value, -self.high, -self.low, self.p_value)


@dataclass(frozen=True)
class AllPairs:
    """Every pair, the first of each before the second in the list. factor: half-width over standard
    error. seeds_known: whether the intervals speak for new seeds."""

    pairs: tuple[Pair, ...]
    factor: float
    seeds_known: bool

    def between(self, first: int, second: int) -> Pair:
        """first less second."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                return pair.turned
        raise StudyError((first, second), "there is no such pair", "Two different methods.")


def compare_all(
    methods: Sequence[Totals], draws: int = DRAWS, shares: bool = True
) -> AllPairs:  # fmt: skip
    """Differences of all pairs; StudyError: fewer than two, or they have not the same subjects.

    shares: each item is right or wrong. Two methods that then agree in every subject get the exact
    bound on what none of n items showed (studylib.core.stats), at the confidence of one of all
    pairs: no width would claim certainty.
    """
    sizes = methods[0].sizes if methods else np.zeros(0)
    if len(methods) < 2 or any(not np.array_equal(m.sizes, sizes) for m in methods):
        raise StudyError(f"{len(methods)} methods", "pairs need the same items", "Align them.")
    if len(sizes) < 2:
        raise StudyError("one subject", "an interval needs two or more", "Let items stand alone.")
    ends = np.array(list(combinations(range(len(methods)), 2)))
    means = np.stack([m.scores.mean(0) for m in methods])
    scores = means[ends[:, 0]] - means[ends[:, 1]]
    value, item_variance = cluster_variance(scores, sizes)
    by_method, seed_df = run_variances(methods)
    spread = item_variance + by_method[ends].sum(1)
    largest = simulate_largest(scores, sizes, by_method, seed_df, ends, draws)
    single = 1 - (1 - CONFIDENCE) / 2 / len(ends)  # Bonferroni's: the factor is never wider
    most = float(distributions.t.ppf(single, min(len(sizes) - 1, seed_df or np.inf)))
    factor = min(float(np.quantile(largest, CONFIDENCE, method="higher")), most)
    se = np.sqrt(spread)
    found = []
    for (i, j), d, error in zip(ends.tolist(), value, se, strict=True):
        t = abs(d) / error if error > 0 else (np.inf if d else 0.0)
        p = float((1 + (largest >= t).sum()) / (1 + len(largest)))
        half = factor * error
        if shares and not half:
            half = 1 - (1 - single) ** (1 / methods[0].items)
        found.append(Pair(i, j, float(d), float(d - half), float(d + half), p))
    return AllPairs(tuple(found), factor, seed_df > 0)


def run_variances(methods: Sequence[Totals]) -> tuple[Floats, int]:
    """(variance of each method's mean by its runs alone, degrees of freedom of the pooled one).

    Zeros where no method has two runs.
    """
    seeds = np.array([len(m.scores) for m in methods])
    own = np.zeros(len(methods))
    for i, m in enumerate(methods):
        if seeds[i] > 1:
            between, within = seed_variance(m.scores, m.sizes)
            own[i] = seeds[i] * float(between - within)  # of one run; below zero by chance
    df = int((seeds - 1).sum())
    if not df:
        return own, 0
    pooled = max(float((own * (seeds - 1)).sum()) / df, 0.0)
    return np.maximum(own, pooled) / seeds, df


def simulate_largest(
    scores: Floats, sizes: Floats, by_method: Floats, seed_df: int, ends: np.ndarray, draws: int
) -> Floats:
    """The largest |t| of all pairs in each of `draws` studies without differences, [draws].

    scores: [pairs, subjects], differences summed by subject; by_method: variances of means by
    runs; ends: [pairs, 2], the methods of each pair.
    """
    rng, clusters, total = np.random.default_rng(0), len(sizes), sizes.sum()
    draws = max(FEWEST_DRAWS, min(draws, CELLS_PER_CHUNK // max(clusters, len(ends))))
    centred = scores - scores.sum(-1, keepdims=True) / total * sizes
    weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), draws).astype(np.float64)
    size = (weights @ sizes)[:, None]
    shift = weights @ centred.T / size
    squares = weights @ (centred**2).T - 2 * shift * (weights @ (centred * sizes).T)
    squares += shift**2 * (weights @ sizes**2)[:, None]
    variance = np.maximum(squares, 0) * clusters / (clusters - 1) / size**2
    if seed_df:
        noise = rng.normal(0, np.sqrt(by_method), (draws, len(by_method)))
        shift = shift + noise[:, ends[:, 0]] - noise[:, ends[:, 1]]
        seen = rng.chisquare(seed_df, (draws, 1)) / seed_df
        variance = variance + seen * by_method[ends].sum(1)
    still = variance <= 1e-18 * max(float(np.abs(centred).max()) / total, 1e-300) ** 2
    t = np.where(still, 0.0, np.abs(shift) / np.sqrt(np.where(still, 1.0, variance)))
    return t.max(1)
