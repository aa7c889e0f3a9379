"""Promises of verdicts: each kind of rule gives each verdict, with the figure that decided."""

import pytest

from studylib.core.errors import StudyError
from studylib.core.verdicts import Measured, Rule, Verdict, judge_claim, parse_rule

GAP = Rule("gap", 0.2, 0.8, "points", tolerance=0.1)


def judge(rule, value, low=None, high=None, **more):
    return judge_claim(rule, Measured(value, rule.unit, low, high, **more)).verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.15, 0.85, Verdict.REPRODUCED),
        (0.1, 0.9, Verdict.REPRODUCED),
        (0.95, 1.5, Verdict.DIFFERS),
        (-0.5, 0.05, Verdict.DIFFERS),
        (0.5, 1.0, Verdict.INCONCLUSIVE),
        (-2.0, 3.0, Verdict.INCONCLUSIVE),
    ],
)
def test_gap_is_judged_by_its_whole_interval(low, high, verdict):
    assert judge(GAP, (low + high) / 2, low, high) == verdict


def test_gap_without_interval_decides_nothing():
    assert judge(GAP, 0.5) == Verdict.INCONCLUSIVE


def test_exact_count_agrees_within_the_claims_rounding():
    rule = Rule("exact", 26e6, 26e6, "parameters", tolerance=0.5e6)
    assert judge(rule, 26_214_400) == Verdict.REPRODUCED
    assert judge(rule, 62_586_880) == Verdict.DIFFERS


def test_ratio_is_the_same_factor_up_and_down():
    rule = Rule("within_ratio", 100.0, 100.0, "GB", tolerance=0.25)
    assert rule.band == (80.0, 125.0)
    assert judge(rule, 80.5) == judge(rule, 124.5) == Verdict.REPRODUCED
    assert judge(rule, 79.5) == judge(rule, 125.5) == Verdict.DIFFERS
    assert judge(rule, 124.0, 120.0, 128.0) == Verdict.INCONCLUSIVE


def test_range_takes_a_reading_or_an_interval():
    rule = Rule("range", 5.0, 15.0, "%")
    assert judge(rule, 10.0) == judge(rule, 10.0, 6.0, 14.0) == Verdict.REPRODUCED
    assert judge(rule, 4.0, 3.0, 4.9) == Verdict.DIFFERS
    assert judge(rule, 4.0, 3.0, 5.1) == Verdict.INCONCLUSIVE


def test_too_few_seeds_leave_a_claim_open():
    rule = Rule("gap", 0.2, 0.8, "points", min_seeds=3)
    assert judge(rule, 0.5, 0.3, 0.7, seeds=3) == Verdict.REPRODUCED
    found = judge_claim(rule, Measured(0.5, "points", 0.3, 0.7, seeds=1))
    assert found.verdict == Verdict.INCONCLUSIVE
    assert "1 of the 3 seeds" in found.reason


def test_obstacle_missing_value_and_other_unit_are_not_comparable():
    good = Measured(0.5, "points", 0.3, 0.7)
    hindered = judge_claim(GAP, good, "other items: 14042 and 800")
    assert hindered.verdict == Verdict.NOT_COMPARABLE
    assert hindered.reason == "other items: 14042 and 800"
    assert judge_claim(GAP, None).verdict == Verdict.NOT_COMPARABLE
    other = judge_claim(GAP, Measured(0.5, "%", 0.3, 0.7))
    assert other.verdict == Verdict.NOT_COMPARABLE
    assert other.reason == "measured in %, claimed in points"


def test_reason_names_figure_interval_claim_and_band():
    found = judge_claim(GAP, Measured(1.25, "points", 1.0, 1.5))
    assert found.reason == (
        "measured 1.25 points, 95 % interval 1 to 1.5; "
        "claimed 0.2 to 0.8 points, agreeing from 0.1 to 0.9: above"
    )


def test_reason_says_whether_a_difference_is_for_the_better():
    rule = Rule("within_ratio", 56.0, 56.0, "GB", tolerance=0.1, lower_is_better=True)
    assert judge_claim(rule, Measured(40.0, "GB")).reason.endswith("below, better than claimed")
    assert judge_claim(rule, Measured(70.0, "GB")).reason.endswith("above, worse")


def test_rule_is_parsed_from_what_a_file_gives():
    given = {"kind": "within_ratio", "value": 56, "tolerance": 0.1, "unit": "GB"}
    assert parse_rule(given) == Rule("within_ratio", 56, 56, "GB", 0.1)
    assert "value" in given
    assert parse_rule({"kind": "gap", "low": 0.2, "high": 0.8, "unit": "points"}).min_seeds == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "about"}, "about"),
        ({"low": 0.9}, "0.9 to 0.8"),
        ({"tolerance": -1}, "-1"),
        ({"tolerance": "10%"}, "10%"),
        ({"margin": 0.1}, "margin"),
        ({"min_seeds": 0}, "0"),
        ({"low": True}, "True"),
        ({"kind": "within_ratio", "low": 0}, "0"),
    ],
)
def test_broken_rule_is_refused_by_value(change, named):
    rule = {"kind": "gap", "low": 0.2, "high": 0.8, "unit": "points"} | change
    with pytest.raises(StudyError) as refusal:
        parse_rule(rule)
    assert refusal.value.value == named


def test_rule_without_a_claim_and_measurement_without_a_number_are_refused():
    with pytest.raises(StudyError, match="no low"):
        parse_rule({"kind": "gap", "unit": "points"})
    with pytest.raises(StudyError, match="is a number"):
        Measured(float("nan"), "GB")
    with pytest.raises(StudyError, match="two ends"):
        Measured(1.0, "GB", low=0.5)
    with pytest.raises(StudyError, match="holds its value"):
        Measured(1.0, "GB", 2.0, 3.0)
