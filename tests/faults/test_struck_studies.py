"""Whole studies that are stopped, killed and started twice: `study reproduce` as users give it."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress

import psutil
import pytest
from sabotage import Strike, plant
from scene import RUN, essence, study, write_profile
from soak import Soak
from waiting import LONG_SECONDS, wait_for

pytestmark = pytest.mark.faults
KILLS = 30


def test_study_that_is_stopped_three_ways_ends_at_the_fourth_call(tmp_path, record_property):
    place = ("--profile", write_profile(tmp_path), "--results", tmp_path / "r")
    path = os.pathsep.join(filter(None, (plant(tmp_path / "planted"), os.environ["PYTHONPATH"])))
    runs, base = tmp_path / "r" / "struck" / "runs", None
    ways = ((signal.SIGINT, "loading", 130), (signal.SIGTERM, "training", 143),
            (signal.SIGKILL, "evaluating", -9))  # fmt: skip
    for number, doing, code in ways:
        # The run waits for the blow to its study; SIGSTOP is dealt in a run that trains alone.
        opens = "/".join((RUN, "work", "")) if doing == "training" else None
        strike = Strike(tmp_path / doing, signal.SIGSTOP, opens=opens, does=doing)
        process = study("reproduce", *place, environ={"PYTHONPATH": path, **strike.environ})
        wait_for(strike.stands)
        if number == signal.SIGINT:
            second = study("reproduce", *place)
            said, _ = second.communicate(timeout=LONG_SECONDS)
            assert second.returncode == 2 and "another process is working on this study" in said
            record_property("seen", "second call: exit 2, another process is working on this study")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        with suppress(ProcessLookupError):
            strike.go_on(signal.SIGCONT)
        said, _ = process.communicate(timeout=LONG_SECONDS)
        assert process.returncode == code, said
        assert "Traceback" not in said
        if number != signal.SIGKILL:
            assert "what is finished is kept" in said
        wait_for(lambda family=family: not any(alive(one) for one in family))
        record_property("seen", f"{number.name} in {doing}: exit {code}, no process left")
        done = runs / "ladder-0.4m--base" / "record.json"
        assert base is None or done.read_bytes() == base, "a finished record was written again"
        base = done.read_bytes() if done.is_file() else None
    last = study("reproduce", *place)
    said, _ = last.communicate(timeout=LONG_SECONDS)
    assert last.returncode == 0, said
    assert essence(runs / RUN)["status"] == "complete"


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_kills_at_random_moments_lose_nothing(tmp_path, record_property):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    soak = Soak(tmp_path, seed)
    soak.carry_through(6)
    soak.carry_runs(KILLS - soak.kills)
    assert soak.lost == [], f"seed {seed}"
    record_property("seen", f"seed {seed}: {soak.report()}")
