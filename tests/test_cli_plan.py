"""On a machine with cards a plan has hours and dollars, and more than the budget is asked for."""

from __future__ import annotations

import json
import os
import sys

import pytest

from studylib.commands import cli_options, cli_tune
from studylib.commands.forecast_only import SWITCH, forecast_only
from studylib.forecasting import prospects
from studylib.forecasting.job_forecast import Machine
from studylib.metering import environment
from studylib.running import doctor, runner
from studylib.running.executor import Outcome
from studylib.schema.profile import read_profile

DEVICE = "NVIDIA H100 80GB HBM3"
CARD = {"cuda_ordinal": 0, "name": DEVICE}
SMALL = ("--profile", "systems", "--model", "shape:Pythia-70M", "--methods", "lora")
SMALL = (*SMALL, "--set", "train.seq_len=32")
# One lora run, its base, and two serving runs: minutes of a card, and cents to a few dollars.


@pytest.fixture
def started(monkeypatch):
    """What `reproduce` would run; nothing is."""
    calls = []

    def run(profile, *_, **__):
        calls.append(profile.name)
        return Outcome()

    monkeypatch.setattr(runner, "reproduce", run)
    return calls


@pytest.fixture
def card(study, monkeypatch):
    """A machine with one H100, as far as plans ask."""
    monkeypatch.setattr(doctor, "describe_devices", lambda: ([CARD], None))
    monkeypatch.setattr(environment, "device_name", lambda: DEVICE)
    machine = Machine(gpu="h100-80gb", cards=1, memory_bytes=85 * 10**9)
    monkeypatch.setattr(prospects, "this_machine", lambda: machine)
    return machine


def test_plan_on_a_card_has_hours_and_dollars_before_anything_was_measured(study, card):
    code, out, err = study("plan", *SMALL)
    assert code == 0, err
    assert "1 of 1 runs left, about " in out and "on 1 × h100-80gb, $" in out
    assert "at the cheapest offer" in out and "assumed" in out and "unknown" not in out
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "(forecast), fits" in lines["pythia-70m--lora-r16--s0"]
    assert " h (" in lines["pythia-70m--lora-r16--s0"]
    read = json.loads(study("plan", *SMALL, "--json")[1])["estimate"]
    total = read["hours"]["mid"]
    assert total == pytest.approx(sum(run["mid"] for run in read["run_hours"].values()))
    assert read["usd"]["low"] < read["usd"]["mid"] < read["usd"]["high"]


def test_more_than_the_budget_is_one_message_and_starts_nothing(study, card, started, tmp_path):
    code, out, err = study("reproduce", *SMALL, "--budget", "0.01")
    assert code == 2 and started == [] and list(tmp_path.iterdir()) == []
    assert err.startswith("study: about ") and err.count("\n") == 1
    assert "budget of $0.01" in err and "YES=1" in err and "BUDGET=" in err
    assert "hours" in out and "$" in out
    for words in (("--budget", "1000"), ("--budget", "0", "--yes")):
        assert study("reproduce", *SMALL, *words)[0] == 0
    assert len(started) == 2


@pytest.mark.parametrize(("answer", "starts"), [("y", 1), ("Y ", 1), ("", 0), ("n", 0)])
def test_at_a_terminal_a_y_starts_it(study, card, started, monkeypatch, answer, starts):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    code, _, err = study("reproduce", *SMALL, "--budget", "0.01")
    assert len(started) == starts and code == (0 if starts else 2)
    assert ("Nothing was started" in err) != bool(starts)


def test_unknown_cost_on_a_card_asks_as_well(study, card, started, monkeypatch):
    strange = card.model_copy(update={"gpu": None})
    monkeypatch.setattr(prospects, "this_machine", lambda: strange)
    code, _, err = study("reproduce", *SMALL, "--budget", "1000")
    assert code == 2 and started == [] and "cost unknown" in err and "nobody knows" in err


def test_cards_of_a_cluster_that_are_not_known_here_are_asked_about(study, started):
    code, _, err = study("reproduce", *SMALL, "--executor", "ray")
    assert code == 2 and started == [] and "on the cards of other machines, cost unknown" in err


SWEEPS = """name: swept
models: [shape:Pythia-70M]
methods: [lora]
data: {source: "almanac:new", template: plain}
evaluate: {questions: "almanac:new", scoring: text, shots: 0}
train: {steps: 40, seq_len: 32, dtype: bf16}
tune: {learning_rates: {lora: [1.0e-4, 2.0e-4, 4.0e-4]}}
"""


def test_sweeps_beyond_the_budget_are_asked_for_too(study, card, monkeypatch, tmp_path):
    (tmp_path / "swept.yaml").write_text(SWEEPS)
    ran = []
    monkeypatch.setattr(cli_tune, "sweep_all", lambda *words: ran.append(words) or 0)
    code, out, err = study("tune", "--profile", "swept.yaml", "--budget", "0.001")
    assert code == 2 and ran == [] and not (tmp_path / "results").exists()
    assert "sweeps: 1, trainings: 3, about " in out
    assert "budget of $0.001" in err and "YES=1" in err
    assert study("tune", "--profile", "swept.yaml", "--budget", "1000")[0] == 0 and len(ran) == 1


