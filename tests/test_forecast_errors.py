"""Forecast against measured: by part, for like runs together, never of another record."""

import json
from pathlib import Path

import pytest
from record_factory import GPU, Factory, make_spec

from studylib.core.errors import StudyError
from studylib.core.places import REFERENCE
from studylib.forecasting.calibration import learn_terms
from studylib.forecasting.forecast import ForecastSettings, forecast
from studylib.forecasting.job_forecast import trace_with
from studylib.forecasting.run_forecasts import forecast_record, refresh_forecasts
from studylib.metering.code_files import FORECASTING, code_sha256
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import ASSUMED
from studylib.reporting.exports import forecasts_csv
from studylib.reporting.forecast_errors import (
    MeasuredAndForecast,
    compare_run,
    compare_runs,
    forecast_errors_section,
    part_table,
    peak_table,
    sentence,
)
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study
from studylib.schema.ranges import Range
from studylib.schema.records import read_records
from studylib.schema.run_forecasts import (
    RUN_FORECASTS,
    RunForecast,
    RunForecasts,
    digests,
    read_run_forecasts,
    write_run_forecasts,
)

GB = 10**9


def card_record(method="lora", **changes):
    """A training on a card: 20 GB of weights, 4 of states, 30 allocated, 32 reserved, 33 NVML."""
    return train_record(
        method,
        {"torch_peak_allocated_bytes": 30 * GB, "torch_peak_reserved_bytes": 32 * GB,
         "nvml_process_peak_bytes": 33 * GB, "nvml_peak_bytes": 34 * GB} | changes,
        weights_bytes=20 * GB, optimizer_states_bytes=4 * GB, clean_step_seconds=0.5,
    )  # fmt: skip


def train_record(method, measure, **train):
    factory = Factory(Path("unused"), device=GPU)
    spec = make_spec(method, gpus=1)
    block = factory.train(spec)
    block = block.model_copy(update={"measure": block.measure.model_copy(update=measure), **train})
    return _record(factory, spec, block)


def _record(factory, spec, block, status="complete"):
    from studylib.schema.records import Record

    return Record(
        run_id=spec.run_id, status=status, run=spec, load=factory.load(spec), train=block,
        environment=factory.environment(), fingerprint={}, files={}, digest="d" * 64,
    )  # fmt: skip


def forecast_of(record, peak=33 * GB, allocated=30 * GB, seconds=None):
    return RunForecast(
        run_id=record.run_id, record_digest=record.digest, peak_bytes=peak,
        allocated_bytes=allocated, peak_stage="backward",
        parts={"weights": 19 * GB, "adapter": GB, "optimizer_states": 3 * GB,
               "saved_activations": 5 * GB, "allocator": 2 * GB, "cuda_context": GB},
        step_seconds=seconds,
    )  # fmt: skip


def test_every_part_of_a_cards_peak_has_its_own_error():
    record = card_record()
    found = compare_run(record, forecast_of(record, peak=33 * GB, allocated=30 * GB))
    assert found.counter == "NVML"
    assert found.peak.measured == 33 * GB  # of the process, not of the card with all on it
    errors = {name: pair.error for name, pair in found.parts.items()}
    assert errors == pytest.approx({
        "Weights": 0.0,
        "Optimizer states": 3 / 4 - 1,
        "Rest of the step": 7 / 6 - 1,  # 30 - 20 - 3 against 30 - 20 - 4
        "Allocator's reserve": 2 / 2 - 1,
        "CUDA context": 0.0,
    })  # fmt: skip


def test_paged_states_are_of_the_card_and_of_no_process():
    record = card_record()
    paged = record.run.train.model_copy(update={"optimizer": "paged-adamw-8bit"})
    record = record.model_copy(update={"run": record.run.model_copy(update={"train": paged})})
    made = forecast_of(record).model_copy(update={"paged_bytes": GB})
    found = compare_run(record, made)
    assert found.peak == MeasuredAndForecast(
        34 * GB, 34 * GB
    )  # 33 of the process, and of the forecast without
    assert found.parts["CUDA context"] == MeasuredAndForecast(GB, GB)


def test_parts_of_a_forecast_add_up_to_its_peak():
    record = card_record()
    pairs = compare_run(record, forecast_of(record)).parts
    assert sum(pair.forecast for pair in pairs.values()) == 33 * GB
    assert sum(pair.measured for pair in pairs.values()) == 33 * GB


