"""A profile is checked when it is read, and each run of it has one name and one folder."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from studylib.core.errors import StudyError
from studylib.schema.profile import (
    LoraSettings,
    ModelRef,
    is_file_name,
    parse_method,
    read_profile,
    shipped_profiles,
)

TRACKS = """
models: [ladder:0.4m]
seeds: [0, 1]
lora: {rank: 8}
data: {source: "almanac:new", template: plain}
evaluate: {questions: "almanac:new"}
train: {steps: 9, seq_len: 64}
tracks:
  - {name: main}
  - name: shift
    seeds: [5]
    methods: [base, lora, lora-r32]
    data: {source: "almanac:shifted"}
    train: {steps: 30}
"""


def write(folder, text, name="mine.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_shipped_profiles_are_found_and_the_default_asks_what_the_study_promises():
    assert {"cpu", "smoke", "custom"} <= set(shipped_profiles())
    assert "default" not in shipped_profiles()
    runs = read_profile("cpu").runs()
    trained = {(r.model, r.method.name, r.seed) for r in runs if r.method.kind.trains}
    assert len({model for model, _, _ in trained}) >= 2
    assert {name for _, name, _ in trained} >= {"full", "lora", "qlora"}
    assert len({seed for _, _, seed in trained}) >= 3


def test_run_ids_are_readable_unique_and_stable():
    assert [run.run_id for run in read_profile("smoke").runs()] == [
        "ladder-0.4m--base",
        "ladder-0.4m--full--s0",
        "ladder-0.4m--lora-r16--s0",
        "ladder-0.4m--qlora-r16--s0",
    ]


def test_tracks_inherit_what_they_do_not_state(tmp_path):
    profile = read_profile(write(tmp_path, TRACKS))
    assert profile.name == "mine"
    ids = [run.run_id for run in profile.runs()]
    assert len(set(ids)) == len(ids) == 1 + 2 * 3 + 1 + 2
    assert "ladder-0.4m--lora-r8--s1" in ids and "ladder-0.4m--lora-r32--shift--s5" in ids
    main, shift = profile.tracks
    assert (main.train.steps, shift.train.steps, shift.train.seq_len) == (9, 30, 64)
    assert shift.data.template == "plain" and shift.evaluate.questions == "almanac:new"
    assert profile.run("ladder-0.4m--lora-r32--shift--s5").base_run_id == "ladder-0.4m--base--shift"


def test_changes_reach_what_a_track_states_itself(tmp_path):
    path = write(tmp_path, TRACKS)
    changed = read_profile(path, {"train": {"steps": 2}, "seeds": [7]})
    assert [track.train.steps for track in changed.tracks] == [2, 2]
    assert [track.seeds for track in changed.tracks] == [(7,), (7,)]
    assert changed.tracks[1].data.source == "almanac:shifted"


def test_changed_profile_never_shares_a_folder_with_the_unchanged_one():
    same = read_profile("cpu", {"train": {"steps": 5}, "seeds": [1]})
    again = read_profile("cpu", {"seeds": [1], "train": {"steps": 5}})
    other = read_profile("cpu", {"seeds": [1], "train": {"steps": 6}})
    assert same.name == again.name
    assert len({same.name, other.name, "cpu"}) == 3
    assert read_profile("cpu", {}).name == "cpu"
    named = read_profile("cpu", {"models": ["path:/some/My Model"]}).name
    assert named.startswith("cpu-my-model-")


def test_resolved_profile_reads_back_as_it_was(tmp_path):
    profile = read_profile(write(tmp_path, TRACKS), {"train": {"learning_rates": {"full": 1e-4}}})
    text = yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False)
    assert read_profile(write(tmp_path, text, "profile.yaml")) == profile


def test_most_specific_learning_rate_wins_and_says_where_it_comes_from(tmp_path):
    rates = {"lora": 1e-3, "lora-r32": 2e-3, "ladder:0.4m lora": 3e-3, "ladder:0.4m lora-r32": 4e-3}
    path = write(tmp_path, TRACKS)
    found = {}
    for _ in range(4):
        profile = read_profile(path, {"train": {"learning_rates": dict(rates)}})
        run = profile.run("ladder-0.4m--lora-r32--shift--s5")
        found[run.learning_rate_source] = run.learning_rate
        rates.pop(run.learning_rate_source.removeprefix("profile (").removesuffix(")"))
    assert list(found.values()) == [4e-3, 3e-3, 2e-3, 1e-3]
    default = read_profile(path).run("ladder-0.4m--full--s0")
    assert default.learning_rate_source == "the method's default, not tuned"
    assert read_profile(path).run("ladder-0.4m--base").learning_rate == 0


def test_a_spec_cannot_be_changed_after_it_was_checked():
    with pytest.raises(ValidationError):
        read_profile("smoke").runs()[0].seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ["hub:org/name@abc", "hub:org/name", "path:/a/b", "shape:llama-2-13b", "ladder:0.4m"]
)
def test_model_references_are_written_as_they_are_read(text):
    assert str(ModelRef.parse(text)) == text


@pytest.mark.parametrize("text", ["", "gpt2", "hub:", "file:/a", ":x", "HUB:org/name"])
def test_other_model_references_name_the_four_forms(text):
    with pytest.raises(StudyError, match=r"hub:ID.*path:FOLDER.*shape:NAME.*ladder:NAME"):
        ModelRef.parse(text)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("loar", "Did you mean lora"),
        ("full-r3", "full has no adapter"),
        ("lora-r0", "a rank is 1 to 1024"),
        ("lora-r99999", "a rank is 1 to 1024"),
        ("lora-rx", "not a method"),
        ("", "not a method"),
    ],
)
def test_other_methods_are_refused_by_name(text, rule):
    with pytest.raises(StudyError, match=rule) as caught:
        parse_method(text, LoraSettings())
    assert caught.value.value == text


def test_rank_in_a_methods_name_goes_before_the_profiles():
    lora = LoraSettings(rank=8, alpha=4)
    assert parse_method("qlora", lora).slug == "qlora-r8"
    assert parse_method("QLoRA-r64 ", lora).slug == "qlora-r64"
    assert parse_method("qlora-r64", lora).alpha == 4


@pytest.mark.parametrize(
    ("changes", "value", "rule"),
    [
        ({"trains": {"steps": 3}}, "trains", "not known"),
        ({"train": {"stepz": 3}}, "train.stepz", "not known"),
        ({"train": {"steps": 0}}, "train.steps = 0", "greater than or equal to 1"),
        ({"train": {"steps": "many"}}, "train.steps = 'many'", "valid integer"),
        ({"train": 5}, "train = 5", "a mapping"),
        ({"train": {"schedule": "step"}}, "train.schedule = 'step'", "'constant', 'linear'"),
        ({"train": {"learning_rates": {"full": 2}}}, "learning_rates", "not in"),
        ({"train": {"learning_rates": {"loar": 1e-3}}}, "learning_rates.loar", "not a method"),
        ({"train": {"learning_rates": {"gpt full": 1e-3}}}, "gpt full", "a model is"),
        ({"train": {"max_grad_norm": float("inf")}}, "max_grad_norm", "finite"),
        ({"lora": {"alpha": float("nan")}}, "lora.alpha = nan", "it should"),
        ({"lora": {"rank": 5000}}, "lora.rank = 5000", "1024"),
        ({"seeds": [-1]}, "seeds.0 = -1", "greater than or equal to 0"),
        ({"seeds": [2**32]}, "seeds.0", "less than"),
        ({"seeds": [0, 0]}, "seeds = [0, 0]", "stands twice"),
        ({"seeds": []}, "seeds", "the list is empty"),
        ({"models": []}, "models", "the list is empty"),
        ({"models": "ladder:0.4m"}, "models = 'ladder:0.4m'", "this is a list"),
        ({"models": 5}, "models = 5", "this is a list"),
        ({"models": ["gpt2"]}, "gpt2", "a model is"),
        ({"models": ["path:/a/x", "path:/b/x"]}, "x--base", "share this name and folder"),
        ({"methods": ["lora", "lora-r16"]}, "lora-r16--s0", "share this name and folder"),
        ({"evaluate": {"limit": 0}}, "evaluate.limit = 0", "greater than or equal to 1"),
        ({"evaluate": {"shots": 99}}, "evaluate.shots = 99", "less than or equal to 25"),
        ({"hardware": {"jobs": 0}}, "hardware.jobs = 0", "greater than or equal to 1"),
        ({"tracks": 5}, "tracks", "a list of mappings"),
        ({"tracks": {"0": {}}}, "tracks", "a list of mappings"),
        ({"tracks": [{"name": "a"}, {"name": "a"}]}, "profile", "two tracks share a name"),
        ({"tracks": [{"name": "A b"}]}, "name = 'A b'", "match pattern"),
        ({"name": "../up"}, "'../up'", "a folder's name"),
        ({"name": "reference"}, "'reference'", "where the shipped results lie"),
    ],
)
def test_each_fault_names_value_rule_and_remedy(changes, value, rule):
    with pytest.raises(StudyError) as caught:
        read_profile("smoke", changes)
    assert value in caught.value.value
    assert rule in caught.value.rule
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "place", "rule"),
    [
        (b"question: x\nmodels: [ladder:0.4m\nseeds: [0]\n", "line 3", "expected"),
        (b"\t- a: b\n", "line 1", "cannot start any token"),
        (b"a: *nope\n", "line 1", "undefined alias"),
        (b"a: 1\nb: !!python/object:os.system x\n", "line 2", "could not determine"),
        (b"seeds: [0]\nlimit: 3\nseeds: [1]\n", "line 3", "the key seeds stands twice"),
        (b"a: 1\nquestion: \xff\n", "line 2", "not UTF-8"),
        (b"- a\n- b\n", "mine.yaml", "a mapping of keys to values"),
        (b"", "mine.yaml", "a mapping of keys to values"),
        (b"quesion: x\n", "quesion", "not known"),
        (b"1: x\n", "1", "Keys should be strings"),
        (b"question: x\nmodels: [ladder:0.4m]\n", "data.source", "missing"),
    ],
)
def test_faults_in_a_profile_file_name_the_line_or_the_key(tmp_path, content, place, rule):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=rule) as caught:
        read_profile(str(path))
    assert place in caught.value.value


@pytest.mark.parametrize("name", ["nope", "default", "nope.yaml", "/no/such", "../cpu", ""])
def test_profile_that_is_not_there_is_named(name):
    with pytest.raises(StudyError) as caught:
        read_profile(name)
    assert caught.value.value == name


def test_names_and_files_are_told_apart():
    assert is_file_name("a/b") and is_file_name("b.yaml") and is_file_name("b.yml")
    assert not is_file_name("cpu") and not is_file_name("custom-qwen2.5-0.5b-1a2b3c")


def test_run_that_a_profile_does_not_have_is_named_with_the_nearest():
    with pytest.raises(StudyError, match=r"ladder-0\.4m--full--s0"):
        read_profile("smoke").run("ladder-0.4m--ful--s0")


ON_CPU = """
models: [ladder:0.4m]
data: {source: "almanac:new", template: plain}
evaluate: {questions: "almanac:new"}
train: {steps: 9, seq_len: 64}
on_cpu: {train: {steps: 3, seq_len: 32}, hardware: {jobs: 2}}
tracks:
  - {name: main}
  - {name: shift, train: {steps: 30}, on_cpu: {train: {steps: 4}}}
"""


def test_what_a_profile_and_its_tracks_state_for_a_processor_is_for_one_alone(tmp_path):
    path = write(tmp_path, ON_CPU)
    found = {
        card: [(t.train.steps, t.train.seq_len) for t in read_profile(path, None, card).tracks]
        for card in (False, True)
    }
    assert found == {False: [(3, 32), (4, 32)], True: [(9, 64), (30, 64)]}
    assert [read_profile(path, None, card).hardware.jobs for card in (False, True)] == [2, 1]
    assert {t.train.steps for t in read_profile(path, {"train": {"steps": 5}}).tracks} == {5}
    with pytest.raises(StudyError, match="on_cpu: this is a mapping"):
        read_profile(write(tmp_path, ON_CPU.replace("{train: {steps: 4}}", "4"), "other.yaml"))
