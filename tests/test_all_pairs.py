"""Differences of all pairs: they hold together, they say what one pair's own interval says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as distributions

from studylib.core import stats
from studylib.core.all_pairs import compare_all
from studylib.core.errors import StudyError
from studylib.core.stats import Totals

SIZES = np.full(16, 50.0)


def draw(rng, means, seeds=3, seed_sd=0.01, subject_sd=0.05, apart_sd=0.02):
    """Totals of methods with these true means: subjects hard or easy for all, and a little for one
    method, runs that differ."""
    common = rng.normal(0, subject_sd, len(SIZES))
    found = []
    for mean in means:
        own = mean + common + rng.normal(0, apart_sd, len(SIZES))
        runs = own + rng.normal(0, seed_sd, (seeds, 1))
        scores = rng.binomial(50, np.clip(runs, 0, 1)).astype(float)
        found.append(Totals(scores, SIZES, tuple(map(str, range(16))), 800))
    return found


@pytest.mark.parametrize(("seeds", "seed_sd"), [(3, 0.02), (1, 0.0)])
def test_all_intervals_hold_together(seeds, seed_sd):
    """Of studies with seven methods, in 95 % all 21 intervals have their truth within."""
    means = np.linspace(0.5, 0.56, 7)
    rng = np.random.default_rng(0)
    held = []
    for _ in range(250):
        found = compare_all(draw(rng, means, seeds, seed_sd), draws=800)
        held.append(all(p.low <= means[p.first] - means[p.second] <= p.high for p in found.pairs))
    assert np.mean(held) >= 0.92, "95 % less what 250 studies may miss by chance"


def test_more_methods_make_every_interval_wider_and_never_as_wide_as_bonferronis():
    rng = np.random.default_rng(1)
    methods = draw(rng, [0.5] * 12)
    few, many = compare_all(methods[:2]), compare_all(methods)
    assert few.factor < many.factor
    assert many.factor < distributions.t.ppf(1 - 0.025 / len(many.pairs), 15)


def test_a_pair_alone_is_what_the_paired_comparison_says():
    """Of two methods the interval is the study's usual one, as far as pooling leaves it so."""
    methods = draw(np.random.default_rng(2), [0.5, 0.6])
    [pair] = compare_all(methods).pairs
    value, _ = stats.cluster_variance(methods[0].scores.mean(0) - methods[1].scores.mean(0), SIZES)
    parts = stats.split_parts(methods[0].scores, methods[1].scores, SIZES)
    half = float(np.hypot(parts.item_half, parts.seed_half))
    assert pair.value == pytest.approx(float(value))
    assert (pair.high - pair.low) / 2 == pytest.approx(half, rel=0.35)
    assert pair.p_value < 0.05 and pair.high < 0


def test_p_values_and_intervals_say_the_same():
    methods = draw(np.random.default_rng(3), [0.5, 0.52, 0.55, 0.6])
    found = compare_all(methods)
    for pair in found.pairs:
        assert (pair.p_value <= 0.05) == (pair.low > 0 or pair.high < 0)
        again = found.between(pair.second, pair.first)
        assert (again.value, again.low, again.high) == (-pair.value, -pair.high, -pair.low)


def test_equal_methods_are_not_told_apart_and_one_seed_is_said():
    one = draw(np.random.default_rng(4), [0.5])[0]
    found = compare_all([one, one, one])
    assert all(p.value == 0 and p.p_value > 0.9 for p in found.pairs) and found.seeds_known
    alone = [Totals(one.scores[:1], one.sizes, one.names, one.items)] * 3
    bound = 1 - (0.025 / 3) ** (1 / 800)  # none of 800 items differs, three pairs are judged
    assert all(p.high == -p.low == pytest.approx(bound) for p in compare_all(alone).pairs)
    assert all(p.high == p.low == 0 for p in compare_all(alone, shares=False).pairs)
    single = [Totals(m.scores[:1], m.sizes, m.names, m.items) for m in (one, one)]
    assert not compare_all(single).seeds_known


def test_what_cannot_be_paired_is_refused():
    one, other = draw(np.random.default_rng(5), [0.5, 0.5])
    short = Totals(other.scores[:, :8], other.sizes[:8], other.names[:8], 400)
    for methods in ([one], [one, short], []):
        with pytest.raises(StudyError, match="same items"):
            compare_all(methods)
