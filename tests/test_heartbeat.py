"""A run that does nothing for long is seen; one that computes, or says something new, is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_for

from studylib.core.errors import StudyError
from studylib.running.executor import Failure, Outcome
from studylib.running.heartbeat import (
    LOOK_SECONDS,
    PAUSE_SECONDS,
    Heartbeat,
    end_hanging,
    spent_ticks,
)

# A main thread that waits for ever, while another one works as a meter does.
WAITS = """
import threading, time
def work():
    while True:
        sum(range(10000))
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
WORKS = "print('ready', flush=True)\nwhile True: sum(range(10000))"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=[WAITS, WORKS], ids=["waits", "works"])
def process(request):
    started = subprocess.Popen([sys.executable, "-c", request.param], stdout=subprocess.PIPE)
    started.stdout.readline()
    yield started, request.param == WORKS
    started.kill()
    started.communicate()


def test_only_the_work_of_a_main_thread_is_a_sign_of_life(process):
    started, works = process
    clock = Clock()
    heart, said = Heartbeat(clock), {"doing": "training", "pid": started.pid}
    heart.beat(said)
    if works:
        before = spent_ticks(started.pid)
        wait_for(lambda: spent_ticks(started.pid) != before)
    clock.now += LOOK_SECONDS
    still = heart.beat(said)
    assert (still == 0) == works
    if not works:
        clock.now += PAUSE_SECONDS
        assert heart.beat(said) == LOOK_SECONDS + PAUSE_SECONDS
        clock.now += LOOK_SECONDS
        assert heart.beat({**said, "doing": "evaluating"}) == 0, "it said something new"


@pytest.mark.parametrize("process", [WAITS], ids=["waits"], indirect=True)
def test_the_time_in_which_the_study_itself_was_stopped_is_not_the_runs(process):
    started, _ = process
    clock = Clock()
    heart, said = Heartbeat(clock), {"doing": "training", "pid": started.pid}
    heart.beat(said)
    clock.now += 10 * 3600  # a stopped study looks at nothing
    assert heart.beat(said) == 0
    clock.now += LOOK_SECONDS
    assert heart.beat(said) == LOOK_SECONDS


def test_a_run_of_which_nothing_is_known_is_not_judged():
    clock = Clock()
    heart = Heartbeat(clock)
    clock.now = 1e6
    assert heart.beat({}) == 0
    assert spent_ticks(2**22 + 1) == {}


def test_what_stands_still_is_ended_though_it_hears_no_softer_signal(process):
    started, _ = process
    os.kill(started.pid, signal.SIGSTOP)
    wait_for(lambda: " T " in Path(f"/proc/{started.pid}/stat").read_text())
    end_hanging(started.pid)
    assert started.wait() == -signal.SIGKILL
    end_hanging(started.pid)


def test_a_run_that_hung_is_no_bad_input():
    bad = Failure(Path("log.txt"), "x: is wrong. Mend it.")
    hung = Failure(Path("log.txt"), "it stood still", hung=True)
    assert Outcome(failed={"a": bad}).exit_code == StudyError.exit_code
    assert Outcome(failed={"a": hung}).exit_code == 1
    assert Outcome(failed={"a": bad, "b": hung}).exit_code == 1
