"""The capacity curve: read from tracks that differ in facts, judged by a stated margin."""

from pathlib import Path

import pytest
from record_factory import Factory, make_spec

from studylib.reporting import capacity
from studylib.reporting.panels import to_svg
from studylib.reporting.study import read_study
from studylib.reporting.summary import Summary, summarise_study

SHARES = {
    "full": {400: 0.9, 800: 0.85, 1600: 0.7},
    "lora-r1": {400: 0.88, 800: 0.5, 1600: 0.35},
    "lora-r16": {400: 0.9, 800: 0.84, 1600: 0.69},
}


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    folder = tmp_path_factory.mktemp("c") / "capacity"
    return summarise_study(read_study(Factory(folder, items=400).capacity(SHARES)))


def test_a_study_at_one_number_of_facts_is_no_curve(tmp_path: Path, summary: Summary) -> None:
    assert capacity.is_capacity(summary)
    factory = Factory(tmp_path / "s")
    factory.add(make_spec("full", facts=64))
    factory.add(make_spec("lora", facts=64, track="language"))
    assert not capacity.is_capacity(summarise_study(read_study(factory.folder)))


def test_the_first_clear_gap_beyond_the_margin_is_where_a_rank_ends(summary: Summary) -> None:
    text = capacity.tell_capacity(summary)
    assert "**Adapters stop being enough:** LoRA r=1 at 800 facts (−" in text
    assert "beyond 5 pp" in text
    assert "LoRA r=16 (at worst" in text
    assert "enough by that rule up to 1,600 facts" in text
    assert "Full fine-tuning itself went from" in text


def test_points_rise_in_facts_and_methods_keep_their_order(summary: Summary) -> None:
    curves = capacity.read_curves(summary)
    assert list(curves) == ["base", "full", "LoRA r=1", "LoRA r=16"]
    assert all([p.facts for p in points] == [400, 800, 1600] for points in curves.values())


def test_the_table_has_one_row_a_method(summary: Summary) -> None:
    table = capacity.capacity_table(summary)
    assert [row[0] for row in table.rows] == ["base", "full", "LoRA r=1", "LoRA r=16"]
    assert table.rows[2][3].startswith("**")  # LoRA r=1 at 800 facts falls short


def test_facts_known_leave_guessing_out(summary: Summary) -> None:
    point = capacity.read_curves(summary)["full"][0]
    assert point.row.accuracy is not None
    known, _ = capacity.point_height(point, scaled=True)
    assert known == pytest.approx(400 * (point.row.accuracy.value - 0.25) / 0.75)


def test_the_curve_is_drawn_alike_each_time_and_ranks_differ(summary: Summary) -> None:
    figure, again = capacity.draw_capacity(summary), capacity.draw_capacity(summary)
    assert figure is not None
    assert again is not None
    assert to_svg(figure) == to_svg(again)
    curves = capacity.read_curves(summary)
    low, high = (capacity.line_look(f"LoRA r={rank}", curves) for rank in (1, 16))
    assert all(one != other for one, other in zip(low, high, strict=True))


def test_one_seed_is_said(summary: Summary) -> None:
    assert "not of another seed" in capacity.detectable_sentence(summary)


def test_few_seeds_and_rates_tuned_elsewhere_stand_beside_the_end(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "capacity", items=400)
    factory.capacity(SHARES)
    factory.sweep("full", {1e-3: 150, 2e-3: 151, 4e-3: 90}, track="facts-800")
    text = capacity.tell_limits(summarise_study(read_study(factory.folder)))
    assert "beyond 5 pp; 1 seed a point, learning rates tuned at 800 facts alone." in text
    factory.sweep("full", {1e-3: 150, 2e-3: 151, 4e-3: 90}, track="facts-400")
    factory.sweep("full", {1e-3: 150, 2e-3: 151, 4e-3: 90}, track="facts-1600")
    text = capacity.tell_limits(summarise_study(read_study(factory.folder)))
    assert "beyond 5 pp; 1 seed a point." in text


def test_a_higher_rank_that_learned_less_is_named(tmp_path: Path, summary: Summary) -> None:
    assert "higher rank" not in capacity.tell_capacity(summary)
    shares = SHARES | {"lora-r64": {400: 0.9, 800: 0.5, 1600: 0.69}}
    study = read_study(Factory(tmp_path / "capacity", items=400).capacity(shares))
    text = capacity.tell_capacity(summarise_study(study))
    assert "less was learned by LoRA r=64 than by LoRA r=16 at 800 facts (−" in text
    assert "at 400 facts (−" not in text


def test_who_is_not_behind_at_the_most_facts_is_said(tmp_path: Path, summary: Summary) -> None:
    assert "not behind by that rule" not in capacity.tell_limits(summary)
    shares = {"full": {400: 0.9, 800: 0.85, 1600: 0.3}, "lora": {400: 0.9, 800: 0.5, 1600: 0.3}}
    study = read_study(Factory(tmp_path / "capacity", items=400).capacity(shares))
    text = capacity.tell_limits(summarise_study(study))
    assert "LoRA r=16 at 800 facts" in text
    assert "At 1,600 facts, where full itself is " in text
    assert "% right, LoRA r=16 is not behind by that rule." in text