def test_on_a_cpu_live_tensors_stand_in_and_no_card_is_spoken_of():
    measure = {"nvml_peak_bytes": None, "torch_peak_allocated_bytes": None,
               "torch_peak_reserved_bytes": None, "live_tensor_peak_bytes": 10 * GB}  # fmt: skip
    record = train_record("full", measure, weights_bytes=2 * GB, optimizer_states_bytes=4 * GB)
    made = forecast_of(record, peak=11 * GB, allocated=11 * GB)
    found = [compare_run(record, made)]
    assert found[0].counter == "live tensors"
    assert found[0].peak.error == pytest.approx(0.1)
    assert set(found[0].parts) == {"Weights", "Optimizer states", "Rest of the step"}
    assert "10 % at worst" in sentence(found)
    assert "ran without a card" in sentence(found)
    assert peak_table(found).rows[0][-1] == "none"


def test_like_runs_share_a_row_with_the_worst_of_their_errors():
    records = [card_record(nvml_process_peak_bytes=n * GB) for n in (33, 30, 32)]
    records = [r.model_copy(update={"digest": str(i) * 64}) for i, r in enumerate(records)]
    span = Range(low=0.4, mid=0.6, high=0.9)
    found = [compare_run(r, forecast_of(r, seconds=span)) for r in records]
    (row,) = peak_table(found).rows
    assert row[3:8] == ("3", "NVML", "32.0 GB", "33.0 GB", "+10.0 %")
    assert row[8:] == ("0.500", "0.600 (0.400–0.900)")
    assert part_table(found).rows[0][3] == "20.0 GB (0.0 %)"


def test_a_run_out_of_memory_stands_beside_its_forecast_without_an_error():
    factory = Factory(Path("unused"), device=GPU)
    record = _record(factory, make_spec("full", gpus=1), None, status="out of memory")
    found = [compare_run(record, forecast_of(record))]
    assert peak_table(found).rows[0][5:8] == ("out of memory", "33.0 GB", "—")
    assert sentence(found) == "No run of this study was set beside its forecast."


def test_a_forecast_of_another_record_is_not_shown(tmp_path):
    Factory(tmp_path / "cpu").study(models=("ladder:0.4m",), seeds=(0,))
    records = read_records(tmp_path / "cpu" / "runs")
    made = [forecast_of(r) for r in records if r.run.method.kind.trains]
    made[0] = made[0].model_copy(update={"record_digest": "0" * 64})
    write_run_forecasts(
        tmp_path / "cpu",
        RunForecasts(runs=tuple(made), left_out={}, packages={}, code_sha256="c"),
    )
    study = read_study(tmp_path / "cpu", planned=())
    assert {one.record.run_id for one in compare_runs([study])} == {m.run_id for m in made[1:]}
    assert (
        forecasts_csv(summarise_study(study)).count(b"\n") == 1
    )  # the factory's runs have no peak


def test_without_forecasts_the_part_is_left_out(tmp_path):
    Factory(tmp_path / "cpu").study(models=("ladder:0.4m",), seeds=(0,))
    assert forecast_errors_section([read_study(tmp_path / "cpu", planned=())]) == []


# Making them -------------------------------------------------------------------------------------


def test_forecasts_are_made_once_for_these_records_and_this_code(tmp_path):
    Factory(tmp_path / "cpu").study(models=("ladder:0.4m",), methods=("base", "full"), seeds=(0,))
    records, said = read_records(tmp_path / "cpu" / "runs"), []
    refresh_forecasts(tmp_path / "cpu", records, said.append)
    refresh_forecasts(tmp_path / "cpu", records, said.append)
    assert len(said) == 1
    found = read_run_forecasts(tmp_path / "cpu")
    assert [run.run_id for run in found.runs] == ["ladder-0.4m--full--s0"]
    assert found.runs[0].step_seconds is None  # nothing is assumed about a CPU's speed
    assert found.made_for(records, code_sha256(FORECASTING))
    assert not found.made_for(records, "other code")
    assert not found.made_for(records[:1], code_sha256(FORECASTING))


def test_seeds_of_one_setting_are_traced_once(tmp_path):
    Factory(tmp_path / "cpu").study(models=("ladder:0.4m",), methods=("full",), seeds=(0, 1, 2))
    trace_with.cache_clear()
    records = read_records(tmp_path / "cpu" / "runs")
    refresh_forecasts(tmp_path / "cpu", records, lambda line: None)
    assert len(read_run_forecasts(tmp_path / "cpu").runs) == 3
    assert trace_with.cache_info().misses == 1


def test_results_are_read_where_torch_is_not_installed(tmp_path, monkeypatch):
    Factory(tmp_path / "cpu").study(models=("ladder:0.4m",), methods=("full",), seeds=(0,))
    records, said = read_records(tmp_path / "cpu" / "runs"), []
    monkeypatch.setattr("studylib.forecasting.run_forecasts.find_spec", lambda name: None)
    refresh_forecasts(tmp_path / "cpu", records, said.append)
    assert said == ["forecast: not made, torch is not installed here"]
    assert read_run_forecasts(tmp_path / "cpu") is None


