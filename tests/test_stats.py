"""Promises of stats: known answers, and coverage and power over 2,000 simulated studies."""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as distributions

from studylib.core import stats
from studylib.core.errors import StudyError

STUDIES = 2000
SOURCE = Path(__file__).parents[1] / "benchmarks" / "stats_coverage.py"
spec = importlib.util.spec_from_file_location("stats_coverage", SOURCE)
simulation = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = simulation  # dataclasses look their module up
spec.loader.exec_module(simulation)
UNEVEN, SMALL = simulation.MMLU_SIZES, simulation.SMALL_SIZES


@pytest.fixture
def answers():
    """Three seeds of two methods on 16 subjects of 50 items, and the labels."""
    rng = np.random.default_rng(3)
    ease = rng.choice([0.9, 0.6, 0.3], 800)
    method, reference = rng.random((2, 3, 800)) < ease
    return method, reference, np.repeat([f"subject {i:02}" for i in range(16)], 50)


def test_micro_mean_weighs_items_and_macro_mean_weighs_subjects():
    correct, subjects = [1, 0, 1, 1, 1, 1], ["a", "a", "b", "b", "b", "b"]
    assert stats.measure_accuracy(correct, subjects).value == pytest.approx(5 / 6)
    assert stats.measure_accuracy(correct, subjects, "macro").value == pytest.approx(0.75)


def test_cluster_variance_agrees_with_a_hand_computed_case():
    value, variance = stats.cluster_variance(np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    assert value == pytest.approx(4 / 6)
    assert variance == pytest.approx(2 * (1 / 9 + 1 / 9) / 36)


def test_cluster_variance_of_equal_subjects_is_the_squared_standard_error_of_their_means():
    means = np.random.default_rng(0).random(16)
    _, variance = stats.cluster_variance(means * 50, np.full(16, 50.0))
    assert variance == pytest.approx(distributions.sem(means) ** 2)


def test_bootstrap_quantile_of_normal_means_is_near_students():
    means = distributions.norm.ppf((np.arange(30) + 0.5) / 30)
    quantile = stats.bootstrap_quantile(means, np.ones(30), 20_000)
    assert quantile == pytest.approx(distributions.t.ppf(0.975, 29), abs=0.06)


def test_seed_variance_is_the_spread_of_runs_and_items_explain_none_of_a_common_shift():
    scores = np.array([[10.0, 20.0], [11.0, 22.0], [12.0, 24.0]])  # every subject alike, by run
    between, within = stats.seed_variance(scores, np.array([100.0, 200.0]))
    assert between == pytest.approx(np.var([0.10, 0.11, 0.12], ddof=1) / 3)
    assert within == pytest.approx(0.0, abs=1e-18)


def test_difference_has_the_value_that_the_means_have(answers):
    method, reference, subjects = answers
    found = stats.compare_methods(method, reference, subjects)
    assert found.value == pytest.approx(method.mean() - reference.mean())
    assert found.low < found.value < found.high
    assert (found.items, found.clusters, found.seeds) == (800, 16, 3)
    assert found.high - found.value == pytest.approx(
        found.se * distributions.t.ppf(0.975, found.df), rel=1e-6
    )


def test_same_seed_same_interval_whatever_the_order_of_items(answers):
    method, reference, subjects = answers
    order = np.random.default_rng(1).permutation(800)
    first = stats.compare_methods(method, reference, subjects)
    assert stats.compare_methods(method, reference, subjects) == first
    again = stats.compare_methods(method[:, order], reference[:, order], subjects[order])
    assert (again.low, again.high) == pytest.approx((first.low, first.high))


def test_pairing_on_items_narrows_the_interval():
    rng = np.random.default_rng(0)
    reference = rng.random(800) < 0.6
    method = np.where(rng.random(800) < 0.05, ~reference, reference)
    subjects = np.repeat(np.arange(16), 50)
    paired = stats.compare_methods(method, reference, subjects)
    alone = stats.measure_accuracy(method, subjects)
    assert paired.high - paired.low < 0.75 * (alone.high - alone.low)


def test_one_seed_has_no_seed_part_and_a_fixed_reference_needs_but_one(answers):
    method, reference, subjects = answers
    assert stats.compare_methods(method[:1], reference[:1], subjects).seed_se is None
    assert stats.compare_methods(method, reference[:1], subjects).seed_se is None
    base = stats.compare_methods(method, reference[:1], subjects, reference_fixed=True)
    assert base.seed_se is not None
    assert base.seeds == 3


def test_runs_that_differ_widen_the_interval_over_seeds():
    rng = np.random.default_rng(2)
    levels = np.array([0.5, 0.6, 0.7])
    method = rng.random((3, 800)) < levels[:, None]
    reference = rng.random((3, 800)) < 0.6
    subjects = np.repeat(np.arange(16), 50)
    found = stats.compare_methods(method, reference, subjects)
    assert found.seed_se == pytest.approx(0.1 / 3**0.5, rel=0.3)
    assert found.seed_se > found.item_se
    assert found.df < 6


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_no_item_varies_the_interval_is_the_exact_binomial_bound(value):
    found = stats.measure_accuracy(np.full(800, value), np.repeat(np.arange(16), 50))
    exact = distributions.binomtest(int(800 * value), 800).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_subjects_that_happen_to_agree_do_not_make_half_right_certain():
    answers = np.tile([0.0, 1.0], 40)
    found = stats.measure_accuracy(answers, np.repeat(["a", "b"], 40))
    exact = distributions.binomtest(40, 80).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.01)
    other = np.tile([1.0, 0.0], 40)  # as many right, on none of the same items
    gap = stats.compare_methods(other, answers, np.repeat(["a", "b"], 40))
    assert gap.high == pytest.approx(1.99 * 80**-0.5, rel=0.02)


