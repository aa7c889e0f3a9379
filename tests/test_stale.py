"""Weights, questions and examples that were changed under their names are another study."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from record_factory import Factory, make_spec
from serve_factory import add_serving

from studylib.core.errors import StudyError
from studylib.core.files import file_sha256
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.sources import folder_sha256
from studylib.planning import stale
from studylib.planning.stale import (
    HASHES,
    HashBook,
    hash_question_folder,
    question_sources,
    refuse_stale,
    refuse_stale_serves,
)
from studylib.schema.profile import build_profile, read_profile
from studylib.schema.serve_records import write_serve_record
from studylib.schema.serving import serve_specs

QUESTION = {"subject": "sums", "question": "1 + 1 = ?", "choices": list("1234"), "answer": 1}


@pytest.fixture(autouse=True)
def nothing_remembered():
    stale.hash_question_folder.cache_clear()
    stale.hash_data_file.cache_clear()


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(ladder_folder("0.4m"), tmp_path / "model")


def edit(path):
    """One changed byte at the end, as an edit that keeps the size."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def recorded(tmp_path, spec, **marks):
    factory = Factory(tmp_path / "results")
    record = factory.add(spec, fingerprint=marks)
    return record, tmp_path / "results" / "runs" / spec.run_id


def with_hash(record, sha256):
    load = record.load.model_copy(update={"model_sha256": sha256})
    return record.model_copy(update={"load": load})


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_replaced_weights_tokenizer_or_configuration_are_refused(tmp_path, model, name):
    spec = make_spec("full").model_copy(update={"model": f"path:{model}"})
    record, folder = recorded(tmp_path, spec)
    record = with_hash(record, folder_sha256(model))
    refuse_stale(spec, record, folder)
    edit(model / name)
    with pytest.raises(StudyError, match="made with other weights, tokenizer") as caught:
        refuse_stale(spec, record, folder)
    assert "record.json" in caught.value.value and "--results" in caught.value.remedy


def test_bundled_model_of_another_version_is_refused_and_a_folder_that_is_gone_is_not(tmp_path):
    spec = make_spec("full")
    record, folder = recorded(tmp_path, spec)
    refuse_stale(spec, record, folder)
    with pytest.raises(StudyError, match=r"ladder:0\.4m has now"):
        refuse_stale(spec, with_hash(record, "0" * 64), folder)
    gone = spec.model_copy(update={"model": f"path:{tmp_path / 'none'}"})
    refuse_stale(gone, record, folder)


def questions_in(folder, **change):
    folder.mkdir(exist_ok=True)
    for name in ("test", "dev"):
        (folder / f"{name}.jsonl").write_text(json.dumps(QUESTION | change) + "\n")
    return folder


@pytest.mark.parametrize("change", [{"answer": 2}, {"question": "2 + 2 = ?"}, {"subject": "x"}])
@pytest.mark.parametrize("what", ["questions", "retention"])
def test_changed_questions_are_refused_and_records_without_their_hash_are_not(
    tmp_path, change, what
):
    folder = questions_in(tmp_path / "asked")
    asked = make_spec("full").evaluate.model_copy(update={what: str(folder), "shots": 1})
    spec = make_spec("full").model_copy(update={"evaluate": asked})
    [(key, source)] = question_sources(asked)
    assert (key, source) == (f"evaluate.{what}_sha256", str(folder))
    record, run = recorded(tmp_path, spec, **{key: hash_question_folder(source, asked)})
    refuse_stale(spec, record, run)
    questions_in(folder, **change)
    stale.hash_question_folder.cache_clear()
    with pytest.raises(StudyError, match="made with other questions than"):
        refuse_stale(spec, record, run)
    old = record.model_copy(update={"fingerprint": {"device.name": "x"}})
    refuse_stale(spec, old, run)


def test_the_same_questions_written_otherwise_are_the_same(tmp_path):
    folder = questions_in(tmp_path / "asked")
    asked = make_spec("full").evaluate.model_copy(update={"questions": str(folder), "shots": 1})
    before = hash_question_folder(str(folder), asked)
    stale.hash_question_folder.cache_clear()
    (folder / "test.jsonl").write_text("\n" + json.dumps(QUESTION, indent=None) + "\n\n")
    assert hash_question_folder(str(folder), asked) == before


def test_large_files_are_read_again_only_where_something_about_them_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(stale, "SMALL_BYTES", 10)
    path, book = tmp_path / "model.safetensors", tmp_path / HASHES
    path.write_bytes(bytes(100))
    read = []

    def sha256():
        with HashBook(book) as hashes:
            return hashes.sha256(path, lambda p: read.append(p) or file_sha256(p))

    first = sha256()
    assert sha256() == first == file_sha256(path) and len(read) == 1
    times = path.stat()
    edit(path)  # of the same size, with its old times set back
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sha256() == file_sha256(path) != first and len(read) == 2
    book.write_text("{not JSON")
    assert sha256() == file_sha256(path) and len(read) == 3


def test_serving_records_of_other_weights_or_settings_are_refused(tmp_path):
    profile = read_profile("cpu")
    spec = next(s for s in serve_specs(profile) if s.model == "ladder:0.4m")
    made = add_serving(tmp_path / "made")

    def keep(sha256):
        shutil.rmtree(tmp_path / "serve", ignore_errors=True)
        (tmp_path / "serve" / spec.serve_id).mkdir(parents=True)
        change = {"spec": spec, "serve_id": spec.serve_id, "fingerprint": {"model.sha256": sha256}}
        write_serve_record(tmp_path / "serve" / spec.serve_id, made.model_copy(update=change))

    keep(folder_sha256(ladder_folder("0.4m")))
    refuse_stale_serves(profile, tmp_path)
    content = profile.model_dump(mode="json")
    content["serve"]["variants"] = [1, 7]
    with pytest.raises(StudyError, match="made with other settings than profile cpu"):
        refuse_stale_serves(build_profile(content, "test"), tmp_path)
    keep("0" * 64)
    with pytest.raises(StudyError, match="made with other weights"):
        refuse_stale_serves(profile, tmp_path)