def test_a_model_that_is_gone_is_left_out_with_the_reason(tmp_path):
    Factory(tmp_path / "x").study(models=("path:gone",), methods=("full",), seeds=(0,))
    records = read_records(tmp_path / "x" / "runs")
    refresh_forecasts(tmp_path / "x", records, lambda line: None)
    found = read_run_forecasts(tmp_path / "x")
    assert found.runs == ()
    assert "config.json" in found.left_out["gone--full--s0"]
    assert found.made_for(records, found.code_sha256)  # it is not tried again and again


def test_a_cards_run_is_forecast_for_that_card():
    made = forecast_record(card_record())
    assert made.parts["cuda_context"] > 0
    assert made.step_seconds.low < made.step_seconds.high
    assert made.peak_bytes == sum(made.parts.values())


def test_forecasts_that_were_edited_are_refused(tmp_path):
    write_run_forecasts(tmp_path, RunForecasts(runs=(), left_out={}, packages={}, code_sha256="c"))
    content = json.loads((tmp_path / RUN_FORECASTS).read_text())
    content["code_sha256"] = "d"
    (tmp_path / RUN_FORECASTS).write_text(json.dumps(content))
    with pytest.raises(StudyError, match="make report"):
        read_run_forecasts(tmp_path)


def test_untrained_runs_and_runs_that_were_not_started_have_none(tmp_path):
    factory = Factory(tmp_path / "cpu")
    factory.add(make_spec("base"))
    factory.add(make_spec("full"), status="does not fit, forecast")
    assert digests(read_records(tmp_path / "cpu" / "runs")) == {}


@pytest.mark.parametrize("name", ["cpu", "capacity", "methods"])
def test_shipped_run_forecasts_are_of_the_shipped_records_and_close(name):
    """The promise of the forecaster on a CPU: 3 % of every peak, and of each part that is seen."""
    folder = REFERENCE / name
    records = read_records(folder / "runs")
    assert read_run_forecasts(folder).made_for(records, code_sha256(FORECASTING))
    found = compare_runs([read_study(folder)])
    assert len(found) == len(digests(records))
    for one in found:
        assert abs(one.peak.error) < 0.03
        assert set(one.parts) == {"Weights", "Optimizer states", "Rest of the step"}
        assert all(abs(pair.error) < 0.05 for pair in one.parts.values())


# What measured runs teach ------------------------------------------------------------------------


@pytest.fixture
def reference(tmp_path):
    """A reference with one run on a card: 33 GB by NVML of which 32 reserved and 30 allocated."""
    factory = Factory(tmp_path / "gpu", device=GPU)
    block = card_record().train
    factory.train = lambda spec: block
    factory.add(make_spec("lora", gpus=1))
    (record,) = read_records(tmp_path / "gpu" / "runs")  # as it was sealed
    made = forecast_of(record).model_copy(update={"roofline_seconds": 0.4})
    write_run_forecasts(
        tmp_path / "gpu",
        RunForecasts(runs=(made,), left_out={}, packages={}, code_sha256="c"),
    )
    return tmp_path


def test_a_measured_card_replaces_the_assumptions(reference):
    efficiency, cuda = learn_terms("a100-80gb", reference)
    assert efficiency.mid == pytest.approx(0.4 / 0.5)
    assert efficiency.source == "by 1 run on NVIDIA A100 80GB SXM"
    assert cuda == CudaTerms(context_bytes=GB, source="by 1 run on NVIDIA A100 80GB SXM")


def test_a_card_that_was_never_measured_keeps_them_but_for_the_softwares(reference):
    assert learn_terms("l4-24gb", reference) == (ASSUMED, learn_terms("a100-80gb", reference)[1])
    assert learn_terms("a100-80gb", reference / "nothing") == (ASSUMED, CudaTerms())


def test_a_runs_own_forecast_learns_from_no_run(reference, monkeypatch):
    monkeypatch.setattr(
        "studylib.forecasting.forecast.learn_terms", lambda gpu: learn_terms(gpu, reference)
    )
    settings = ForecastSettings(model="ladder:0.4m", seq_len=256, gpu="a100-80gb")
    learned = forecast(settings)
    assert learned.parts["cuda_context"] == GB
    assert learned.efficiency.mid == pytest.approx(0.8)
    assert forecast_record(card_record()).parts["cuda_context"] == CudaTerms().context_bytes
