"""Figures that are sums over sums: known answers, pairing, groups, shares of a gain."""

from __future__ import annotations

import numpy as np
import pytest

from studylib.core import item_stats, stats
from studylib.core.errors import StudyError
from studylib.core.item_stats import (
    ItemScores,
    detectable,
    measure,
    paired_difference,
    share_of_gain,
)

RNG = np.random.default_rng(0)


def test_a_figure_is_sum_over_sum_and_not_a_mean_of_means():
    items = ItemScores.of([[1.0, 30.0]], [1, 10])
    assert measure(items).value == pytest.approx(31 / 11)


def test_shares_give_what_the_statistics_of_answers_give():
    right = RNG.random((3, 200)) < 0.7
    groups = np.repeat(np.arange(20), 10)
    ours = measure(ItemScores.of(right, np.ones(200), groups, share=True))
    theirs = stats.measure_accuracy(right, groups)
    assert (ours.value, ours.low, ours.high) == (theirs.value, theirs.low, theirs.high)
    other = RNG.random((3, 200)) < 0.5
    ours = paired_difference(
        *(ItemScores.of(x, np.ones(200), groups, share=True) for x in (right, other))
    )
    theirs = stats.compare_methods(right, other, groups)
    assert (ours.value, ours.low, ours.high) == (theirs.value, theirs.low, theirs.high)


def test_pairing_takes_off_what_items_have_in_common():
    """One method is worse by the same 0.1 a token in every example: the interval has no width."""
    sizes = RNG.integers(5, 50, 100)
    nats = sizes * RNG.uniform(1, 4, 100)
    ours, theirs = (ItemScores.of(sums, sizes, fixed=True) for sums in (nats + 0.1 * sizes, nats))
    gap = paired_difference(ours, theirs)
    assert gap.value == pytest.approx(0.1)
    assert gap.high - gap.low < 1e-9 and measure(ours).high - measure(ours).low > 0.1
    assert detectable(paired_difference(ours, ours)) is None


def test_windows_of_a_document_are_no_items_of_their_own():
    document = np.repeat(RNG.normal(3, 1, 12), 25)
    sums = document + RNG.normal(0, 0.01, 300)
    alone = measure(ItemScores.of([sums], np.ones(300)))
    together = measure(ItemScores.of([sums], np.ones(300), np.repeat(np.arange(12), 25)))
    assert together.clusters == 12 and alone.clusters == 300
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_interval_of_a_difference_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        sizes = rng.integers(5, 30, 60)
        hard = rng.normal(2, 0.5, 60)
        ours, theirs = (
            ItemScores.of(sizes * (hard + level + rng.normal(0, 0.3, 60)), sizes, fixed=True)
            for level in (0.2, 0.0)
        )
        gap = paired_difference(ours, theirs)
        held += gap.low <= 0.2 <= gap.high
    assert 180 <= held <= 198


def test_share_of_gain_is_one_for_full_itself_and_a_half_half_way():
    sizes = RNG.integers(5, 50, 200)
    base = ItemScores.of(sizes * RNG.uniform(3, 4, 200), sizes, fixed=True)
    full = ItemScores.of(base.sums - sizes * RNG.uniform(0.9, 1.1, 200), sizes)
    half = ItemScores.of((base.sums + full.sums) / 2, sizes)
    assert share_of_gain(half, full, base).value == pytest.approx(0.5)
    whole = share_of_gain(full, full, base)
    assert whole.value == pytest.approx(1.0) and whole.low <= 1 <= whole.high
    assert share_of_gain(half, base, base) is None


def test_detectable_gap_shows_eight_times_in_ten():
    gap = paired_difference(
        *(ItemScores.of(RNG.normal(0, 1, 400), np.ones(400), fixed=True) for _ in "ab")
    )
    assert detectable(gap) == pytest.approx(2.8 * np.sqrt(2 / 400), rel=0.15)


@pytest.mark.parametrize("change", ["sizes", "items", "nan"])
def test_items_that_do_not_fit_are_refused(change):
    sums, sizes = np.ones((1, 4)), np.ones(4)
    with pytest.raises(StudyError):
        if change == "sizes":
            ItemScores.of(sums, np.ones(3))
        elif change == "items":
            paired_difference(ItemScores.of(sums, sizes), ItemScores.of(sums, 2 * sizes))
        else:
            ItemScores.of(sums * np.nan, sizes)


def test_bounds_of_shares_hold():
    right = np.ones((1, 50))
    estimate = measure(ItemScores.of(right, np.ones(50), share=True, fixed=True))
    assert estimate.high == 1.0 and 0.9 < estimate.low < 1.0
    assert item_stats.SHARE == (0.0, 1.0)