def test_two_subjects_have_the_interval_of_one_degree_of_freedom():
    rng = np.random.default_rng(5)
    sizes, levels = np.full(2, 50.0), 0.6 + rng.normal(0, 0.1, (4000, 1, 2))
    scores = rng.binomial(50, levels).astype(np.float64)
    parts = stats.split_parts(scores, None, sizes, (True, True), draws=200)
    held = np.abs(parts.value - 0.6) <= parts.item_half
    assert held.mean() == pytest.approx(0.95, abs=0.015)


def test_a_single_item_that_differs_gives_a_finite_interval_around_zero():
    reference = np.zeros(800)
    method = reference.copy()
    method[0] = 1
    found = stats.compare_methods(method, reference, np.repeat(np.arange(16), 50))
    assert -0.01 < found.low < 0 < found.high < 0.01


def test_subjects_none_takes_items_as_independent(answers):
    method, _, _ = answers
    found = stats.measure_accuracy(method[0], None, draws=2000)
    p = method[0].mean()
    assert found.clusters == 800
    assert found.item_se == pytest.approx(np.sqrt(p * (1 - p) / 799))
    assert found.high - found.value == pytest.approx(1.96 * found.item_se, rel=0.08)


def test_full_mmlu_with_three_seeds_and_ten_thousand_draws_takes_about_a_second():
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(57), UNEVEN)
    method, reference = rng.random((2, 3, 14042)) < 0.6
    start = time.process_time()
    stats.compare_methods(method, reference, subjects)
    assert len(subjects) == 14042
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("correct", "subjects", "named"),
    [
        ([0, 2], ["a", "b"], "2.0"),
        ([0, float("nan")], ["a", "b"], "nan"),
        ([0, 1], ["a"], "(1,)"),
        ([0, 1], ["a", "a"], "a"),
        ([], [], "(0,)"),
    ],
)
def test_bad_answers_are_refused_by_value(correct, subjects, named):
    with pytest.raises(StudyError) as refusal:
        stats.measure_accuracy(correct, subjects)
    assert refusal.value.value == named


