"""A run has its own cards: it sees as many as it asks for, and no other run sees them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_nvml import FakeCard, FakeNvml

from studylib import executor
from studylib.devices import hold_cards, visible_cards
from studylib.executor import Outcome, Task, run_batch
from studylib.settings import Hardware


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


class Silent:
    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Run tasks that note when they began and ended and which cards they saw."""
    monkeypatch.setattr(executor, "visible_cards", lambda: ("A", "B", "C", "D"))
    notes = {}

    def launch(words, folder, threads, environ):
        folder.mkdir()
        notes[words[0]] = (time.monotonic(), environ["CUDA_VISIBLE_DEVICES"])
        code = "import pathlib, sys, time; time.sleep(0.5); pathlib.Path(sys.argv[1]).touch()"
        return subprocess.Popen([sys.executable, "-c", code, str(folder / "result")])

    monkeypatch.setattr(executor, "launch", launch)

    def run(jobs, *gpus):
        tasks = [
            Task(str(n), (str(n),), tmp_path / str(n), tmp_path / str(n) / "result", "p", Path(), g)
            for n, g in enumerate(gpus)
        ]
        outcome = Outcome()
        run_batch(tasks, Hardware(jobs=jobs), Silent(), outcome)
        assert len(outcome.finished) == len(gpus)
        return notes

    return run


def test_runs_side_by_side_have_cards_of_their_own(seen):
    notes = seen(4, 1, 2, 1)
    assert [notes[n][1] for n in "012"] == ["A", "B,C", "D"]
    assert notes["2"][0] - notes["0"][0] < 0.5


def test_a_run_waits_until_its_cards_are_free(seen):
    notes = seen(4, 1, 4, 0)
    assert notes["1"][1] == "B,C,D,A" and notes["2"][1] == ""
    assert notes["1"][0] - notes["0"][0] >= 0.5


def test_a_run_that_wants_more_than_the_machine_has_is_started_to_say_so(seen):
    assert seen(2, 8)["0"][1] == "A,B,C,D"
