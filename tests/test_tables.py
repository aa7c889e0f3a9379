"""Tables say a figure with its interval or a word, and the csv files hold the unrounded figures."""

import csv
import io
from pathlib import Path

import pytest
from record_factory import GPU, Factory, make_spec

from studylib.reporting import exports, notes, tables
from studylib.reporting.blocks import Table, words
from studylib.reporting.study import read_study
from studylib.reporting.summary import Summary, summarise_study


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarise_study(read_study(Factory(tmp_path_factory.mktemp("r") / "s").study()))


def test_headers_carry_units_and_arrows(summary: Summary) -> None:
    header = tables.headline_table(summary.comparisons).header
    assert "Accuracy (%) ↑" in header
    assert "Clean step (s) ↓" in header
    assert "Gap to full (pp) ↑" in header


def test_seeds_are_one_row_and_every_row_is_as_long_as_the_header(summary: Summary) -> None:
    for make in (tables.headline_table, tables.memory_table, tables.time_table, tables.gap_table,
                 tables.accuracy_table):  # fmt: skip
        table = make(summary.comparisons)
        assert {len(row) for row in table.rows} == {len(table.header)}
    assert len(tables.headline_table(summary.comparisons).rows) == 8


def test_accuracy_has_its_interval_and_the_note_its_items_and_seeds(summary: Summary) -> None:
    cells = tables.headline_table(summary.comparisons).column("Accuracy")
    assert " ± " in cells[1]
    assert "320 questions, 3 seeds" in notes.spread_note(summary.comparisons)


def test_without_a_price_no_dollar_is_shown(summary: Summary) -> None:
    costs = tables.headline_table(summary.comparisons).column("Cost")
    assert set(costs) == {"not trained", "no price stated"}


def test_card_memory_stands_beside_torchs_and_cost_has_its_range(tmp_path: Path) -> None:
    folder = Factory(tmp_path / "g", device=GPU).study(seeds=(0,), gpus=1)
    comparisons = summarise_study(read_study(folder)).comparisons
    measures = tables.memory_table(comparisons).column("Measure")
    assert measures[:4] == ["NVML, device", "torch reserved", "torch allocated", "host memory"]
    assert comparisons[0].memory_kind == "nvml_peak_bytes"
    cost = tables.time_table(comparisons).column("Cost")[1]
    assert "–" in cost
    assert "Energy (Wh) ↓" in tables.time_table(comparisons).header


def test_utilisation_is_the_models_arithmetic_over_the_datasheets(tmp_path: Path) -> None:
    """On a CPU there is no datasheet and so no column; nothing was recomputed, so no column."""
    folder = Factory(tmp_path / "u", device=GPU).study(seeds=(0,), gpus=1)
    comparisons = summarise_study(read_study(folder)).comparisons
    row = comparisons[0].row("full")
    assert row is not None
    expected = row.figures["tokens_per_second"].value * row.figures["model_flops_per_token"].value
    assert row.figures["model_flops_utilisation"].value == pytest.approx(expected / 312e12)
    header = tables.time_table(comparisons).header
    assert "Utilisation (%) ↑" in header
    assert "Optimizer (% of step) ↓" in header
    assert not any(name.startswith("Recomputed") for name in header)
    on_cpu = summarise_study(read_study(Factory(tmp_path / "c").study(seeds=(0,)))).comparisons
    assert "Utilisation (%) ↑" not in tables.time_table(on_cpu).header


def test_stated_price_is_shared_by_runs_at_the_same_time(tmp_path: Path) -> None:
    folder = Factory(tmp_path / "p").study(seeds=(0,), usd_per_hour=3.6)
    row = summarise_study(read_study(folder)).comparisons[0].row("full")
    assert row is not None
    seconds = row.figures["train_seconds"].value
    assert row.figures["cost_usd"].value == pytest.approx(seconds * 3.6 / 3600 / 2)


