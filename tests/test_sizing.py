"""How many held-out examples show a gap: the plan's figure, the verdict's, and their ground."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from studylib.core import item_stats
from studylib.core.errors import StudyError
from studylib.core.item_stats import ItemScores, item_spread, items_to_show, shown_by
from studylib.core.places import REFERENCE
from studylib.planning.sizing import LOSS_SPREAD, SHARE_SPREAD, round_up, tell_sizing
from studylib.schema.profile import read_profile


def make_track(tmp_path, count=1000, held_out=200, margin=2.0, **asked):
    rows = [{"question": f"q{i}", "answer": f"a{i % 4}"} for i in range(count)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    changes = {
        "models": ["ladder:0.4m"],
        "data": {"source": str(path), "held_out": held_out},
        "evaluate": {"measures": ["loss"], "margin": margin, **asked},
    }
    return read_profile("custom", changes).tracks[0]


def test_as_many_items_as_are_named_show_the_difference_and_one_less_does_not():
    for spread, gap in ((0.7, 0.02), (0.15, 0.02), (0.15, 0.5)):
        count = items_to_show(spread, gap)
        assert shown_by(spread, count) <= gap < shown_by(spread, count - 1) or count == 2
    # A normal test's sample size at 5 % and power 0.8: ((1.960 + 0.842) / 0.02 * 0.7) squared.
    assert items_to_show(0.7, 0.02) == pytest.approx((2.8016 * 0.7 / 0.02) ** 2, rel=1e-3)
    with pytest.raises(StudyError, match="above zero"):
        items_to_show(0.7, 0.0)


def test_that_many_items_find_such_a_difference_eight_times_in_ten():
    rng = np.random.default_rng(0)
    count, gap, found = items_to_show(0.5, 0.2), 0.2, 0
    for _ in range(300):
        values = rng.normal(gap, 0.5, count)
        estimate = item_stats.measure(ItemScores.of(values, np.ones(count), fixed=True))
        found += estimate.low > 0
    assert 0.73 < found / 300 < 0.87
    assert item_spread(estimate) == pytest.approx(np.std(values, ddof=1), rel=0.1)


def test_a_plan_says_what_a_part_shows_and_how_to_have_more(tmp_path):
    [loss] = tell_sizing(make_track(tmp_path))
    assert f"200 held-out examples show a loss of {100 * shown_by(LOSS_SPREAD, 200):.2g} %" in loss
    need = round_up(items_to_show(LOSS_SPREAD, 0.02))
    assert f"takes about {need}" in loss and "at most 250, which show" in loss
    [more] = tell_sizing(make_track(tmp_path, 3000))
    assert f"(SET='data.held_out={need}')" in more
    [cut] = tell_sizing(make_track(tmp_path, 3000, 600, held_out_limit=50))
    assert cut.startswith("  50 held-out") and f"(SET=evaluate.held_out_limit={need})" in cut
    [wide] = tell_sizing(make_track(tmp_path, margin=5))
    assert "enough for MARGIN=5" in wide
    [labels] = tell_sizing(make_track(tmp_path, measures=["labels"], margin=15))
    assert "percentage points" in labels and "enough for MARGIN=15" in labels
    few = tell_sizing(make_track(tmp_path, measures=["labels"]))[0]
    assert f"takes about {round_up(items_to_show(SHARE_SPREAD, 0.02)):,}" in few


def test_cases_that_a_plan_takes_are_no_narrower_than_a_real_models_records():
    from studylib.reporting.study import read_study
    from studylib.reporting.summary import summarise_study
    from studylib.reporting.verdict import read_figures

    found = {True: [0.0], False: [0.0]}
    for comparison in summarise_study(read_study(REFERENCE / "real")).comparisons:
        for row in comparison.rows:
            if row.method.kind.adapter and row.complete:
                for judged in read_figures(comparison, row):
                    if judged.kept is not None:
                        found[judged.is_share].append(item_spread(judged.kept))
    assert 0.1 < max(found[False]) <= LOSS_SPREAD
    assert 0.1 < max(found[True]) <= SHARE_SPREAD == math.sqrt(0.5)
