"""A study of many methods is ranked beside LoRA, with intervals that hold for all pairs at once."""

from __future__ import annotations

import numpy as np
import pytest
from record_factory import Factory, make_spec

from studylib.reporting import ranking_section
from studylib.reporting.compose import build_report
from studylib.reporting.kept import best_evidence
from studylib.reporting.ranking import MANY, rank_methods
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study

KNOWN = {
    "full": 0.72, "lora": 0.60, "dora": 0.61, "rslora": 0.60, "pissa": 0.80, "miss": 0.40,
    "vera": 0.58,
}  # fmt: skip
RATES = {
    "full": {1e-3: 100, 2e-3: 140, 4e-3: 120},
    "lora-r16": {1e-3: 90, 2e-3: 120, 4e-3: 100},
    "dora-r16": {1e-3: 80, 2e-3: 110, 4e-3: 122},
    "rslora-r16": {1e-3: 119, 2e-3: None, 4e-3: None},
    "pissa-r16": {1e-3: 160, 2e-3: 150, 4e-3: 90},
    "miss-r16": {1e-3: 60, 2e-3: 70, 4e-3: 80},
    "vera-r16": {1e-2: 60, 2e-2: 110, 4e-2: 80},
}


def build(folder, known=KNOWN, rates=RATES, tuned=True, **spec):
    factory = Factory(folder, items=800)
    factory.add(make_spec("base", **spec))
    for method, share in known.items():
        for seed in (0, 1, 2):
            made = make_spec(method, seed=seed, **spec)
            source = "tuned: best of 3" if tuned else made.learning_rate_source
            factory.add(
                made.model_copy(update={"learning_rate_source": source}), knows=share, keeps=0.4
            )
    for method, points in rates.items():
        factory.sweep(method, points)
    return summarise_study(read_study(folder, planned=()))


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return build(tmp_path_factory.mktemp("ranked") / "s")


@pytest.fixture(scope="module")
def ranking(summary):
    found = rank_methods(summary.comparisons[0])
    assert found is not None
    return found


def test_methods_stand_by_what_they_scored(ranking):
    names = [place.row.method.name for place in ranking.places]
    assert (names[0], names[1], names[-1]) == ("pissa", "full", "miss")
    scores = [place.score for place in ranking.places]
    assert scores == sorted(scores, reverse=True)
    for place in ranking.places:
        assert place.score == pytest.approx(place.row.accuracy.value)
        if place.lead is not None:
            difference = place.score - ranking.reference.accuracy.value
            assert place.lead.value == pytest.approx(difference)


def test_only_what_is_told_apart_beats_lora_and_a_close_one_does_not(ranking):
    assert {p.row.method.name for p in ranking.ahead} == {"pissa", "full"}
    assert {p.row.method.name for p in ranking.behind} == {"miss"}
    assert ranking.pairs == 7 * 6 // 2
    text = ranking_section.tell_ranking(ranking)
    assert "PiSSA" in text.partition(".**")[0] and "DoRA" not in text.partition(".**")[0]


def test_intervals_of_all_pairs_are_wider_than_one_pairs_own(ranking):
    for place, lead in ranking.others:
        if place.row.method.name == "full":
            own = ranking.comparison.row("lora").gap  # LoRA less full, alone
            assert own.value == pytest.approx(-lead.value)
            assert lead.high - lead.low > own.high - own.low


def test_where_none_is_ahead_the_most_that_one_could_be_is_said(tmp_path):
    close = dict.fromkeys(KNOWN, 0.6)
    summary = build(tmp_path / "s", close, rates={}, tuned=False)
    found = rank_methods(summary.comparisons[0])
    assert found is not None and found.ahead == []
    most = max(lead.high for _, lead in found.others)
    text = ranking_section.tell_ranking(found)
    assert f"by more than {100 * most:.1f} pp" in text and "tuned" not in text
    assert "may be its rate's" in ranking_section.tell_intervals(found)
    assert ranking_section.shared_rate_section(found) == []


def test_where_only_other_kinds_are_ahead_the_most_that_an_adapter_could_be_is_said(tmp_path):
    found = rank_methods(
        build(tmp_path / "s", KNOWN | {"pissa": 0.55, "full": 0.95}).comparisons[0]
    )
    assert found is not None and [p.row.method.name for p in found.ahead] == ["full"]
    most = max(lead.high for place, lead in found.others if place.row.method.name != "full")
    assert f"No other adapter beats tuned LoRA r=16 by more than {100 * most:.1f} pp" in (
        ranking_section.tell_ranking(found)
    )


