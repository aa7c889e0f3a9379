"""Enough, not enough or open, by the interval: what is said to decide it is what then decides."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats as distributions

from studylib.core import enough, item_stats
from studylib.core.enough import decide_enough
from studylib.core.stats import Estimate


def estimate(value, item_se, seed_se=None, clusters=200, seeds=1):
    """An interval as item_stats makes it, with Student quantiles for both parts."""
    half = distributions.t.ppf(0.975, clusters - 1) * item_se
    if seed_se:
        half = math.hypot(half, distributions.t.ppf(0.975, 2 * (seeds - 1)) * seed_se)
    return Estimate(
        value=value, low=value - half, high=value + half, se=half / 1.959964, df=1e6,
        item_se=item_se, seed_se=seed_se, items=clusters, clusters=clusters,
        seeds=seeds,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0.995, "enough"), (0.98, "open"), (0.975, "open"), (0.95, "not enough"), (1.2, "enough")],
)
def test_the_whole_interval_decides(value, kind):
    assert decide_enough(estimate(value, 0.005), 0.98).kind == kind


def test_as_many_items_as_are_named_decide_and_fewer_do_not():
    found = decide_enough(estimate(0.99, 0.02), 0.98)
    assert found.kind == "open" and found.more_seeds is None
    more = estimate(0.99, 0.02 / math.sqrt(found.times_items))
    assert decide_enough(dataclasses.replace(more, low=more.low + 1e-9), 0.98).kind == "enough"
    assert (
        decide_enough(estimate(0.99, 0.02 / math.sqrt(0.9 * found.times_items)), 0.98).kind
        == "open"
    )


def test_as_many_seeds_as_are_named_decide_and_one_fewer_does_not():
    def with_seeds(count):
        return estimate(0.99, 0.001, 0.005 * math.sqrt(3 / count), seeds=count)

    found = decide_enough(with_seeds(3), 0.98)
    assert found.kind == "open" and found.times_items is None and found.more_seeds
    assert decide_enough(with_seeds(3 + found.more_seeds), 0.98).kind == "enough"
    assert decide_enough(with_seeds(2 + found.more_seeds), 0.98).kind == "open"


def test_a_value_at_the_floor_itself_is_decided_by_nothing():
    assert decide_enough(estimate(0.98, 0.005), 0.98) == enough.Decision("open")


def test_parts_of_an_interval_add_up_to_it_on_real_estimates():
    rng = np.random.default_rng(3)
    sizes = np.full(60, 20.0)
    level = rng.normal(2, 0.3, 60)

    def arm(shift, seeds):
        sums = level + shift + rng.normal(0, 0.05, (seeds, 60)) + rng.normal(0, 0.03, (seeds, 1))
        return item_stats.ItemScores.of(sums * sizes, sizes)

    found = item_stats.paired_difference(arm(0.1, 3), arm(0.0, 3))
    items, seeds = enough.split_width(found)
    half = (found.high - found.low) / 2
    assert math.hypot(items, seeds) == pytest.approx(half, rel=1e-6)
    assert items >= found.item_se and seeds > 0
