"""A run has its own cards: it sees as many as it asks for, and no other run sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_nvml import FakeCard, FakeNvml

from studylib.commands import cli_plan
from studylib.forecasting import job_forecast
from studylib.metering import environment
from studylib.metering.devices import hold_cards, visible_cards
from studylib.running import doctor, executor
from studylib.running.executor import Outcome, Task, run_batch
from studylib.schema.profile import read_profile
from studylib.schema.settings import Hardware


def machine(cards):
    return FakeNvml(*(FakeCard(uuid=f"GPU-{n}") for n in range(cards)))


@pytest.mark.parametrize(
    ("environ", "count", "left", "variable"),
    [
        ({}, 1, ("GPU-0",), "GPU-0"),
        ({}, 2, ("GPU-0", "GPU-1"), "GPU-0,GPU-1"),
        ({}, 0, (), ""),
        ({}, 4, ("GPU-0", "GPU-1", "GPU-2", "GPU-3"), None),
        ({}, 8, ("GPU-0", "GPU-1", "GPU-2", "GPU-3"), None),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 1, ("GPU-2",), "GPU-2"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 1, ("GPU-3",), "3"),
    ],
)
def test_a_process_keeps_the_first_of_the_cards_that_it_sees(environ, count, left, variable):
    assert hold_cards(count, machine(4), environ) == left
    assert environ.get("CUDA_VISIBLE_DEVICES") == variable


def test_without_the_library_nothing_is_hidden():
    environ = {}
    broken = FakeNvml(init_error=OSError("no driver"))
    broken.NVMLError = OSError
    assert visible_cards(broken, environ) == () and hold_cards(0, broken, environ) == ()
    assert environ == {}


TASK = """
import sys, time
from pathlib import Path
while not Path(sys.argv[1]).exists():
    time.sleep(0.02)
Path(sys.argv[2]).touch()
"""


class Silent:
    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Run tasks that note which cards they saw, and which tasks had ended when they began.

    None ends before as many have begun as are to be side by side.
    """
    monkeypatch.setattr(executor, "visible_cards", lambda: ("A", "B", "C", "D"))
    notes, go, together = {}, tmp_path / "go", []

    def launch(words, folder, threads, environ):
        folder.mkdir()
        ended = {path.parent.name for path in tmp_path.glob("*/result")}
        notes[words[0]] = (ended, environ["CUDA_VISIBLE_DEVICES"])
        if len(notes) == together[0]:
            go.touch()
        return subprocess.Popen([sys.executable, "-c", TASK, str(go), str(folder / "result")])

    monkeypatch.setattr(executor, "launch", launch)

    def run(jobs, *gpus, side_by_side=1, runs_per_card=1):
        together[:] = [side_by_side]
        tasks = [
            Task(str(n), (str(n),), tmp_path / str(n), tmp_path / str(n) / "result", "p", Path(), g)
            for n, g in enumerate(gpus)
        ]
        outcome = Outcome()
        hardware = Hardware(jobs=jobs, runs_per_card=runs_per_card)
        run_batch(tasks, hardware, Silent(), outcome)
        assert len(outcome.finished) == len(gpus)
        return notes

    return run


def test_runs_side_by_side_have_cards_of_their_own(seen):
    notes = seen(4, 1, 2, 1, side_by_side=3)
    assert [notes[n] for n in "012"] == [(set(), "A"), (set(), "B,C"), (set(), "D")]


@pytest.mark.parametrize(
    ("allowed", "quota", "jobs", "threads"),
    [(64, None, 2, 32), (1, None, 1, 1), (64, 2.5, 1, 2), (4, 0.5, 3, 1)],
)
def test_runs_share_the_cores_that_this_process_may_use(monkeypatch, allowed, quota, jobs, threads):
    host = {"cores_logical": 64, "cores_allowed": allowed, "cores_quota": quota}
    monkeypatch.setattr(executor, "host_description", lambda: host)
    assert executor.share_cores(Hardware(jobs=jobs)) == threads
    assert executor.share_cores(Hardware(jobs=jobs, threads=7)) == 7


def test_runs_share_cards_where_the_profile_lets_them(seen):
    notes = seen(6, 1, 1, 1, 1, 1, 1, side_by_side=6, runs_per_card=2)
    assert [notes[n][1] for n in "012345"] == ["A", "B", "C", "D", "A", "B"]
    with pytest.raises(ValueError, match="one card each"):
        Hardware(runs_per_card=2, gpus=2)


def test_a_run_waits_until_its_cards_are_free(seen):
    notes = seen(4, 1, 4, 0)
    assert notes["1"][1] == "B,C,D,A" and notes["2"][1] == ""
    assert "0" in notes["1"][0]


def test_a_run_that_wants_more_than_the_machine_has_is_started_to_say_so(seen):
    assert seen(2, 8)["0"][1] == "A,B,C,D"


def test_planning_asks_the_library_and_leaves_no_context_on_a_card(monkeypatch):
    def asked(*_):
        raise AssertionError("this would start CUDA in the process that only starts runs")

    card = {
        "cuda_ordinal": 0, "name": "NVIDIA H100 80GB HBM3",
        "memory_total_bytes": 85 * 10**9, "memory_reserved_bytes": 10**9,
    }  # fmt: skip
    for module in (environment, job_forecast):
        monkeypatch.setattr(module, "describe_devices", lambda: ([card], None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", asked)
    monkeypatch.setattr(torch.cuda, "get_device_properties", asked)
    machine = job_forecast.this_machine()
    assert machine.gpu == "h100-80gb" and machine.cards == 2
    assert machine.memory_bytes == 84 * 10**9


def test_a_profile_without_cards_is_planned_without_them(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "cards_here", lambda: 1)
    assert cli_plan.look_ahead(read_profile("smoke"), tmp_path)[1] is None