def test_of_several_loras_the_one_of_most_methods_rank_is_the_reference(tmp_path):
    summary = build(tmp_path / "s", KNOWN | {"lora-r8": 0.5, "lora-r64": 0.7}, rates={})
    found = rank_methods(summary.comparisons[0])
    assert found is not None and found.reference.method.rank == 16


def test_what_is_not_told_from_guessing_is_not_ranked_by_learning(tmp_path):
    found = rank_methods(build(tmp_path / "s", dict.fromkeys(KNOWN, 0.25)).comparisons[0])
    assert found is not None
    assert ranking_section.tell_ranking(found).startswith("**No accuracy can be told from guessing")


def test_another_ranking_of_the_same_methods_is_told_by_its_turned_pairs(tmp_path, summary):
    swapped = KNOWN | {"pissa": KNOWN["miss"], "miss": KNOWN["pissa"]}  # the ends of seven
    other = build(tmp_path / "s", swapped, rates={})
    one, two = summary.comparisons, other.comparisons
    assert " 0 of these 21 pairs" in ranking_section.tell_orders(one, one)
    assert " 11 of these 21 pairs" in ranking_section.tell_orders(one, two)
    few = build(tmp_path / "few", dict([*KNOWN.items()][:-1]), rates={}).comparisons
    assert ranking_section.tell_orders(one, few) == "", "it lacks a method"


def test_the_articles_methods_alone_speak_of_a_ranking_in_the_answer(tmp_path, summary):
    (spoken,) = best_evidence([summary])
    assert [row.method.name for row in spoken.rows] == ["base", "full", "lora"]
    few = build(tmp_path / "few", dict([*KNOWN.items()][:5]), rates={})
    assert best_evidence([few]) == [*few.comparisons], "five are no ranking"
    without = {name: share for name, share in KNOWN.items() if name != "lora"}
    none = build(tmp_path / "none", without, rates={})
    assert best_evidence([none]) == [*none.comparisons], "nothing to rank them beside"


def test_the_frontier_holds_what_nothing_beats_at_its_memory(ranking):
    kept = ranking.frontier
    assert [p.memory for p in kept] == sorted(p.memory for p in kept)
    for place in ranking.places:
        better = [p for p in kept if p.memory <= place.memory and p.score >= place.score]
        assert better


def test_the_table_at_one_rate_says_what_was_the_rates(ranking):
    rate, found = ranking_section.share_rate(ranking)
    assert rate == 2e-3
    by_name = {one.row.method.name: one for one in found}
    assert by_name["vera"].shared is None and by_name["rslora"].known is None
    rows = {row[0]: row for row in ranking_section.shared_rate_table(ranking, rate, found).rows}
    # DoRA leads LoRA by 1 point at its own rate, is 5 behind at LoRA's: 6 were the rate's.
    assert rows["DoRA r=16"][4:] == ("+1.00", "−5.00", "+6.00")
    assert rows["VeRA r=16"][3] == "not tried" and rows["rsLoRA r=16"][3] == "diverged"
    assert rows["LoRA r=16"][4:] == ("0", "0", "0")


def test_a_report_of_many_methods_has_the_ranking_and_of_few_has_not(summary, tmp_path):
    text = build_report([summary], [], None, "").files["REPORT.md"].decode()
    assert "7 methods ranked" in text and "main-ranking.svg" in text
    assert text.count("| PiSSA r=16 |") == 2, "the ranking, and the table at one rate"
    other = build(tmp_path / "other", dict(list(KNOWN.items())[:3]), rates={})
    both = build_report([summary, other], [], None, None).files
    brief, details = both["REPORT.md"].decode(), both["docs/report/details.md"].decode()
    assert "7 methods ranked" in brief and "| PiSSA r=16 |" not in brief
    assert details.count("| PiSSA r=16 |") > 2
    few = dict(list(KNOWN.items())[: MANY - 1])
    assert rank_methods(build(tmp_path / "few", few).comparisons[0]) is None
    without = {name: share for name, share in KNOWN.items() if name != "lora"}
    assert rank_methods(build(tmp_path / "without", without).comparisons[0]) is None


def test_one_seed_is_said_to_speak_for_these_runs(tmp_path):
    factory = Factory(tmp_path / "s", items=800)
    factory.add(make_spec("base"))
    for method, share in KNOWN.items():
        factory.add(make_spec(method), knows=share, keeps=0.4)
    found = rank_methods(summarise_study(read_study(factory.folder, planned=())).comparisons[0])
    assert found is not None and not found.seeds_known
    assert "one seed" in ranking_section.tell_intervals(found)
    assert all(np.isfinite([lead.low, lead.high]).all() for _, lead in found.others)
