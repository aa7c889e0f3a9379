"""A method is a row: three that the code has never heard of go all the way, by rows alone.

DoRA, VeRA and IA3 are added to a copy of the table. They differ from what ships: DoRA multiplies
matrices once a pass, VeRA shares matrices that are no parameters, IA3 has no rank and only scales.
Four that ship go with them, each for a key of its own: an adapter that changes its base, two rates,
a size told by blocks, the last layers alone.
"""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
import yaml

from studylib.core.errors import StudyError
from studylib.forecasting.forecast import forecast
from studylib.forecasting.job_forecast import Machine, job_settings
from studylib.modelling.kept import open_kept
from studylib.modelling.merging import answer_probe
from studylib.modelling.models import load_model
from studylib.reporting.report import compose_report, own_sources
from studylib.schema.method_names import METHODS_TABLE, name_methods
from studylib.schema.methods import METHODS, read_methods
from studylib.schema.profile import read_profile
from studylib.schema.records import read_record
from studylib.schema.serve_records import read_serve_record
from studylib.schema.serving import ServeSettings, find_spec
from studylib.schema.settings import BASE
from studylib.serving.serve_run import ServeRun
from studylib.training.run import Run

ROWS = """
own-dora:
  label: Own DoRA
  colour: "#e69f01"
  marker: p
  default_learning_rate: 5.0e-3
  peft: {peft_type: LORA, r: $rank, lora_alpha: $alpha, target_modules: $targets, use_dora: true}
own-vera:
  label: Own VeRA
  colour: "#56b4e9"
  marker: P
  default_learning_rate: 1.0e-2
  peft: {peft_type: VERA, r: $rank, vera_dropout: $dropout, target_modules: $targets}
own-ia3:
  label: Own IA3
  colour: "#f0e442"
  marker: h
  default_learning_rate: 1.0e-2
  peft: {peft_type: IA3}
"""
SLUGS = {"own-dora": "own-dora-r16", "own-vera": "own-vera-r16", "own-ia3": "own-ia3"}
SHIPPED = ("pissa", "lora-plus", "oft", "last-quarter")
FAST = ServeSettings(
    batch_sizes=(1,), prompt_tokens=(8,), new_tokens=2, rounds=3, budget_seconds=0.01,
    adapters=2, switches=4, mixed_batch=2, mixed_prompt_tokens=8, mixed_new_tokens=2,
)  # fmt: skip
HERE = Machine(gpu=None, cards=0, memory_bytes=10**10)


