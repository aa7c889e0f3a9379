"""The gate of speed fails a row that became worse by more than its factor, and no other."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
bench = importlib.import_module("bench")
sys.path.pop(0)


@pytest.fixture
def gate(tmp_path, monkeypatch, capsys):
    """Runs the gate on two rows whose figures, one after the other, are given."""
    series = {}

    def row(name, more, factor):
        return bench.Row(name, "of the test", lambda: series[name].pop(0), more, factor)

    made = [row("speed", True, 1.5), row("tokens", False, 1.0)]
    monkeypatch.setattr(bench, "all_rows", lambda data: made)
    baseline = tmp_path / "bench.json"

    def run(*words, **figures):
        series.update(figures)
        code = bench.main(["--baseline", str(baseline), *words])
        return code, capsys.readouterr()

    return run, baseline


def test_a_row_may_be_worse_by_its_factor_and_a_count_by_nothing(gate):
    run, baseline = gate
    code, _ = run("--repeats", "3", "--write", speed=[5.0, 9.0, 6.0], tokens=[100.0] * 3)
    assert code == 0
    found = json.loads(baseline.read_text())["rows"]
    assert found["speed"] == {"value": 6.0, "low": 5.0, "high": 9.0, "repeats": 3}
    assert run(speed=[4.01], tokens=[100.0])[0] == 0
    assert run(speed=[60.0], tokens=[1.0])[0] == 0
    code, said = run(speed=[3.9, 3.8, 3.99], tokens=[100.0])
    assert code == 1 and "FAILS, 1.50 of 1.5" in said.out and "holds" in said.out
    code, said = run(speed=[6.0], tokens=[101.0, 101.0, 101.0])
    assert code == 1 and said.out.count("FAILS") == 1


def test_a_failing_row_is_measured_again_and_the_best_counts(gate):
    run, _ = gate
    run("--write", speed=[6.0], tokens=[100.0])
    code, said = run(speed=[1.0, 2.0, 6.5], tokens=[100.0])
    assert code == 0 and "6.50" in said.out


def test_repeats_tell_how_many_would_have_failed_alone(gate):
    run, baseline = gate
    code, said = run("--repeats", "3", speed=[6.0, 3.0, 6.0], tokens=[7.0] * 3)
    assert code == 0 and not baseline.exists()
    assert "1 of 3 beyond 1.5" in said.out and "0 of 3 beyond 1 times" in said.out


def test_without_a_baseline_nothing_is_judged_and_a_wrong_row_is_one_message(gate):
    run, _ = gate
    code, said = run(speed=[1.0], tokens=[1.0])
    assert code == 0 and said.out.count("no baseline") == 2
    code, said = run("--rows", "sped")
    assert code == 2 and said.out == "" and len(said.err.strip().splitlines()) == 1
    assert run("--repeats", "0")[0] == 2


def test_the_baseline_holds_rows_that_are_measured_and_every_count_of_the_quick_part():
    """A row's name that changed would leave it unjudged, as one that has no baseline."""
    every = {row.name: row for row in bench.all_rows(Path(__file__).parent)}
    known = bench.read_baseline(bench.BASELINE)
    counts = {row.name for row in every.values() if row.quick and row.factor == 1.0}
    assert counts and counts <= known.keys() <= every.keys()


@pytest.mark.parametrize("name", ["few-shot tokens", "few-shot passes", "labels tokens"])
def test_counts_are_no_worse_than_the_baselines(name):
    """They have no noise: what a load moves is left to `make bench`."""
    [row] = [row for row in bench.all_rows(Path(__file__).parent) if row.name == name]
    known = bench.read_baseline(bench.BASELINE)[name]
    assert row.factor == 1.0 and not row.fails(row.measure(), known["value"])


def test_help_imports_no_more_modules_than_its_factor_allows():
    [row] = [row for row in bench.all_rows(Path(__file__).parent) if row.name == "help modules"]
    known = bench.read_baseline(bench.BASELINE)[row.name]
    assert not row.fails(row.measure(), known["value"])


def test_labels_after_a_prompt_of_sixty_tokens_read_a_tenth_of_one_forward_a_label():
    """By count, which no load moves; the row itself refuses log-likelihoods that differ. Shorter
    prompts share less: what labels do not share among themselves is read for each."""
    assert bench.rows.labels().token_ratio >= 10
