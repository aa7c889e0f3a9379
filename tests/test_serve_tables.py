"""Serving in the report: overheads with intervals, proofs, dollars with their assumption."""

from pathlib import Path

import pytest
from record_factory import Factory, make_spec
from serve_factory import add_serving

from studylib.reporting import serve_figures, serve_tables
from studylib.reporting.claims import Finding, evaluate_claims
from studylib.reporting.panels import to_svg
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study
from studylib.schema.serve_records import ServeRecord


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ServeRecord]:
    folder = tmp_path_factory.mktemp("s") / "cpu"
    return [add_serving(folder, method) for method in ("base", "full", "lora", "qlora")]


def judge(folder: Path, *claims: str) -> list[Finding]:
    Factory(folder).add(make_spec("base"))
    findings = evaluate_claims([summarise_study(read_study(folder))])
    return [f for f in findings if f"{f.claim}.{f.part}" in claims]


def test_shared_things_stand_once_in_the_footprint(records: list[ServeRecord]) -> None:
    what = [row[1] for row in serve_tables.footprint_table(records).rows]
    assert what.count("checkpoint") == 1
    assert what.count("adapter, LoRA r=16") == 2  # fp32 and bf16
    assert "4-bit base" in what


def test_the_13b_footprint_is_counted_beside_the_articles(records: list[ServeRecord]) -> None:
    rows = {(row[0], row[1]): row[3:] for row in serve_tables.counted_table().rows}
    assert rows["checkpoint", "bf16"] == ("26.0 GB", "about 26 GB")
    assert rows["adapter r=16 on q,k,v,o", "bf16"] == ("52.4 MB", "50 to 200 MB")
    assert rows["adapter r=16 on all linear layers", "fp32"] == ("250 MB", "50 to 200 MB")


def test_overhead_is_bold_where_its_interval_is_clear_of_none(records: list[ServeRecord]) -> None:
    table = serve_tables.overhead_table(records)
    row = next(r for r in table.rows if r[1:4] == ("LoRA r=16 dynamic", "base", "32"))
    assert row[4] == "**+9.0 % [+7.0, +11.0]**"
    merged = next(r for r in table.rows if r[1:4] == ("LoRA r=16 merged", "base", "32"))
    assert merged[4] == "+0.3 % [−1.7, +2.3]"
    assert any(r[1] == "base against itself" for r in table.rows)
    assert any(r[2] == "4-bit base" for r in table.rows)


def test_latency_claims_are_judged_by_interval(tmp_path: Path) -> None:
    add_serving(tmp_path / "a", adds=1.09)
    add_serving(tmp_path / "b", adds=1.40)
    [inside] = judge(tmp_path / "a", "C6.dynamic")
    [above] = judge(tmp_path / "b", "C6.dynamic")
    assert (inside.verdict, above.verdict) == ("reproduced", "differs")
    assert "at batch 1, prompt of 32 tokens" in inside.ours
    assert "over 6 settings" in inside.ours
    [merged] = judge(tmp_path / "a" / "again", "C6.merged")
    assert merged.verdict == "not measured yet"


def test_a_swap_without_proof_is_no_hot_swap(tmp_path: Path) -> None:
    add_serving(tmp_path / "a")
    add_serving(tmp_path / "b", proven=False)
    [good] = judge(tmp_path / "a", "C7.hot-swap")
    [bad] = judge(tmp_path / "b", "C7.hot-swap")
    assert (good.verdict, bad.verdict) == ("reproduced", "differs")
    assert "slowest switch 0.130 ms is less than the fastest load, 81.0 ms" in good.decided_by
    assert "not proven equal: 0 of 1" in bad.decided_by


def test_swap_table_shows_the_proof_and_what_is_not_relied_on(records: list[ServeRecord]) -> None:
    rows = serve_tables.swap_table(records).rows
    assert [row[1] for row in rows] == ["LoRA r=16", "QLoRA r=16"]
    assert rows[0][-1].startswith("**yes**: 1 check, largest difference 2.0e-07 of 1e-04 allowed")
    assert "off by 8.0e-02" in serve_tables.swap_notes(records)
    assert "0.780 × [0.760, 0.800]" in serve_tables.mixed_table(records).rows[0][5]


def test_variants_say_from_where_adapters_pay(records: list[ServeRecord]) -> None:
    table = serve_tables.measured_variants_table(records)
    pays = {row[1]: row[-1] for row in table.rows}
    assert pays["checkpoints"] == "reference"
    assert pays["fp32 adapters on one checkpoint"] == "2; 2"
    assert "730 hours a month" in serve_tables.assumption_sentence()
    assert "A100 80GB" in serve_tables.assumption_sentence()


def test_adapters_cost_less_than_checkpoints_from_a_few_variants_on() -> None:
    rows = {(row[0], row[1]): int(row[4].replace(",", ""))
            for row in serve_tables.counted_variants_table().rows}  # fmt: skip
    assert rows["checkpoints", "1"] == 1
    told = serve_tables.break_even_sentence()
    assert "from 2 variants on by bytes" in told and "from 1 variant on by bytes" in told
    assert rows["checkpoints", "1,000"] > 100 * rows["adapters r=16 on one bf16 base", "1,000"]


def test_what_was_skipped_is_said_once_with_its_runs(records: list[ServeRecord]) -> None:
    [line] = serve_tables.tell_skipped(records)
    assert line.startswith("prompt of 1024 tokens: not measured, too long")
    assert line.count("ladder-0.4m") == len(records)


def test_pictures_are_alike_each_time(records: list[ServeRecord]) -> None:
    for draw in (lambda: serve_figures.draw_overhead(records), serve_figures.draw_monthly):
        one, two = draw(), draw()
        assert one is not None
        assert two is not None
        assert to_svg(one) == to_svg(two)
    assert serve_figures.draw_overhead([]) is None
    lines = serve_figures.overhead_lines(records)
    assert all(rows[0].prompt_tokens == 32 for _, rows in lines.values())
    _, rows = lines["ladder:0.4m", "QLoRA r=16 dynamic"]
    assert {row.against for row in rows} == {"4-bit base"}
