"""A record is written once and whole, and one that cannot be trusted is named, never read."""

from __future__ import annotations

import errno
import json
import os

import pytest
from record_factory import Factory, make_spec

from studylib.core.errors import StudyError
from studylib.core.files import read_text, write_atomically
from studylib.core.sealed import digest_of
from studylib.schema.differences import find_changes, find_mismatches
from studylib.schema.records import RECORD, read_record, read_records, write_record


@pytest.fixture
def study(tmp_path):
    """Two runs, full and lora."""
    factory = Factory(tmp_path / "cpu", items=32)
    for method in ("full", "lora"):
        factory.add(make_spec(method))
    return factory


def runs_of(study):
    return study.folder / "runs"


def first(study):
    return runs_of(study) / "ladder-0.4m--full--s0" / RECORD


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refuse(study, rule):
    """Reading the folder raises one message that names the file; no byte of it changes."""
    before = {p: p.read_bytes() for p in runs_of(study).rglob("*") if p.is_file()}
    with pytest.raises(StudyError, match=rule) as caught:
        read_records(runs_of(study))
    assert {p: p.read_bytes() for p in runs_of(study).rglob("*") if p.is_file()} == before
    return caught.value


def test_records_read_back_as_they_were_written(study):
    full, lora = read_records(runs_of(study))
    assert (full.run_id, lora.run_id) == ("ladder-0.4m--full--s0", "ladder-0.4m--lora-r16--s0")
    assert full.run == make_spec("full") and full.complete
    score = full.evaluate.score("questions")
    assert score.correct == sum(right for _, right in score.by_subject.values())
    assert score.macro_accuracy == pytest.approx(score.accuracy)  # subjects of equal size


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_record_is_named(study, share):
    content = first(study).read_bytes()
    first(study).write_bytes(content[: int(share * len(content))])
    assert str(first(study)) in refuse(study, "truncated or not JSON").value


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b'{"a": NaN}', b'{"a": "\\ud800"}'])
def test_record_that_holds_something_else_is_named(study, content):
    first(study).write_bytes(content)
    refuse(study, "truncated or not JSON")


def test_folder_in_a_records_place_is_named(study):
    first(study).unlink()
    first(study).mkdir()
    refuse(study, "cannot be read")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_record_of_another_schema_version_is_named(study, version):
    edit(first(study), lambda c: c.update(schema_version=version))
    error = refuse(study, f"schema version {version}")
    assert "version of the study that wrote it" in error.remedy


def test_record_edited_by_hand_is_named(study):
    edit(first(study), lambda c: c["evaluate"]["scores"][0].update(correct=31))
    refuse(study, "changed after it was written")


def test_record_sealed_again_with_a_field_that_does_not_exist_is_named(study):
    def change(content):
        content["mood"] = "good"
        content["digest"] = digest_of(content)

    edit(first(study), change)
    refuse(study, "mood")


def test_changed_and_missing_tables_are_named(study):
    items = first(study).parent / "items.parquet"
    items.write_bytes(items.read_bytes()[:-1] + b"x")
    assert str(items) in refuse(study, "changed after the record").value
    items.unlink()
    assert str(items) in refuse(study, "missing").value


def test_record_in_another_runs_folder_is_named(study):
    first(study).parent.rename(runs_of(study) / "mine")
    refuse(study, "of run ladder-0.4m--full--s0")


def test_all_bad_records_are_named_at_once(study):
    for path in runs_of(study).glob(f"*/{RECORD}"):
        path.write_text("{")
    error = refuse(study, "2 records cannot be trusted")
    assert "full--s0" in error.value and "lora-r16--s0" in error.value


def test_record_is_never_overwritten(study):
    record, before = read_record(first(study)), first(study).read_bytes()
    with pytest.raises(StudyError, match="never overwritten"):
        write_record(first(study).parent, record)
    assert first(study).read_bytes() == before


def fail_with(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    ("code", "rule"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot be written")]
)
def test_failed_write_leaves_the_old_file_and_no_part_of_a_new_one(
    tmp_path, monkeypatch, code, rule
):
    path = tmp_path / "a"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", fail_with(code))
    with pytest.raises(StudyError, match=rule):
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"old"


def test_file_in_a_folders_place_is_one_message(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(StudyError, match="cannot be written"):
        write_atomically(tmp_path / "a" / "b", b"")


def test_text_is_read_without_its_byte_order_mark_and_faults_name_the_line(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("\ufeffé\n".encode())
    assert read_text(path, "the file", "") == "é\n"
    path.write_bytes(b"a\nb\n\xe9\n")
    with pytest.raises(StudyError, match="line 3: this is not UTF-8"):
        read_text(path, "the file", "Save it.")


def test_changes_are_named_and_what_makes_no_other_run_is_not(study):
    spec = make_spec("full")
    assert find_changes(spec, spec) == []
    train = spec.train.model_copy(update={"steps": 41, "checkpoint_every": 7})
    other = spec.model_copy(update={"train": train, "learning_rate": 2e-3})
    assert find_changes(other, spec) == [
        "learning_rate: 0.001 -> 0.002",
        "train.steps: 40 -> 41",
    ]
    machine = spec.hardware.model_copy(update={"jobs": 9})
    alike = {"hardware": machine, "profile": "x", "keep": "all"}
    assert not find_changes(spec.model_copy(update=alike), spec)


def test_fields_that_rows_must_share_are_named_with_their_runs(study):
    study.add(make_spec("qlora"), fingerprint={"evaluate.shots": 3})
    found = find_mismatches(read_records(runs_of(study)))
    assert list(found) == ["evaluate.shots"]
    assert found["evaluate.shots"]["3"] == ["ladder-0.4m--qlora-r16--s0"]
