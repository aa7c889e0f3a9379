"""What a study reads is looked through once, and again when a file of it changes."""

from __future__ import annotations

import json
import shutil

import pytest

from studylib.commands import check_all as checks
from studylib.commands.check_all import check_all, source_places
from studylib.core.errors import StudyError
from studylib.inputs import converted, parts
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.converted import sum_of_large
from studylib.inputs.parts import read_once, read_part
from studylib.schema.profile import read_profile
from studylib.schema.settings import DataSettings


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"ba{i} ko", "completion": f"me{i % 7}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def profile(data, tmp_path):
    shutil.copytree(ladder_folder("0.4m"), tmp_path / "model")
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\nquestion: q\nmodels: ['path:{tmp_path}/model']\nmethods: [full]\n"
        f"data: {{source: '{data}', held_out: 10, template: plain}}\n"
        "train: {steps: 2, seq_len: 64, learning_rates: {full: 1e-3}}\n"
        "evaluate: {measures: [loss]}\nhardware: {gpus: 0}\n",
        encoding="utf-8",
    )
    return read_profile(str(file))


@pytest.fixture
def anew(monkeypatch):
    """Each time that all is looked through."""
    calls, check = [], checks.check_anew
    monkeypatch.setattr(checks, "check_anew", lambda p: calls.append(p.name) or check(p))
    return calls


def test_checks_are_kept_until_a_file_or_the_profile_changes(profile, data, tmp_path, anew):
    first = check_all(profile)
    assert any("40 examples" in line for line in first)
    assert check_all(profile) == first and len(anew) == 1
    with data.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "lu ba", "completion": "no"}\n')
    assert any("41 examples" in line for line in check_all(profile)) and len(anew) == 2
    tokenizer = tmp_path / "model" / "tokenizer_config.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    check_all(profile)
    assert len(anew) == 3
    (track,) = profile.tracks
    longer = track.model_copy(update={"seeds": (7,)})
    check_all(profile.model_copy(update={"tracks": (longer,)}))
    assert len(anew) == 4


def test_a_hub_is_asked_each_time_and_a_fault_is_found_each_time(profile, data, anew):
    (track,) = profile.tracks
    asked = track.evaluate.model_copy(update={"questions": "hub"})
    elsewhere = track.model_copy(update={"evaluate": asked})
    assert source_places(profile.model_copy(update={"tracks": (elsewhere,)})) is None
    data.unlink()
    for _ in range(2):
        with pytest.raises(StudyError, match="mine"):
            check_all(profile)
    assert len(anew) == 2


def test_the_parts_of_a_source_are_read_once_while_that_is_asked(data, monkeypatch):
    read, calls = parts.read_source, []
    monkeypatch.setattr(parts, "read_examples", lambda d: calls.append(1) or read(d.source, d))
    asked = DataSettings(source=str(data), held_out=10, template="plain")
    names = ("train", "test", "validation", "train")
    apart = [read_part(asked, name) for name in names]
    assert len(calls) == 4
    with read_once():
        together = [read_part(asked, name) for name in names]
    assert len(calls) == 5 and together == apart
    read_part(asked, "train")
    assert len(calls) == 6


def test_a_large_files_sum_is_taken_once_while_it_stays_the_same(data, monkeypatch):
    take, calls = converted.file_sha256, []
    monkeypatch.setattr(converted, "file_sha256", lambda path: calls.append(path) or take(path))
    first = sum_of_large(data)
    assert sum_of_large(data) == first == take(data) and len(calls) == 1
    data.write_text("other", encoding="utf-8")
    assert sum_of_large(data) == take(data) != first and len(calls) == 2


def test_where_nothing_can_be_kept_all_is_looked_through_each_time(profile, monkeypatch, anew):
    monkeypatch.setenv("STUDY_CACHE", "/dev/null/cache")
    assert check_all(profile) == check_all(profile) and len(anew) == 2
