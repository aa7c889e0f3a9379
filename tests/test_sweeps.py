"""Which sweeps a reader's study makes before its runs, which rates it tries, and which it stops."""

from __future__ import annotations

import json

import pytest

from studylib.commands.cli_options import resolve_profile
from studylib.core.errors import StudyError
from studylib.planning.sweeps import rates_beyond, sweeps_first, sweeps_left
from studylib.schema.profile import read_profile
from studylib.schema.settings import LoraSettings, parse_method
from studylib.schema.tune_settings import TuneSettings
from studylib.schema.tuning import TunePoint, TuneRecord
from studylib.training.train import StepLog
from studylib.training.tune import Stopped, halfway_loss, refuse_lost


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"What is {n}?", "completion": str(n)} for n in range(60)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own(data, results, model="ladder:0.4m", **words):
    return resolve_profile("custom", results, model=model, data=data, **words)


def test_custom_studies_try_three_rates_a_method_before_their_runs(data, tmp_path):
    profile = own(data, tmp_path)
    found, lines = sweeps_first(profile, tmp_path / profile.name)
    assert lines == [] and [spec.method.name for spec, _ in found] == ["full", "lora", "qlora"]
    for spec, rates in found:
        assert len(rates) == 3 and rates[0] == spec.method.kind.default_learning_rate
        assert spec.seed not in profile.tracks[0].seeds


