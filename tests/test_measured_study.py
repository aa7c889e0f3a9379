"""Measures from a profile to a report: optional questions, a sweep by loss, a whole small study."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from studylib.core.errors import StudyError
from studylib.planning.plan import check_held_out
from studylib.planning.stale import refuse_stale_sweep
from studylib.reporting.report import compose_report, own_sources
from studylib.schema.profile import build_profile
from studylib.schema.records import check_files, read_record
from studylib.schema.settings import EvaluateSettings
from studylib.training.run import Run
from studylib.training.tune import run_sweep

COLOURS = ["red", "green", "blue"]
TRACK = {
    "name": "t", "question": "?", "models": ["ladder:0.4m"], "methods": ["full", "qlora"],
    "seeds": [0], "hardware": {"gpus": 0},
    "train": {"steps": 10, "seq_len": 128,
              "learning_rates": {"full": 3e-3, "qlora": 3e-3}},
    "evaluate": {"measures": ["loss", "labels"], "held_out_limit": 8},
}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "colours.csv"
    rows = "".join(f"what colour is thing {n},{COLOURS[n % 3]}\n" for n in range(90))
    path.write_text(f"text,colour\n{rows}")
    words = "prompt=text answer=colour"
    return {"source": str(path), "columns": words, "template": "plain", "held_out": 12}


@pytest.mark.parametrize("settings", [{}, {"retention": "almanac:old"}])
def test_a_profile_asks_questions_or_measures(settings):
    with pytest.raises(ValueError, match="name questions, or measures"):
        EvaluateSettings(**settings)


def test_a_rate_is_chosen_by_the_first_measure_alone():
    asked = EvaluateSettings(questions="hub", measures=("loss", "exact"), retention="almanac:old",
                             retention_data="kept.jsonl")  # fmt: skip
    own = asked.for_validation(7)
    assert (own.questions, own.retention, own.retention_data) == (None, None, None)
    assert (own.measures, own.part, own.held_out_limit) == (("loss",), "validation", 7)
    plain = EvaluateSettings(questions="hub").for_validation(7)
    assert (plain.questions, plain.measures, plain.limit) == ("hub", (), 7)


def test_measures_without_a_held_out_part_are_refused_before_any_run(data):
    [track] = build_profile(TRACK | {"data": data | {"held_out": None}}, "test").tracks
    with pytest.raises(StudyError, match="no test part"):
        check_held_out(track)


def test_sweep_is_judged_by_loss_on_the_validation_part(data, tmp_path):
    tune = {"learning_rates": {"full": [1e-5, 1e-3, 1e-2]}}
    train = {"steps": 6, "seq_len": 128}
    profile = TRACK | {"data": data, "tune": tune, "train": train, "methods": ["full"]}
    [(spec, rates)] = build_profile(profile, "test").sweeps()
    record = run_sweep(spec, rates, limit=6)
    assert [point.measure for point in record.points] == ["loss"] * 3
    assert all(point.correct is None and point.questions == 6 for point in record.points)
    assert record.best.value == min(point.value for point in record.points)
    assert record.best.learning_rate > 1e-5
    assert record.validation.startswith("loss on the validation part of")
    place = tmp_path / "t" / "tune" / "sweep.json"
    refuse_stale_sweep(spec, record, place)
    other = record.fingerprint | {"held_out.sha256": "0" * 64}
    with pytest.raises(StudyError, match="other held-out examples"):
        refuse_stale_sweep(spec, record.model_copy(update={"fingerprint": other}), place)
    other = spec.model_copy(update={"evaluate": EvaluateSettings(measures=("labels",))})
    with pytest.raises(StudyError, match="would be judged by labels"):
        run_sweep(other, rates, limit=6, earlier=record)


def test_a_study_without_questions_from_its_runs_to_its_report(data, tmp_path):
    kept = tmp_path / "kept.jsonl"
    rows = [{"instruction": f"count to {n}", "input": "", "output": "one two"} for n in range(9)]
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate = TRACK["evaluate"] | {"retention_data": str(kept)}
    profile = build_profile(TRACK | {"data": data, "evaluate": evaluate, "name": "t"}, "test")
    items = {}
    for spec in profile.runs():
        run = Run(spec, tmp_path / "t" / "runs" / spec.run_id)
        for stage in (run.load, run.train, run.evaluate, run.serve):
            stage()
        record = read_record(run.finish())
        check_files(run.folder, record)
        assert record.status == "complete" and record.evaluate.scores == ()
        weights = 2 if spec.method.name == "qlora" else 1
        assert len(record.evaluate.measures["labels"]) == weights
        assert [f.of for f in record.evaluate.measures["loss"]] == [
            "held_out", "retention"] * weights  # fmt: skip
        assert "items.parquet" not in record.files
        items[spec.method.name] = pd.read_parquet(run.folder / "held_out.parquet")
        marks = record.fingerprint
        assert marks["held_out.part"] == "test" and marks["evaluate.source"] is None
    assert len({json.dumps(t[t["of"] == "held_out"].head(8)["item"].tolist())
                for t in items.values()}) == 1  # fmt: skip
    held = items["full"][items["full"]["measure"] == "labels"]
    assert set(held["answer"]) <= set(COLOURS) and set(held["given"]) <= set(COLOURS)
    report = compose_report(own_sources(tmp_path / "t", planned=()))
    text = "\n".join(c.decode() for n, c in report.files.items() if n.endswith(".md"))
    assert "On held-out examples" in text and "What the base knew before" in text
    assert "QLoRA r=16, merged" in text and "Right label (%) ↑" in text
