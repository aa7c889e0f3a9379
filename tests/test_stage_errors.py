"""A plan's stages stand beside what happened, and what happened teaches the next plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from record_factory import GPU, make_spec
from serve_factory import add_serving
from taught import CPU, GB, add_run, keep_plans

from studylib.core.places import REFERENCE
from studylib.forecasting import calibration, cpu_hours, run_forecasts
from studylib.forecasting.calibration import learn_from, learn_share, learn_terms
from studylib.forecasting.run_forecasts import refresh_forecasts
from studylib.planning.estimate import PROCESS_SECONDS, load_hours, start_hours
from studylib.reporting.stage_errors import (
    compare_stages,
    stage_errors_section,
    stage_table,
    start_seconds,
)
from studylib.reporting.study import read_study
from studylib.schema.ranges import Range
from studylib.schema.records import read_records
from studylib.schema.run_forecasts import PlannedStage, read_run_forecasts, write_run_forecasts


def planned(low, mid, high, count_bytes=None):
    return PlannedStage(seconds=Range(low=low, mid=mid, high=high), allocated_bytes=count_bytes)


STAGES = {
    "load": planned(20, 56, 100, 10**9),
    "train": planned(30, 40, 50, 10**9),
    "evaluate": planned(5, 5, 12),
}


def test_seconds_and_bytes_of_every_stage_stand_beside_the_plans(tmp_path):
    add_run(tmp_path / "gpu")
    add_run(tmp_path / "gpu", seconds=32.0, seed=1)
    served = add_serving(tmp_path / "gpu")  # 3 s, on a processor whose bytes nobody counts
    keep_plans(tmp_path / "gpu", STAGES, {served.serve_id: planned(1, 2, 3, GB)})
    rows = stage_table(compare_stages([read_study(tmp_path / "gpu", planned=())])).rows
    # The clock leaves 28 and 16 s of start: 56 is twice and 3.5 times as many, 16 no best case.
    assert rows[0] == ("start and load", GPU, "2", "22.0", "2.8", "3.5", "1 of 2", "800 MB",
                       "+25.0 %", "+25.0 %")  # fmt: skip
    assert rows[1][:7] == ("train", GPU, "2", "26.0", "1.6", "2.0", "1 of 2")
    assert rows[2][3:] == ("10.0", "0.50", "0.50", "2 of 2", *["not measured"] * 3)
    assert rows[3][:7] == ("serving run", CPU, "1", "3.00", "0.67", "0.67", "1 of 1")


def test_a_crowded_card_and_an_interrupted_run_have_no_seconds(tmp_path):
    add_run(tmp_path / "gpu")
    keep_plans(tmp_path / "gpu", STAGES)
    study = read_study(tmp_path / "gpu", planned=())
    (record,) = study.records
    crowd = record.run.hardware.model_copy(update={"runs_per_card": 2})
    run = record.run.model_copy(update={"hardware": crowd})
    where = record.environment.model_copy(update={"sessions": 2})
    for changes, known in (({"run": run}, set()), ({"environment": where}, {"train", "evaluate"})):
        changed = replace(study, records=(record.model_copy(update=changes),))
        found = list(compare_stages([changed]))
        assert {one.stage for one in found if one.time} == known
        assert {one.stage for one in found if one.memory} == {"load", "train"}


def test_without_plans_the_report_says_nothing_of_stages(tmp_path):
    add_run(tmp_path / "gpu")
    assert stage_errors_section([read_study(tmp_path / "gpu", planned=())]) == []


# Making plans -------------------------------------------------------------------------------------


def test_a_processors_speed_is_taken_once_and_kept(tmp_path, monkeypatch):
    add_run(tmp_path / "cpu", device=CPU)
    monkeypatch.setattr(run_forecasts, "device_name", lambda: CPU)
    monkeypatch.setattr(cpu_hours, "product_speed", lambda dtype, threads: 1e9)
    records = read_records(tmp_path / "cpu" / "runs")
    refresh_forecasts(tmp_path / "cpu", records, lambda line: None)
    made = read_run_forecasts(tmp_path / "cpu")
    assert made.speeds == {f"{CPU}, 1 threads, fp32": 1e9}
    spec, size = records[0].run, 410_240  # what ladder:0.4m has
    exact = cpu_hours.forecast_train_seconds(spec, size, lambda dtype: 1e9)
    assert made.runs[0].stages["train"].seconds.mid == pytest.approx(exact.mid, rel=1e-4)
    assert set(made.runs[0].stages) == {"load", "train", "evaluate"}
    # Elsewhere, by other code: the same figures, of the processor that the runs had.
    write_run_forecasts(tmp_path / "cpu", made.model_copy(update={"code_sha256": "other"}))
    monkeypatch.setattr(run_forecasts, "device_name", lambda: "CPU of another make")
    refresh_forecasts(tmp_path / "cpu", records, lambda line: None)
    assert read_run_forecasts(tmp_path / "cpu").runs == made.runs


def test_another_machines_processor_has_no_plan_in_seconds(tmp_path):
    add_run(tmp_path / "cpu", device="CPU of another make")
    refresh_forecasts(tmp_path / "cpu", read_records(tmp_path / "cpu" / "runs"), lambda line: None)
    made = read_run_forecasts(tmp_path / "cpu")
    assert made.runs[0].stages == {} and made.speeds == {}


def test_a_plan_knows_how_long_a_run_on_a_card_takes_to_begin():
    """The eight that an H200 ran one after the other, by their shipped records: no plan is three
    times too long, and most lie within its range."""
    records = read_records(REFERENCE / "h200" / "runs")
    seen = [start_seconds(record) for record in records]
    plans = [load_hours(r.run, r.load.total_params) * 3600 for r in records]
    assert len(seen) == 8 and all(
        plan.mid < 3 * max(1.0, taken) + 1 for plan, taken in zip(plans, seen, strict=True)
    )
    inside = [plan.low <= taken <= plan.high for plan, taken in zip(plans, seen, strict=True)]
    assert sum(inside) >= 7


def test_weights_that_are_drawn_are_not_read_and_the_process_comes_before_all():
    spec = make_spec("lora")
    drawn, read = (
        load_hours(spec.model_copy(update={"model": name}), 13 * 10**9)
        for name in ("shape:llama-2-13b", "path:model")
    )
    assert read.mid > 5 * drawn.mid
    whole = start_hours(spec, 10**6)
    assert whole.mid - load_hours(spec, 10**6).mid == pytest.approx(PROCESS_SECONDS.mid / 3600)


# What runs teach a plan ---------------------------------------------------------------------------


def test_runs_of_like_models_on_a_processor_teach_its_share(tmp_path):
    for seed, seconds in enumerate((20.0, 40.0, 80.0)):
        add_run(tmp_path / "mine", device=CPU, seconds=seconds, seed=seed)
    keep_plans(tmp_path / "mine", {"train": planned(10, 20, 40)})
    found = learn_share(CPU, "train", 1_000_000, tmp_path)
    assert (found.low, found.mid, found.high) == (0.25, 0.5, 1.0)
    assert found.source == f"by 3 runs on {CPU}"
    assert learn_share(CPU, "train", 100_000_000, tmp_path) is None  # no like model
    assert learn_share("CPU of another make", "train", 1_000_000, tmp_path) is None
    assert learn_share(CPU, "evaluate", 1_000_000, tmp_path) is None  # no plan of it


@pytest.fixture
def named(monkeypatch):
    """Names the folder whose runs teach; afterwards it is what it was."""
    before = calibration.own_results
    monkeypatch.setattr(calibration, "REFERENCE", Path("nowhere"))
    yield learn_from
    learn_from(before)


def test_a_forecast_is_nearer_to_a_run_with_what_an_earlier_one_taught(
    tmp_path, monkeypatch, named
):
    record = add_run(tmp_path / "mine", device=CPU)
    for module in (run_forecasts, cpu_hours):
        monkeypatch.setattr(module, "device_name", lambda: CPU)
    monkeypatch.setattr(cpu_hours, "product_speed", lambda dtype, threads: 1e9)
    records = read_records(tmp_path / "mine" / "runs")
    refresh_forecasts(tmp_path / "mine", records, lambda line: None)
    spec, size = record.run.model_copy(update={"seed": 1}), 410_240  # what ladder:0.4m has

    def foresee():
        share, source = cpu_hours.learned_speed("train", size)
        made = cpu_hours.forecast_train_seconds(spec, size, lambda dtype: 1e9, share)
        return abs(made.mid / record.train.measure.wall_seconds - 1), source

    named(tmp_path / "nothing")
    without, assumed = foresee()
    named(tmp_path)
    taught, source = foresee()
    assert taught < 0.01 < without
    assert assumed.startswith("assumption") and source == f"by 1 run on {CPU}"


def test_own_runs_on_a_card_teach_from_the_folder_that_is_named(tmp_path, named):
    add_run(tmp_path / "mine")
    keep_plans(tmp_path / "mine", {}, roofline=0.04)
    named(tmp_path / "nothing")
    assert "assumption" in learn_terms("a100-80gb")[0].source
    named(tmp_path)
    assert learn_terms("a100-80gb")[0].source == "by 1 run on NVIDIA A100 80GB SXM"