def test_methods_on_other_items_are_refused():
    with pytest.raises(StudyError, match="paired"):
        stats.compare_methods(np.ones(4), np.ones(6), None)
    with pytest.raises(StudyError, match="paired"):
        stats.exact_mcnemar(np.ones(4), np.ones(6))


def test_mcnemar_agrees_with_a_hand_computed_case():
    method = [1] * 3 + [0] * 12 + [1] * 5 + [0] * 2
    reference = [0] * 3 + [1] * 12 + [1] * 5 + [0] * 2
    tail = 1 + 15 + 105 + 455  # ways of 0 to 3 of 15
    assert stats.exact_mcnemar(method, reference) == (3, 12, pytest.approx(2 * tail / 2**15))


def test_mcnemar_of_equal_answers_is_certain():
    assert stats.exact_mcnemar([1, 0, 1], [1, 0, 1]) == (0, 0, 1.0)


def test_mcnemar_over_seeds_counts_an_item_once(answers):
    method, reference, _ = answers
    once = stats.exact_mcnemar(method[0], reference[0])
    assert stats.exact_mcnemar(np.tile(method[0], (3, 1)), np.tile(reference[0], (3, 1))) == once


def test_mcnemar_over_seeds_keeps_its_level_when_items_lean_together():
    rng = np.random.default_rng(4)
    lean = rng.normal(0, 0.2, (STUDIES, 2, 1, 200))  # an item suits a method at every seed
    right = rng.random((STUDIES, 2, 3, 200)) < 0.5 + lean
    found = [stats.exact_mcnemar(m, r).p_value <= 0.05 for m, r in right]
    assert np.mean(found) <= 0.05


def test_holm_agrees_with_a_hand_computed_case():
    assert stats.adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.adjust_holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert stats.adjust_holm([0.02]) == pytest.approx([0.02])


def make_estimate(value, se, df):
    return stats.Estimate(value, value - se, value + se, se, df, se, None, 800, 16, 1)


def test_equivalence_is_two_one_sided_students_tests():
    edge = distributions.t.ppf(0.95, 10)
    assert stats.judge_equivalence(make_estimate(0.0, 1.0, 10), edge * 1.001).equivalent
    assert not stats.judge_equivalence(make_estimate(0.0, 1.0, 10), edge * 0.999).equivalent
    off = stats.judge_equivalence(make_estimate(0.5, 1.0, 10), 2.0)
    assert off.p_upper == pytest.approx(distributions.t.sf(1.5, 10))
    assert off.p_lower == pytest.approx(distributions.t.sf(2.5, 10))
    assert off.p_value == off.p_upper
    with pytest.raises(StudyError):
        stats.judge_equivalence(make_estimate(0.0, 1.0, 10), 0.0)


def test_p_value_of_an_estimate_is_students():
    assert make_estimate(2.0, 1.0, 10).p_value == pytest.approx(2 * distributions.t.sf(2, 10))


@pytest.mark.parametrize("df", [3, 10, 40])
def test_detectable_difference_has_the_power_of_the_noncentral_t(df):
    shift = stats.detectable_difference(1.0, df)
    power = distributions.nct.sf(distributions.t.ppf(0.975, df), df, shift)
    assert power == pytest.approx(0.8, abs=2e-3)


def test_detectable_difference_of_a_large_study_is_2_8_standard_errors():
    expected = distributions.norm.ppf(0.975) + distributions.norm.ppf(0.8)
    assert stats.detectable_difference(0.01) == pytest.approx(0.01 * expected, rel=1e-4)


def test_plan_of_many_even_subjects_is_the_textbook_formula():
    expected = 2.8016 * np.sqrt(0.1 / 20_000)
    assert stats.plan_difference([50] * 400, 0.1) == pytest.approx(expected, rel=0.02)