class Killed(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def table(tmp_path_factory):
    """The test's own copy of the table, with three more rows."""
    path = tmp_path_factory.mktemp("table") / METHODS_TABLE.name
    path.write_text(METHODS_TABLE.read_text(encoding="utf-8") + ROWS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name, row in read_methods(path).items():
            patch.setitem(METHODS, name, row)
        yield


@pytest.fixture(scope="module")
def profile(table):
    return read_profile("smoke", {"methods": ["full", *SLUGS, *SHIPPED], "train": {"steps": 4}})


@pytest.fixture(scope="module")
def study(profile, tmp_path_factory):
    """(folder of the study, method -> record, method -> losses of the process that was killed):
    each method's first process got to the last step, its second went on after step 2."""
    folder = tmp_path_factory.mktemp("results") / profile.name
    found, unbroken = {}, {}
    for spec in profile.runs():
        place = folder / "runs" / spec.run_id
        if spec.method.kind.trains and spec.method.name != "full":
            first = Run(spec, place)
            first.load()
            first.watch.show_step = lambda row: kill(row["step"])
            with pytest.raises(Killed):
                first.train()
            unbroken[spec.method.name] = [row["loss"] for row in first.log.rows]
            first._lock.close()
        run = Run(spec, place)
        for stage in (run.load, run.train, run.evaluate, run.serve):
            stage()
        found[spec.method.name] = read_record(run.finish())
    return folder, found, unbroken


def kill(step):
    if step == 4:
        raise Killed


@pytest.mark.parametrize("method", [*SLUGS, *SHIPPED])
def test_methods_train_resume_and_are_scored(study, method):
    record = study[1][method]
    assert record.status == "complete"
    assert record.train.resumed_at_steps == (2,) and record.train.steps == 4
    resumed = pd.read_parquet(study[0] / "runs" / record.run_id / "steps.parquet")["loss"]
    assert list(resumed) == study[2][method], "it goes on as if it had not been killed"
    assert record.train.untrained_adapters == ()
    assert [score.task for score in record.evaluate.scores] == ["questions", "retention"]
    assert bool(record.load.reached) == METHODS[method].adapter
    assert record.load.total_params > record.load.trainable_params > 0
    assert record.fingerprint["method.row"] == METHODS[method].mark
    assert METHODS[method].mark != METHODS["lora"].mark


def test_sizes_are_those_of_the_methods_own_arithmetic(study):
    """Two layers, 128 wide and 192 inside: what the papers say is trained, at rank 16."""
    outputs = 4 * 128 + 2 * 192 + 128  # of the seven linear layers
    pairs = 4 * (128 + 128) + 3 * (128 + 192)  # their inputs and outputs
    counts = {name: study[1][name].load.trainable_params for name in SLUGS}
    assert counts["own-dora"] == 2 * (16 * pairs + outputs)
    assert counts["own-vera"] == 2 * (7 * 16 + outputs)
    assert counts["own-ia3"] == 2 * (128 + 128 + 192)  # keys, values, what goes into the last layer
    counts = {name: study[1][name].load.trainable_params for name in SHIPPED}
    assert counts["pissa"] == counts["lora-plus"] == 2 * 16 * pairs
    blocks = (6 * 128 + 192) // 32  # of the layers' inputs, each turned within 32 numbers
    assert counts["oft"] == 2 * blocks * 32 * 31 // 2
    assert counts["last-quarter"] == 4 * 128 * 128 + 3 * 128 * 192 + 2 * 128  # one layer of two


@pytest.mark.parametrize("method", [*SLUGS, *SHIPPED])
def test_methods_are_forecast(study, profile, method):
    """Memory within 3 % of the counted live tensors, parameters and the bytes on disk exactly."""
    record = study[1][method]
    made = forecast(job_settings(record.run, HERE))
    assert made.peak_bytes == pytest.approx(record.train.measure.live_tensor_peak_bytes, rel=0.03)
    assert made.trainable_params == record.load.trainable_params
    kept, counted = record.serve.adapter_bytes, made.adapter_bytes
    if not METHODS[method].adapter:
        kept, counted = record.serve.checkpoint_bytes, made.checkpoint_bytes
    assert 0 < kept - counted < 8192


def test_what_stays_of_an_adapter_that_changed_its_base_fits_the_original_one(study):
    """Twice the rank: what was trained, less what it began with."""
    record = study[1]["pissa"]
    config = json.loads(
        (study[0] / "runs" / record.run_id / "adapter/adapter_config.json").read_bytes()
    )
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (32, 64, True)
    header = record.serve.adapter_bytes - 2 * 4 * record.load.trainable_params
    assert 0 < header < 8192
    _, model = open_kept(record, study[0] / "runs" / record.run_id)
    with torch.no_grad(), model.disable_adapter():
        ours = answer_probe(model)
    assert torch.equal(ours, answer_probe(load_model(record.run.model_ref, BASE, "fp32").model))


def test_shared_matrices_count_on_disk_as_they_are_saved(study):
    """VeRA's file holds its two shared matrices, which are none of its parameters."""
    record = study[1]["own-vera"]
    shared = 2 * 16 * 192
    header = record.serve.adapter_bytes - 4 * (record.load.trainable_params + shared)
    assert 0 < header < 8192


@pytest.mark.parametrize("slug", SLUGS.values())
def test_added_methods_are_served_or_say_what_is_not_possible(profile, tmp_path, slug):
    spec = find_spec(profile, f"ladder-0.4m--{slug}", FAST)
    run = ServeRun(spec, tmp_path / "serve")
    for stage in (run.load, run.footprint, run.latency, run.mix, run.swap):
        stage()
    found = read_serve_record(run.finish()).measures
    assert {row.variant for row in found.latency} == {"base", "dynamic", "merged"}
    assert found.swap.proven and found.swap.merge_seconds is not None
    assert found.mixed == ()
    [mixed] = [skipped for skipped in found.skipped if skipped.what == "mixed batch"]
    assert mixed.reason.startswith("not possible: ")


def test_adapters_that_begin_as_copies_are_told_apart_when_served(tmp_path):
    spec = find_spec(
        read_profile("smoke", {"methods": ["full", "ln-tuning"]}), "ladder-0.4m--ln-tuning", FAST
    )
    run = ServeRun(spec, tmp_path / "serve")
    for stage in (run.load, run.swap):
        stage()
    assert run.ok and run.found["swap"].proven and run.found["swap"].contrast > 0


def test_a_converted_adapter_is_served_as_it_stays(profile, tmp_path):
    """Several of twice the rank on one original base, which none of them changes."""
    run = ServeRun(find_spec(profile, "ladder-0.4m--pissa-r16", FAST), tmp_path / "serve")
    for stage in (run.load, run.footprint, run.mix, run.swap):
        stage()
    assert run.ok and run.found["swap"].proven and run.found["mixed"]
    sizes = {row.dtype: row.memory_bytes for row in run.found["footprint"] if row.what == "adapter"}
    pairs = 4 * (128 + 128) + 3 * (128 + 192)
    assert sizes["fp32"] == 4 * 2 * 32 * pairs


def test_added_methods_stand_in_the_report(study, profile):
    report = compose_report(own_sources(study[0], planned=profile.runs()))
    text = report.files["REPORT.md"].decode()
    for label in ("Own DoRA r=16", "Own VeRA r=16", "Own IA3"):
        assert f"| {label} |" in text
    pictures = b"".join(body for name, body in report.files.items() if name.endswith(".svg"))
    for name in SLUGS:
        assert METHODS[name].colour.encode() in pictures


def row(**keys):
    known = {"label": "X", "default_learning_rate": 1e-3, "peft": {"peft_type": "LORA"}}
    return {"x": {**known, **keys}}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"peft": {"r": "$rank"}}, "peft_type"),
        ({"peft": {"peft_type": "LORA", "r": "$ranks"}}, "ranks stands for nothing"),
        ({"trained": "all"}, "`trained` is left out"),
        ({"peft": None, "base": "nf4", "trained": "all"}, "needs peft"),
        ({"default_learning_rate": 0}, "default_learning_rate"),
        ({"base": "nf5"}, "base"),
        ({"base": "int8"}, "base"),
        ({"base": "nf4", "converted": True}, "4-bit base cannot be changed"),
        ({"peft": None, "trained": "all", "frozen": ["lora_A"]}, "are of an adapter"),
        ({"peft": None, "trained": "all", "rate_ratio": 4}, "are of an adapter"),
        ({"rate_ratio": 0.5}, "rate_ratio"),
        ({"peft": {"peft_type": "LORA", "init_lora_weights": "eva"}}, "begins from data"),
        ({"peft": {"peft_type": "LORA", "init_lora_weights": "lora_ga"}}, "begins from data"),
        ({"peft": {"peft_type": "IA3"}, "converted": True}, "LoRA's adapters alone"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"peft": None, "trained": {"last_layers": 1.5}}, "trained"),
        ({"serve": ["fly"]}, "serve"),
        ({"colour": "red"}, "colour"),
        ({"lable": "X"}, "lable"),
    ],
)
def test_a_wrong_row_is_refused_with_its_key(tmp_path, keys, named):
    path = tmp_path / "methods.yaml"
    path.write_text(yaml.safe_dump(row(**keys)))
    with pytest.raises(StudyError, match=named) as error:
        read_methods(path)
    assert "methods.yaml, x" in str(error.value)


@pytest.mark.parametrize("name", ["lora-r16", "Lora", "a--b", "-a", "a_b"])
def test_a_name_that_a_run_could_not_have_is_refused(tmp_path, name):
    path = tmp_path / "methods.yaml"
    path.write_text(f"{name}: {{label: X}}\n")
    with pytest.raises(StudyError, match="name"):
        read_methods(path)


def test_help_names_the_methods_that_train():
    named = name_methods().replace(" or ", ", ").split(", ")
    assert named == [name for name, row in read_methods().items() if row.trains]
