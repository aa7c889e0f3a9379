"""A study's hub sources stay at the commits of its first start, wherever the profile names them."""

from __future__ import annotations

import pytest

from studylib.core.errors import StudyError
from studylib.running.runner import write_profile
from studylib.schema.pins import apply_pins, read_pins, unpinned
from studylib.schema.profile import build_profile
from studylib.schema.tune_settings import TunedRate
from studylib.schema.tuning import open_profile

MODEL, OTHER = "hub:org/one", "hub:org/two@v1"
COMMIT = "a" * 40
CONTENT = {
    "name": "mine",
    "question": "?",
    "models": [MODEL, OTHER],
    "methods": ["full"],
    "seeds": [0, 1],
    "seeds_of": {MODEL: [0]},
    "data": {"source": "hub:org/data"},
    "train": {"steps": 1, "seq_len": 8, "learning_rates": {f"{MODEL} full": 0.5, "full": 0.25}},
    "evaluate": {"questions": "almanac:new"},
}
PINS = {source: f"{source}@{COMMIT}" for source in (MODEL, "hub:org/data")}


def test_every_place_that_names_a_source_is_pinned_and_the_runs_keep_their_names():
    profile = build_profile(CONTENT, "test")
    rate = TunedRate(learning_rate=0.125, source="a sweep")
    profile = profile.model_copy(update={"tuned": {f"main {MODEL} full": rate}})
    assert unpinned(profile) == [MODEL, "hub:org/data"]
    pinned = apply_pins(profile, PINS)
    assert unpinned(pinned) == []
    assert [run.run_id for run in pinned.runs()] == [run.run_id for run in profile.runs()]
    [run] = [r for r in pinned.runs() if r.method.name == "full" and "one" in r.model]
    assert run.model == f"{MODEL}@{COMMIT}" and run.data.source == f"hub:org/data@{COMMIT}"
    assert run.learning_rate == 0.5
    assert pinned.tuned == {f"main {MODEL}@{COMMIT} full": rate}
    assert {r.model for r in pinned.runs()} == {f"{MODEL}@{COMMIT}", OTHER}


def test_a_split_of_a_held_out_part_stays_with_its_commit(tmp_path):
    data = {"source": "hub:org/data", "test": "hub:org/data#test", "validation": "val.csv"}
    profile = build_profile({**CONTENT, "data": data}, "test")
    assert unpinned(profile) == [MODEL, "hub:org/data"]
    pinned = apply_pins(profile, PINS)
    own = pinned.tracks[0].data
    assert own.test == f"hub:org/data@{COMMIT}#test" and own.validation == "val.csv"
    (tmp_path / "mine").mkdir()
    write_profile(pinned, tmp_path / "mine")
    assert read_pins(tmp_path / "mine") == PINS and unpinned(pinned) == []


def test_pins_are_read_from_the_profile_beside_the_results(tmp_path):
    (tmp_path / "mine").mkdir()
    assert read_pins(tmp_path / "mine") == {}
    pinned = apply_pins(build_profile(CONTENT, "test"), PINS)
    file = write_profile(pinned, tmp_path / "mine")
    assert read_pins(tmp_path / "mine") == PINS  # a revision that was named is not among them
    assert open_profile(str(file), tmp_path).runs() == pinned.runs()


def test_a_damaged_profile_beside_the_results_is_one_message(tmp_path):
    (tmp_path / "profile.yaml").write_text("tracks: [")
    with pytest.raises(StudyError, match=r"profile\.yaml"):
        read_pins(tmp_path)