def test_timings_of_a_constant_ratio_and_a_linear_drift_give_the_ratio_exactly():
    drift = np.exp(0.02 * np.arange(20))
    found = stats.compare_timings(drift[0::2], 1.1 * drift[1::2])
    assert found == pytest.approx((1.1, 1.1, 1.1))


def test_timings_agree_with_a_paired_t_test_where_nothing_drifts():
    rng = np.random.default_rng(0)
    base, other = np.exp(rng.normal(0, 0.01, (2, 50)))
    base[-1], other[-1] = base[0], other[0]
    found = stats.compare_timings(base, other)
    expected = distributions.ttest_rel(np.log(other), np.log(base)).confidence_interval()
    assert np.log(found[1:]) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("noise", ["white", "lingering", "drift", "warming", "walk", "spiky"])
@pytest.mark.parametrize("pairs", [5, 20])
def test_a_base_timed_against_itself_has_one_in_its_interval(noise, pairs):
    assert simulation.measure_timing_coverage(noise, STUDIES, pairs) >= 0.935


def test_broken_timings_are_refused():
    with pytest.raises(StudyError, match="3 pairs"):
        stats.compare_timings([1, 1], [1, 1])
    with pytest.raises(StudyError, match="above zero"):
        stats.compare_timings([1, 1, 0], [1, 1, 1])
    for broken in (float("nan"), float("inf")):
        with pytest.raises(StudyError):
            stats.compare_timings([1, 1, broken], [1, 1, 1])


@pytest.mark.parametrize("guess_sd", [0.0, 0.05])
def test_guessing_is_not_called_above_chance(guess_sd):
    assert simulation.measure_false_alarm(500, guess_sd, draws=500) <= 0.06


def test_half_right_of_four_choices_is_above_chance():
    correct = np.tile([0, 1], (3, 400))
    found = stats.compare_to_chance(correct, np.repeat(np.arange(16), 50), 0.25)
    assert found.distinguishable
    assert found.binomial_p < 1e-6


@pytest.mark.parametrize("sizes", [UNEVEN, SMALL], ids=["57 uneven subjects", "16 x 50"])
@pytest.mark.parametrize("seeds", [1, 3, 5])
class TestOverSimulatedStudies:
    """Intervals of 95 % hold the truth in 93 to 97 % of studies; power is as stated."""

    def test_interval_of_a_difference_covers(self, sizes, seeds):
        setting = simulation.Setting(sizes, seeds)
        assert 0.93 <= simulation.measure_coverage(setting, STUDIES) <= 0.97

    def test_interval_covers_where_runs_vary_much(self, sizes, seeds):
        setting = simulation.Setting(sizes, seeds, seed_sd=0.02)
        assert 0.93 <= simulation.measure_coverage(setting, STUDIES, macro=True) <= 0.97

    def test_interval_of_an_accuracy_covers(self, sizes, seeds):
        setting = simulation.Setting(sizes, seeds)
        assert 0.93 <= simulation.measure_coverage(setting, STUDIES, alone=True) <= 0.97

    def test_planned_difference_is_found_in_four_of_five_studies(self, sizes, seeds):
        seed_sd = 0.0 if seeds == 1 else 0.006
        plan = simulation.plan_difference(simulation.Setting(sizes, seeds, seed_sd=seed_sd))
        at = simulation.Setting(sizes, seeds, plan, seed_sd=seed_sd)
        assert 0.78 <= simulation.measure_power(at, STUDIES) <= 0.83

    def test_a_difference_as_large_as_the_margin_is_seldom_called_equivalent(self, sizes, seeds):
        setting = simulation.Setting(sizes, seeds, 0.04)
        if seeds == 1:
            setting = simulation.Setting(sizes, seeds, 0.04, seed_sd=0.0)
        assert simulation.measure_false_equivalence(setting, 1000, draws=500) <= 0.065