def test_csv_holds_what_the_summary_holds(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(exports.comparison_csv(summary).decode())))
    found = next(r for r in rows if r["method"] == "lora-r16" and r["metric"] == "gap")
    gap = summary.comparisons[0].row("lora")
    assert gap is not None
    assert gap.gap is not None
    assert float(found["value"]) == pytest.approx(gap.gap.value, rel=1e-6)
    assert float(found["low"]) == pytest.approx(gap.gap.low, rel=1e-6)
    assert {r["got"] for r in rows} == {"measured", "counted"}


def test_subjects_csv_adds_up_to_the_scores(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(exports.subjects_csv(summary).decode())))
    record = summary.study.records[1]
    mine = [r for r in rows if r["run_id"] == record.run_id and r["task"] == "questions"]
    score = record.evaluate and record.evaluate.score("questions")
    assert score
    assert sum(int(r["correct"]) for r in mine) == score.correct


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    assert Table(words("a"), (("x|y",),)).markdown().splitlines()[-1] == "| x\\|y |"


def test_a_track_of_its_own_is_not_compared_with_another(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "t")
    factory.add(make_spec("full"))
    factory.add(make_spec("lora", track="language"))
    found = summarise_study(read_study(factory.folder)).comparisons
    assert [c.track for c in found] == ["main", "language"]
    assert all(row.gap is None for c in found for row in c.rows)


class TestScoredTwice:
    """A quantized run is scored on its 4-bit base and merged: two rows, and nothing mixed."""

    def test_the_methods_row_is_the_four_bit_base_with_its_adapter(self, summary: Summary) -> None:
        comparison = summary.comparisons[0]
        row = comparison.row("qlora")
        assert row is not None
        assert row.accuracy is not None
        assert row.weights == "4-bit base with adapter"
        assert row.accuracy.items == 320
        scores = [r.evaluate.score("questions") for r in row.complete if r.evaluate]
        shares = [score.accuracy for score in scores if score]
        assert row.accuracy.value == pytest.approx(sum(shares) / len(shares))

    def test_merged_is_a_row_of_its_own_in_accuracy_and_gap_tables(self, summary: Summary) -> None:
        comparisons = summary.comparisons[:1]
        rows = ["LoRA r=16", "QLoRA r=16", "QLoRA r=16, merged"]
        assert tables.accuracy_table(comparisons).column("Method")[2:] == rows
        assert tables.gap_table(comparisons).column("Method") == rows
        assert tables.headline_table(comparisons).column("Method")[2:] == rows[:2]
        [merged] = comparisons[0].also
        assert merged.mcnemar is not None
        assert merged.gap != comparisons[0].row("qlora").gap  # type: ignore[union-attr]
        assert merged.figures == {}

    def test_csv_tells_them_apart(self, summary: Summary) -> None:
        rows = list(csv.DictReader(io.StringIO(exports.comparison_csv(summary).decode())))
        gaps = [r["scored_on"] for r in rows if (r["method"], r["metric"]) == ("qlora-r16", "gap")]
        assert gaps[:2] == [
            "4-bit base with adapter", "4-bit base and adapter merged into bf16",
        ]  # fmt: skip

    def test_seeds_scored_on_other_weights_are_refused_by_name(self, tmp_path: Path) -> None:
        factory = Factory(tmp_path / "w")
        factory.add(make_spec("full"))
        factory.add(make_spec("qlora", seed=0))
        factory.add(make_spec("qlora", seed=1), fingerprint={"evaluate.weights": "merged"})
        found = summarise_study(read_study(factory.folder))
        assert [r.field for r in found.refusals] == ["evaluate.weights (qlora-r16)"]
        assert [len(c.rows) for c in found.comparisons] == [2, 1]


def test_the_articles_margins_are_for_the_track_that_it_speaks_of(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "t")
    for method in ("full", "lora"):
        factory.add(make_spec(method, track="language"))
    comparisons = summarise_study(read_study(factory.folder)).comparisons
    assert tables.gap_table(comparisons).column("Equivalent within") == ["no margin claimed"]
