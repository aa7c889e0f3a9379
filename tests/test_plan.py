"""A plan says what is done, what is left and what stands in the way, and starts nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from importlib.util import find_spec

import pytest
from record_factory import Factory, make_spec

from studylib.core.errors import StudyError
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.data import hash_examples, read_examples
from studylib.inputs.extras import check_extras
from studylib.planning import plan as planning
from studylib.planning.plan import (
    check_inputs,
    check_writable,
    plan_study,
)
from studylib.planning.stale import hash_data_file, refuse_stale
from studylib.schema.profile import DataSettings, build_profile, read_profile
from studylib.schema.records import read_records

CONTENT = {
    "name": "cpu",
    "question": "?",
    "models": ["ladder:0.4m"],
    "methods": ["full", "lora"],
    "seeds": [0, 1],
    "hardware": {"jobs": 2, "threads": 1, "gpus": 0},
    "data": {"source": "almanac:new", "template": "plain"},
    "train": {
        "steps": 40,
        "seq_len": 256,
        "accumulation": 4,
        "learning_rates": {"full": 1e-3, "lora": 1e-3},
    },
    "evaluate": {
        "questions": "almanac:new",
        "retention": "almanac:old",
        "scoring": "text",
        "shots": 0,
    },
}


def profile_with(**changes):
    return build_profile(CONTENT | changes, "test")


@pytest.fixture
def results(tmp_path):
    """Base and full with seed 0 are done; lora with seed 0 was begun."""
    factory = Factory(tmp_path / "cpu", items=32)
    factory.add(make_spec("base"))
    factory.add(make_spec("full"))
    work = tmp_path / "cpu" / "runs" / "ladder-0.4m--lora-r16--s0" / "work"
    work.mkdir(parents=True)
    (work / "session.json").write_text("{}")
    return tmp_path / "cpu"


def test_plan_knows_what_is_done_begun_and_left(results):
    made = plan_study(profile_with(), results)
    assert {run.run_id: run.state for run in made.runs} == {
        "ladder-0.4m--base": "done",
        "ladder-0.4m--full--s0": "done",
        "ladder-0.4m--lora-r16--s0": "to resume",
        "ladder-0.4m--full--s1": "to do",
        "ladder-0.4m--lora-r16--s1": "to do",
    }
    assert [run.run_id for run in made.left] == [
        run.run_id for run in made.runs if run.state != "done"
    ]


def test_times_come_from_like_runs_and_are_unknown_where_there_is_none(results):
    made = {run.run_id: run for run in plan_study(profile_with(), results).runs}
    full = made["ladder-0.4m--full--s1"]
    assert full.seconds == made["ladder-0.4m--full--s0"].seconds > 0
    assert full.seconds_source == "records of other seeds"
    lora = made["ladder-0.4m--lora-r16--s1"]
    assert lora.seconds is None and lora.usd is None and "unknown" in lora.seconds_source


def test_times_of_the_reference_serve_where_there_are_none_here_and_say_so(results, tmp_path):
    shipped = read_records(results / "runs")
    made = {r.run_id: r for r in plan_study(profile_with(), tmp_path / "new", shipped).runs}
    full = made["ladder-0.4m--full--s0"]
    assert full.seconds > 0 and full.seconds_source == "this run's record, in the reference"


def test_times_of_another_card_say_nothing_of_this_one(results):
    [device] = {record.environment.device for record in read_records(results / "runs")}
    here, elsewhere = (
        {run.run_id: run.seconds for run in plan_study(profile_with(), results, (), name).runs}
        for name in (device, "NVIDIA H100 80GB HBM3")
    )
    assert here["ladder-0.4m--full--s1"] and not any(elsewhere.values())


def test_totals_are_unknown_where_a_part_is_and_shared_by_the_jobs_where_none_is(results):
    unknown = plan_study(profile_with(), results)
    assert unknown.left_seconds is None and unknown.left_usd is None
    hardware = CONTENT["hardware"] | {"usd_per_hour": 3.6}
    reference = read_records(results / "runs")
    shutil.rmtree(results)
    made = plan_study(profile_with(methods=["full"], hardware=hardware), results, reference)
    seconds = [run.seconds for run in made.runs]
    assert made.left_seconds == pytest.approx(sum(seconds) / 2)
    assert made.left_usd == pytest.approx(sum(seconds) / 1000)
    content = json.loads(made.model_dump_json())
    assert content["left_seconds"] == made.left_seconds
    assert content["runs"][0]["run_id"] == "ladder-0.4m--base"


def test_records_made_with_other_settings_are_refused_by_name(results):
    train = CONTENT["train"] | {"steps": 41}
    with pytest.raises(StudyError, match=r"train\.steps: 40 -> 41") as caught:
        plan_study(profile_with(train=train), results)
    assert "record.json" in caught.value.value and "--results" in caught.value.remedy


def test_damaged_record_stops_the_plan_and_is_left_as_it_is(results):
    path = results / "runs" / "ladder-0.4m--base" / "record.json"
    path.write_bytes(path.read_bytes()[:-9])
    before = path.read_bytes()
    with pytest.raises(StudyError, match="truncated"):
        plan_study(profile_with(), results)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"data": {"source": "/no/such.json"}}, "data file cannot be read"),
        ({"data": {"source": "almanac:x"}}, "no such part"),
        ({"models": ["path:/no/such"]}, "no such folder"),
        ({"models": ["ladder:9m"]}, "ladder:9m"),
        ({"models": ["shape:none"]}, "no such shape"),
        ({"models": ["hub:org/name"]}, "the hub cannot be reached"),
        ({"evaluate": {"questions": "/no/such"}}, "no such folder of questions"),
        ({"evaluate": {"questions": "almanac:new", "retention": "almanac:x"}}, "no such part"),
        (
            {"evaluate": {"questions": "almanac:new", "retention": "almanac:old", "facts": 900}},
            "ladder:0.4m knows the first 800 facts",
        ),
        ({"evaluate": {"questions": "hub"}}, "MMLU=hub: the hub cannot be reached"),
    ],
)
def test_inputs_are_checked_before_anything_runs(changes, rule):
    with pytest.raises(StudyError, match=rule):
        check_inputs(profile_with(**changes))


def test_whole_inputs_pass_and_a_plan_fetches_nothing(tmp_path, monkeypatch):
    folder = shutil.copytree(ladder_folder("0.4m"), tmp_path / "model")
    check_inputs(profile_with(models=[f"path:{folder}", "shape:llama-2-13b"]))
    asked = []
    monkeypatch.setattr(planning, "ask_model", lambda ref: asked.append(str(ref)))
    monkeypatch.setattr(planning, "model_folder", None)
    check_inputs(profile_with(models=["hub:org/name"]), fetch=False)
    assert asked == ["hub:org/name"]


def test_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(StudyError, match="cannot be written") as caught:
            check_writable(folder)
        assert "RESULTS=FOLDER" in caught.value.remedy
    check_writable(tmp_path / "new" / "runs")
    assert list((tmp_path / "new" / "runs").iterdir()) == []


@pytest.mark.parametrize(("code", "rule"), [(errno.ENOSPC, "the disk is full"),
                                            (errno.EDQUOT, "the disk is full"),
                                            (errno.EROFS, "cannot be written")])  # fmt: skip
def test_full_and_read_only_disks_are_told_apart(tmp_path, monkeypatch, code, rule):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StudyError, match=rule):
        check_writable(tmp_path)


def test_disk_with_less_room_than_a_checkpoint_takes_counts_as_full(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4096))
    with pytest.raises(StudyError, match="the disk is full"):
        check_writable(tmp_path)


def test_edited_data_file_is_another_study_and_says_so(tmp_path):
    path = tmp_path / "data.json"
    examples = [{"instruction": "a", "input": "", "output": "b"}]
    path.write_text(json.dumps(examples))
    data = DataSettings(source=str(path))
    spec = make_spec("full").model_copy(update={"data": data})
    made = {"data.sha256": hash_examples(read_examples(data))}
    record = Factory(tmp_path / "results").add(spec, fingerprint=made)
    refuse_stale(spec, record, tmp_path / "runs" / "x")
    path.write_text(json.dumps([*examples, *examples]))
    hash_data_file.cache_clear()
    with pytest.raises(StudyError, match="other examples"):
        refuse_stale(spec, record, tmp_path / "runs" / "x")


@pytest.mark.parametrize(
    ("change", "package"),
    [
        ({"train": {"attention": "flash_attention_2"}}, "flash-attn"),
        ({"train": {"loss": "liger"}}, "liger-kernel"),
        ({"train": {"accumulation": 4}, "hardware": {"gpus": 2, "sharding": "zero3"},
          "methods": ["full"]}, "deepspeed"),
    ],
)  # fmt: skip
def test_a_package_that_a_setting_needs_is_named_before_the_start(change, package):
    if find_spec(package.replace("-", "_")) is not None:
        pytest.skip("it is installed here")
    with pytest.raises(StudyError, match=f"{package} is not installed"):
        check_inputs(read_profile("smoke", change))


def test_liger_without_triton_is_named_before_the_start(monkeypatch):
    known = {"liger_kernel": object()}
    monkeypatch.setattr("studylib.inputs.extras.find_spec", known.get)
    with pytest.raises(StudyError, match="triton is not installed"):
        check_inputs(read_profile("smoke", {"train": {"loss": "liger"}}))


@pytest.mark.parametrize(
    ("train", "instead"),
    [({"attention": "flex_attention"}, "attention: sdpa"), ({"loss": "liger"}, "loss: chunked")],
)
def test_what_trains_on_a_card_only_is_refused_without_one(monkeypatch, train, instead):
    monkeypatch.setattr("studylib.inputs.extras.find_spec", lambda name: name)
    with pytest.raises(StudyError, match=f"on a card only.*Write {instead}"):
        check_inputs(read_profile("smoke", {"train": train}))
    check_inputs(read_profile("smoke", {"train": train, "hardware": {"gpus": 1}}))
    base = {"train": train, "methods": ["base"]}
    check_extras(next(spec for spec in read_profile("smoke", base).runs()))
