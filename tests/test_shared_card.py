"""Runs that share a card: their answers and memory are told, what a clock says of them is not."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from record_factory import GPU, Factory, make_spec

from studylib.core.metrics import METRICS
from studylib.reporting.blocks import to_markdown
from studylib.reporting.cells import SHARED
from studylib.reporting.compose import build_report
from studylib.reporting.notes import price_note
from studylib.reporting.own_study import cost_section
from studylib.reporting.resources import COUNTED_FIGURES, TIMED, price_of
from studylib.reporting.study import read_study
from studylib.reporting.summary import Summary, summarise_study
from studylib.reporting.tables import headline_table, time_table
from studylib.schema.profile import RunSpec
from studylib.schema.shared_card import runs_on_card

CLOCK = (
    "Clean step",
    "Tokens/s",
    "Cost ($)",
    "Training (s)",
    "End to end",
    "Energy",
    "Utilisation",
)


def shared(spec: RunSpec, runs: int = 10) -> RunSpec:
    """The same run where as many are put on one card."""
    hardware = spec.hardware.model_copy(update={"runs_per_card": runs})
    return spec.model_copy(update={"hardware": hardware})


def made(folder: Path, device: str = GPU, alone: tuple[str, ...] = ()) -> Summary:
    factory = Factory(folder, device=device)
    for method in ("base", "full", "lora"):
        spec = make_spec(method, gpus=0 if method == "base" else 1)
        factory.add(spec if method in alone else shared(spec))
    return summarise_study(read_study(folder, planned=()))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return made(tmp_path_factory.mktemp("crowd") / "crowd")


def test_only_what_was_on_the_same_card_shares_it(tmp_path: Path) -> None:
    both = Factory(tmp_path / "card", device=GPU)  # its records say: two runs at a time
    assert runs_on_card(both.add(shared(make_spec("full")))) == 2
    assert runs_on_card(both.add(make_spec("full", seed=1))) == 1, "each on a card of its own"
    cores = Factory(tmp_path / "cores").add(shared(make_spec("full")))
    assert runs_on_card(cores) == 1, "a processor's runs have cores of their own"


def test_no_figure_of_a_clock_is_told_and_memory_is(crowd: Summary) -> None:
    [comparison] = crowd.comparisons
    for row in comparison.rows:
        assert row.shares_card and not TIMED & {*row.figures} and row.price is None
        assert all(price_of(record) is None for record in row.records)
    full = comparison.row("full")
    assert set(COUNTED_FIGURES) <= {*full.figures}
    assert ("torch_peak_reserved_bytes", "train") in full.memory
    for table in (headline_table([comparison]), time_table([comparison])):
        assert not [head for head in table.header if head.startswith(CLOCK)]
        assert all(len(row) == len(table.header) for row in table.rows)
    assert METRICS["train_peak_bytes"].header in headline_table([comparison]).header


def test_report_says_why_and_compares_no_times(crowd: Summary) -> None:
    files = build_report([crowd], [], None, own_folder="").files
    text = files["REPORT.md"].decode()
    told = text.split("## Words")[0]
    assert "2 runs shared the card" in told and "× the memory" in told
    assert "× the time" not in told and "time and cost" not in told
    assert "no offer in the catalog" not in told, "the card has a price, a share of it has none"
    details = files["docs/report/details.md"].decode().split("### What the columns mean")[0]
    assert not re.search("|".join(map(re.escape, CLOCK)), told + details)
    rows = list(csv.DictReader(io.StringIO(files["tables/comparison.csv"].decode())))
    assert not TIMED & {row["metric"] for row in rows}
    runs = list(csv.DictReader(io.StringIO(files["tables/runs.csv"].decode())))
    assert {row["runs_on_card"] for row in runs} == {"2"}


def test_a_readers_own_report_leaves_them_out_too(crowd: Summary) -> None:
    lines = to_markdown(cost_section(crowd))
    assert price_note(crowd.comparisons) in lines and "shared the card" in lines
    assert not re.search("|".join(map(re.escape, CLOCK)), lines)


def test_beside_a_run_of_its_own_a_shared_ones_cells_say_so(tmp_path: Path) -> None:
    [comparison] = made(tmp_path / "mixed", alone=("base", "full")).comparisons
    for table in (headline_table([comparison]), time_table([comparison])):
        rows = {row[1]: dict(zip(table.header, row, strict=True)) for row in table.rows}
        step, cost = (METRICS[key].header for key in ("clean_step_seconds", "cost_usd"))
        assert rows["LoRA r=16"][step] == rows["LoRA r=16"][cost] == SHARED
        assert re.match(r"\d", rows["full"][step]) and re.match(r"\d", rows["full"][cost])
