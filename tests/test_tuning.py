"""Sweeps: kept whole, judged on validation only, edges flagged, choices with their source."""

from __future__ import annotations

import json

import pytest

from studylib.core.errors import StudyError
from studylib.schema.profile import build_profile
from studylib.schema.records import Environment
from studylib.schema.tuning import (
    TunePoint,
    TuneRecord,
    next_rate,
    open_profile,
    read_sweep,
    tuned_rates,
    write_sweep,
)

ENVIRONMENT = Environment(
    started_at="2026-01-01T00:00:00+00:00", finished_at="2026-01-01T00:01:00+00:00",
    device="CPU test", devices=(), devices_reason="none", host={}, threads=1, concurrent_runs=1,
    sessions=1, packages={}, git_commit=None, git_dirty=None,
)  # fmt: skip


def sweep(*corrects: int | None, rates=(1e-3, 2e-3, 4e-3), losses=None, method="lora-r16"):
    losses = losses or [1.0] * len(corrects)
    points = tuple(
        TunePoint(learning_rate=rate, questions=160, correct=c, last_loss=loss, seconds=1.0)
        for rate, c, loss in zip(rates, corrects, losses, strict=True)
    )
    return TuneRecord(
        sweep_id=f"ladder-0.4m--{method}", profile="cpu", track="main", model="ladder:0.4m",
        method=method, seed=1000, validation="almanac:new validation", overlap_dropped=0,
        points=points, extended=False, environment=ENVIRONMENT, fingerprint={},
    )  # fmt: skip


def test_best_rate_has_the_most_right_answers():
    assert sweep(10, 90, 30).best.learning_rate == 2e-3
    assert not sweep(10, 90, 30).at_edge


def test_equal_answers_are_decided_by_the_loss():
    assert sweep(90, 90, 30, losses=[0.5, 0.2, 0.1]).best.learning_rate == 2e-3


def test_best_at_the_edge_is_flagged_and_the_next_rate_lies_beyond_it():
    assert sweep(90, 50, 30).at_edge and sweep(10, 50, 90).at_edge
    assert next_rate((1e-3, 2e-3, 4e-3), 4e-3) == pytest.approx(8e-3)
    assert next_rate((1e-3, 2e-3, 4e-3), 1e-3) == pytest.approx(5e-4)


def test_diverged_rate_stays_in_the_curve_and_is_never_chosen():
    found = sweep(10, 20, None)
    assert len(found.points) == 3
    assert found.best.learning_rate == 2e-3
    with pytest.raises(StudyError, match="diverged"):
        _ = sweep(None, None, None).best


def test_sweep_is_read_as_it_was_written_and_refused_when_edited(tmp_path):
    path = write_sweep(tmp_path, sweep(10, 90, 30))
    assert read_sweep(path).best.learning_rate == 2e-3
    content = json.loads(path.read_text())
    content["points"][0]["correct"] = 159
    path.write_text(json.dumps(content))
    with pytest.raises(StudyError, match="changed after"):
        read_sweep(path)
    path.write_text("{")
    with pytest.raises(StudyError, match="truncated"):
        read_sweep(path)


def test_choice_names_its_grid_seed_and_file():
    rates = tuned_rates([sweep(10, 20, 90)], "results/cpu/tune")
    found = rates["main ladder:0.4m lora-r16"]
    assert found.learning_rate == 4e-3
    for words in ("best of 3", "validation", "seed 1000", "edge", "ladder-0.4m--lora-r16.json"):
        assert words in found.source


CONTENT = {
    "name": "t", "question": "?", "models": ["ladder:0.4m"], "methods": ["full", "lora"],
    "seeds": [0], "data": {"source": "almanac:new"}, "evaluate": {"questions": "almanac:new"},
    "train": {"steps": 5, "seq_len": 64},
}  # fmt: skip


def test_every_method_gets_as_many_rates():
    uneven = {"full": [1e-3, 2e-3, 4e-3], "lora": [1e-3, 2e-3]}
    with pytest.raises(StudyError, match="as many"):
        build_profile({**CONTENT, "tune": {"learning_rates": uneven}}, "test")


def test_method_without_a_grid_is_named():
    grids = {"full": [1e-3, 2e-3, 4e-3]}
    profile = build_profile({**CONTENT, "tune": {"learning_rates": grids}}, "test")
    with pytest.raises(StudyError, match="lora-r16"):
        profile.sweeps()


def test_sweeps_seed_is_none_of_the_studys(tmp_path):
    grids = {"full": [1e-3, 2e-3, 4e-3], "lora": [1e-3, 2e-3, 4e-3]}
    profile = build_profile({**CONTENT, "tune": {"learning_rates": grids}}, "test")
    seeds = {run.seed for run in profile.runs()}
    assert all(spec.seed not in seeds for spec, _ in profile.sweeps())


def test_readers_own_sweep_enters_the_runs_and_the_profiles_own_rate_wins(tmp_path):
    write_sweep(tmp_path / "cpu" / "tune", sweep(10, 90, 30))
    profile = open_profile("cpu", tmp_path)
    run = profile.run("ladder-0.4m--lora-r16--s0")
    assert run.learning_rate == 2e-3
    assert "results/cpu/tune/ladder-0.4m--lora-r16.json" in run.learning_rate_source
    stated = {"train": {"learning_rates": {"lora": 7e-3}}}
    changed = open_profile("cpu", tmp_path, stated)
    assert changed.run("ladder-0.4m--lora-r16--s0").learning_rate == 7e-3


def test_changed_profile_takes_the_rates_of_the_one_it_changes(tmp_path):
    write_sweep(tmp_path / "cpu" / "tune", sweep(10, 90, 30))
    changed = open_profile("cpu", tmp_path, {"seeds": [7]})
    assert changed.name != "cpu"
    assert changed.run("ladder-0.4m--lora-r16--s7").learning_rate == 2e-3