def test_no_sweep_is_spent_on_a_model_whose_rates_are_stated():
    swept = {spec.model for spec, _ in read_profile("gpu").sweeps()}
    assert len(swept) == 1 and "OLMo-2-0425-1B" in swept.pop()


def test_without_a_card_nothing_is_asked(study, started):
    assert study("reproduce", "--profile", "smoke")[0] == 0 and len(started) == 1
    assert study("reproduce", *SMALL)[0] == 0 and len(started) == 2


@pytest.mark.parametrize("budget", ["-1", "ten", "nan", "inf", ""])
def test_budget_that_is_none_is_refused(study, started, budget):
    code, out, err = study("reproduce", "--profile", "smoke", f"--budget={budget}")
    assert code == 2 and out == "" and started == []
    assert err == f"study: BUDGET={budget}: a budget is dollars, 0 or more. Write BUDGET=25.\n"


@pytest.mark.parametrize(
    ("devices", "answers", "profile"),
    [
        ([], None, "cpu"),
        ([CARD | {"cuda_ordinal": None}], None, "cpu"),
        ([CARD], True, "gpu"),
        ([CARD], False, "systems"),
    ],
)
def test_profile_follows_the_card_and_the_hub_and_doctor_says_the_same(
    study, monkeypatch, devices, answers, profile
):
    asked = []

    def reach():
        asked.append(1)
        return bool(answers), "so it was"

    monkeypatch.setattr(doctor, "describe_devices", lambda: (devices, "no reason"))
    monkeypatch.setattr(doctor, "reach_hub", reach)
    assert cli_options.default_profile() == cli_options.default_profile() == profile
    assert len(asked) == (answers is not None)  # without a card no network is waited for
    found = doctor.examine_machine()
    assert found["profile"] == profile and found["profile_reason"]
    assert cli_options.pick_profile(None)[1] == found["profile_reason"]
    assert cli_options.pick_profile("smoke") == ("smoke", "")


def test_study_without_a_name_says_which_profile_it_takes_and_why(study, started):
    code, out, _ = study("reproduce")
    assert code == 0 and out.startswith("profile cpu: there is no GPU\n")
    assert "profile" not in study("plan", "--profile", "smoke")[1]


def test_reading_results_on_a_card_asks_no_network(study, card, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "reach_hub", lambda: pytest.fail("it asked"))
    (tmp_path / "results" / "systems" / "runs").mkdir(parents=True)
    assert cli_options.results_name(None) == "systems"
    assert cli_options.results_name(None, tmp_path / "results") == "systems"


def test_plan_counts_the_examples_and_the_rows_left_out(study, tmp_path, tiny_folder):
    rows = [{"instruction": f"Add {n} and 1.", "output": "" if n < 2 else str(n + 1)}
            for n in range(1200)]  # fmt: skip
    (tmp_path / "sums.json").write_text(json.dumps(rows))
    words = ("plan", "--profile", "custom", "--model", f"path:{tiny_folder}", "--data",
             tmp_path / "sums.json", "--mmlu", "almanac:new", "--steps", 1,
             "--set", "train.seq_len=128")  # fmt: skip
    code, out, err = study(*words)
    assert code == 0, err
    line = "sums.json: Alpaca instructions, 1,198 examples, "
    line += "2 rows left out (2 with no text in 'output')"
    assert line in out.splitlines()
    assert "an unknown time" not in out and "(forecast)" in out  # the processor was tried
    code, out, err = study(*words, "--json")
    told, first, tokens = json.loads(out)["data"]
    assert (code, told, first) == (0, line, "  first: user: Add 2 and 1. | assistant: 3")
    assert f"path:{tiny_folder}: template alpaca, " in tokens and " learned" in tokens


@pytest.mark.parametrize(
    ("rows", "measure", "rule"),
    [
        ([{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(60)],
         "labels", "different answers"),
        ([{"text": f"This is text number {n}."} for n in range(60)], "exact", "has no prompt"),
    ],
)  # fmt: skip
def test_a_measure_that_the_examples_do_not_bear_is_refused_before_any_run(
    call, tmp_path, rows, measure, rule
):
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = ["plan", "--profile", "custom", "--model", "ladder:0.4m", "--data", "own.jsonl"]
    held = ["--set", "data.held_out=10", "--set"]
    code, _, err = call(*words, *held, f"evaluate.measures=[{measure}]")
    assert code == 2 and rule in err and "evaluate.measures" in err
    assert call(*words, *held, "evaluate.measures=[loss]")[0] == 0


def test_compiler_is_kept_out_of_a_forecast_and_of_nothing_after_it(monkeypatch):
    """What was served compiled after it, in this process or one that it started, was not."""
    seen = []
    command = forecast_only(lambda: seen.append(os.environ[SWITCH]))
    monkeypatch.delenv(SWITCH, raising=False)
    command()
    assert seen == ["1"] and SWITCH not in os.environ
    monkeypatch.setenv(SWITCH, "0")
    command()
    assert seen == ["1", "0"] and os.environ[SWITCH] == "0"
