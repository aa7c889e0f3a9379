"""A reference is published whole, traceable and unchanged, or not at all."""

from __future__ import annotations

import shutil

import pytest
import yaml
from record_factory import Factory, make_spec
from serve_factory import add_serving
from test_plan import CONTENT

from studylib.core.errors import StudyError
from studylib.core.files import file_sha256
from studylib.running.publish import publish_results
from studylib.schema.records import read_records
from studylib.schema.run_forecasts import RUN_FORECASTS
from studylib.schema.serve_records import read_serve_records
from studylib.schema.tuning import read_sweeps

METHODS = ("base", "full", "lora")


def make_study(folder, methods=METHODS, **spec):
    """A finished study with one seed and the profile beside it."""
    factory = Factory(folder / "cpu", items=32)
    for method in methods:
        factory.add(make_spec(method), **spec)
        (factory.folder / "runs" / make_spec(method).run_id / "log.txt").write_text("words")
        (factory.folder / "runs" / make_spec(method).run_id / "executed.ipynb").write_text("{}")
    (factory.folder / "profile.yaml").write_text(yaml.safe_dump(CONTENT | {"seeds": [0]}))
    return factory.folder


def ids(*methods):
    return {make_spec(method).run_id for method in methods}


def contents(folder):
    return {str(p.relative_to(folder)): file_sha256(p) for p in folder.rglob("*") if p.is_file()}


def test_finished_study_is_copied_without_its_logs(tmp_path):
    results = make_study(tmp_path)
    target = publish_results(results, tmp_path / "reference")
    assert target == tmp_path / "reference" / "cpu"
    kept = {k: v for k, v in contents(results).items() if not k.endswith("log.txt")}
    made = contents(target)
    assert made.pop(RUN_FORECASTS) and made == kept
    assert len(read_records(target / "runs")) == len(METHODS)
    assert [p.name for p in target.parent.iterdir()] == ["cpu"]


def test_published_notebook_names_no_place_of_the_machine_that_made_it(tmp_path):
    results = make_study(tmp_path)
    (run,) = ids("lora")
    said = '"text": ["/srv/u/lib/python3.12/site-packages/peft/a.py:7: UserWarning: so", "1/2"]'
    (results / "runs" / run / "executed.ipynb").write_text(said)
    target = publish_results(results, tmp_path / "reference")
    shown = (target / "runs" / run / "executed.ipynb").read_text()
    assert shown == '"text": ["peft/a.py:7: UserWarning: so", "1/2"]'


def test_publishing_again_replaces_the_whole_reference(tmp_path):
    results = make_study(tmp_path)
    target = publish_results(results, tmp_path / "reference")
    (target / "runs" / "old-run").mkdir()
    publish_results(results, tmp_path / "reference")
    assert not (target / "runs" / "old-run").exists()


def test_sweeps_and_serving_records_are_published_too(tmp_path):
    results = make_study(tmp_path)
    Factory(results).sweep("full", {1e-4: 80, 1e-3: 150, 1e-2: 100})
    add_serving(results)
    (results / "serve" / "ladder-0.4m--lora-r16" / "executed.ipynb").write_text("{}")
    (results / "serve" / "ladder-0.4m--lora-r16" / "log.txt").write_text("words")
    target = publish_results(results, tmp_path / "reference")
    assert [sweep.method for sweep in read_sweeps(target / "tune")] == ["full"]
    assert [record.serve_id for record in read_serve_records(target / "serve")] == [
        "ladder-0.4m--lora-r16"
    ]
    names = {path.name for path in (target / "serve").rglob("*") if path.is_file()}
    assert names == {"serve.json", "executed.ipynb"}


def test_shipped_sweeps_stay_where_no_newer_one_takes_their_place(tmp_path):
    results = make_study(tmp_path)
    Factory(tmp_path / "reference" / "cpu").sweep("full", {1e-4: 80, 1e-3: 150, 1e-2: 100})
    Factory(tmp_path / "reference" / "cpu").sweep("lora-r16", {1e-4: 80, 1e-3: 9, 1e-2: 100})
    Factory(results).sweep("full", {1e-4: 80, 1e-3: 70, 2e-2: 100})
    target = publish_results(results, tmp_path / "reference")
    rates = {s.method: s.best.learning_rate for s in read_sweeps(target / "tune")}
    assert rates == {"full": 2e-2, "lora-r16": 1e-2}


def test_damaged_serving_record_is_not_published(tmp_path):
    results = make_study(tmp_path)
    add_serving(results)
    (results / "serve" / "ladder-0.4m--lora-r16" / "serve.json").write_text("{")
    with pytest.raises(StudyError, match=r"serve\.json: the record is truncated"):
        publish_results(results, tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


def test_unfinished_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"1 runs are not done, ladder-0\.4m--lora-r16--s0"):
        publish_results(make_study(tmp_path, METHODS[:2]), tmp_path / "reference")
    with pytest.raises(StudyError, match="there are no results"):
        publish_results(tmp_path / "none", tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


def test_what_a_card_measured_is_taken_as_far_as_it_came(tmp_path, monkeypatch):
    """A later time on the card brings the rest; what the first one measured stays."""
    environment = Factory.environment
    card = {"devices": ({"name": "NVIDIA H200"},)}
    monkeypatch.setattr(
        Factory, "environment", lambda self: environment(self).model_copy(update=card)
    )
    first = make_study(tmp_path / "first", METHODS[:2])
    target = publish_results(first, tmp_path / "reference")
    assert {r.run_id for r in read_records(target / "runs")} == ids("base", "full")
    publish_results(make_study(tmp_path / "second", METHODS[2:]), tmp_path / "reference")
    assert {r.run_id for r in read_records(target / "runs")} == ids(*METHODS)


def test_study_made_by_other_code_in_part_is_refused(tmp_path):
    results = make_study(tmp_path, METHODS[:2])
    other = {"code.sha256": "0" * 64}
    Factory(results, items=32).add(make_spec("lora"), fingerprint=other)
    with pytest.raises(StudyError, match=r"by other code than ladder-0\.4m--base"):
        publish_results(results, tmp_path / "reference")


def test_study_made_by_uncommitted_code_is_refused(tmp_path, monkeypatch):
    environment = Factory.environment
    monkeypatch.setattr(
        Factory,
        "environment",
        lambda self: environment(self).model_copy(update={"git_dirty": True}),
    )
    with pytest.raises(StudyError, match="differs from its commit"):
        publish_results(make_study(tmp_path), tmp_path / "reference")


def test_damaged_record_is_not_published(tmp_path):
    results = make_study(tmp_path)
    items = results / "runs" / "ladder-0.4m--base" / "items.parquet"
    items.write_bytes(b"")
    with pytest.raises(StudyError, match="changed after the record"):
        publish_results(results, tmp_path / "reference")


def test_failed_copy_leaves_the_old_reference_as_it_was(tmp_path, monkeypatch):
    results = make_study(tmp_path)
    target = publish_results(results, tmp_path / "reference")
    before = contents(target)

    def fail(source, goal):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(StudyError, match="the disk is full"):
        publish_results(results, tmp_path / "reference")
    assert contents(target) == before
    assert [p.name for p in target.parent.iterdir()] == ["cpu"]