def test_sweep_0_and_stated_rates_leave_them_out(data, tmp_path):
    off = own(data, tmp_path, changes=["tune=null"])
    assert sweeps_first(off, tmp_path / off.name) == ([], [])
    assert {run.learning_rate_source for run in off.runs() if run.method.kind.trains} == {
        "the method's default, not tuned"}  # fmt: skip
    stated = own(data, tmp_path, changes=["train.learning_rates.full=1e-3"])
    found, _ = sweeps_first(stated, tmp_path / stated.name)
    assert [spec.method.name for spec, _ in found] == ["lora", "qlora"]
    assert sweeps_first(read_profile("smoke"), tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"model": "shape:Pythia-70M"}, "random weights"),
        ({"mmlu": "questions"}, "no val.jsonl"),
        ({"changes": ["hardware.gpus=2", "hardware.sharding=none"]}, "one card"),
    ],
)
def test_what_cannot_be_swept_is_said(data, tmp_path, words, why, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions").mkdir()
    doc = {"subject": "s", "question": "?", "choices": list("abcd"), "answer": 0}
    (tmp_path / "questions" / "test.jsonl").write_text(json.dumps(doc) + "\n")
    profile = own(data, tmp_path, **words)
    found, lines = sweeps_first(profile, tmp_path / profile.name)
    assert found == [] and lines and all("are not tuned" in line for line in lines)
    assert why in lines[0]


def test_report_keys_name_no_other_study(data, tmp_path):
    plain = own(data, tmp_path)
    other = own(data, tmp_path, changes=["evaluate.margin=5", "article=true"])
    assert other.name == plain.name and other.article
    assert other.tracks[0].evaluate.margin == 5
    assert read_profile("smoke", {"evaluate": {"margin": 5.0}}).name == "smoke"
    assert own(data, tmp_path, steps=3).name != plain.name


def test_factors_give_each_method_multiples_of_its_own_default():
    tune = TuneSettings(factors=(1, 4, 16), learning_rates={"lora-r64": (1e-4, 2e-4, 3e-4)})
    lora = LoraSettings()
    assert tune.grid(parse_method("full", lora)) == pytest.approx((1e-5, 4e-5, 1.6e-4))
    assert tune.grid(parse_method("lora-r64", lora)) == (1e-4, 2e-4, 3e-4)
    assert TuneSettings(factors=(1, 4, 1e9)).grid(parse_method("full", lora))[-1] == 1.0
    for wrong in (
        {"factors": (1, 2)},
        {"factors": (1, 2, -3)},
        {},
        {"factors": (1, 2, 3, 4), "learning_rates": {"full": (1e-5, 1e-4, 1e-3)}},
    ):
        with pytest.raises(ValueError, match=r"as many|above 0|not \{|empty"):
            TuneSettings(**wrong)


def log_of(losses):
    rows = [{"step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    return StepLog(rows=rows)


def point(rate, halfway):
    return TunePoint(learning_rate=rate, questions=9, correct=None, last_loss=1.0, seconds=1.0,
                     measure="loss", value=1.0, halfway_loss=halfway)  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "lower", "stops"),
    [
        ([4, 9, 9, 9], [2.0], True),  # blown up
        ([4, 3.5, 3.4, 3.3], [2.0], True),  # less than half of what the lower one learned
        ([4, 3, 2.6, 2.5], [2.0], False),
        ([4, 3.9, 3.85, 3.85], [3.6], False),  # hardly begun: neither has learned much
        ([4, 9, 9, 9], [], False),  # the lowest rate is held to nothing
        ([4, 9, 9, 9], [4.5], False),  # nor to one that had learned nothing
    ],
)
def test_a_rate_that_has_clearly_lost_is_stopped_at_half_of_its_steps(losses, lower, stops):
    points = [point(1e-4, loss) for loss in lower]
    if not stops:
        refuse_lost(log_of(losses), points)
        return
    with pytest.raises(Stopped, match=r"stopped at step 4: its loss was .* that of 0.0001 2"):
        refuse_lost(log_of(losses), points)


def test_halfway_loss_is_the_second_quarters_mean():
    assert halfway_loss(log_of([9, 9, 2, 4, 0, 0, 0, 0]), 8) == 3
    assert halfway_loss(log_of([9, 9, 2]), 8) is None


def test_a_stopped_rate_stays_in_the_curve_with_its_reason_and_is_not_chosen():
    stopped = TunePoint(learning_rate=1e-3, questions=0, correct=None, last_loss=None, seconds=1.0,
                        halfway_loss=9.0, stopped="stopped at step 4: …")  # fmt: skip
    assert stopped.is_out and stopped.text() == "stopped at step 4: …"
    record = TuneRecord.model_construct(points=(point(1e-4, 2.0), point(4e-4, 1.0), stopped))
    assert record.best.learning_rate == 1e-4 and not stopped.value


def test_rates_beyond_the_edge_are_as_many_as_the_profile_says_and_no_more():
    rates = (1e-5, 1e-4, 1e-3)
    record = TuneRecord.model_construct(points=tuple(point(r, 1.0) for r in (*rates, 1e-2)))
    assert rates_beyond(None, rates, None, 2) == 2
    assert rates_beyond(record, rates, None, 2) == 1 and rates_beyond(record, rates, None, 1) == 0
    assert rates_beyond(record, rates, 3, 0) == 3


def test_a_finished_sweep_is_not_left(data, tmp_path):
    profile = own(data, tmp_path)
    assert len(sweeps_left(profile, tmp_path / profile.name)) == 3
    with pytest.raises(StudyError, match="it needs MODEL"):
        resolve_profile("custom", tmp_path, data=data)


@pytest.fixture
def reproduce(study, data, monkeypatch):
    """`study reproduce` of a custom study that starts nothing: (exit code, what it was to do)."""
    from studylib.commands import cli_tune
    from studylib.running import runner
    from studylib.running.executor import Outcome

    def reproduce(*words, code=0):
        done = []

        def sweep_all(profile, home, extend, waiting):
            done.append(len(waiting))
            return code

        monkeypatch.setattr(cli_tune, "sweep_all", sweep_all)
        monkeypatch.setattr(runner, "reproduce", lambda *_, **__: done.append("runs") or Outcome())
        words = ("reproduce", "--model", "ladder:0.4m", "--data", data, *words)
        return *study(*words), done

    return reproduce


def test_reproduce_sweeps_first_and_starts_no_run_after_a_sweep_that_failed(reproduce):
    code, _, _, done = reproduce()
    assert code == 0 and done == [3, "runs"]
    code, _, err, done = reproduce(code=1)
    assert code == 1 and done == [3] and "no run was started" in err and "SWEEP=0" in err
    assert reproduce("--set", "tune=null")[-1] == ["runs"]


def test_plan_says_what_is_searched_for_before_the_runs(study, data):
    code, out, _ = study("plan", "--model", "ladder:0.4m", "--data", data)
    assert code == 0 and "3 searches for a learning rate, 9 trainings" in out
    made = json.loads(study("plan", "--model", "ladder:0.4m", "--data", data, "--json")[1])
    assert len(made["sweeps"]) == 1


def test_tune_takes_the_options_of_reproduce(study, data, monkeypatch):
    from studylib.commands import cli_tune

    seen = []
    monkeypatch.setattr(cli_tune, "sweep_all", lambda *words: seen.append(words) or 0)
    words = ("--model", "ladder:0.4m", "--data", data, "--methods", "full,lora-r4", "--steps", "3")
    assert study("tune", *words, "--set", "tune.limit=7", "--extend", "1")[0] == 0
    [(profile, _, extend, waiting)] = seen
    assert extend == 1 and profile.tracks[0].tune.limit == 7 and profile.tracks[0].train.steps == 3
    assert [spec.method.slug for spec, _ in waiting] == ["full", "lora-r4"]
    name = json.loads(study("plan", *words, "--set", "tune.limit=7", "--json")[1])["profile"]
    assert name == profile.name


def test_a_small_file_holds_out_as_many_as_it_can(data, tmp_path):
    assert own(data, tmp_path).tracks[0].data.held_out == 15
    assert own(data, tmp_path, changes=["data.held_out=4"]).tracks[0].data.held_out == 4
