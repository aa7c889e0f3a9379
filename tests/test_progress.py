"""Progress says how far a study is, in lines that need no terminal."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from studylib.planning.plan import Plan, PlannedRun
from studylib.running import progress as showing
from studylib.running.progress import Progress, progress_line, spell_about, spell_seconds

TRAINING = {
    "doing": "training",
    "step": 3,
    "steps": 60,
    "loss": 2.5,
    "tokens_per_second": 1234.5,
    "peak_bytes": 1_500_000_000,
}


def make_plan(seconds=10.0):
    runs = [
        PlannedRun(run_id=name, state=state, seconds=seconds, seconds_source="", usd=None)
        for name, state in (("a", "done"), ("b", "to do"), ("c", "to resume"), ("d", "to do"))
    ]
    return Plan(profile="cpu", results="results/cpu", jobs=2, runs=tuple(runs))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(showing.time, "monotonic", lambda: now[0])
    return now


def test_run_is_told_by_step_loss_speed_and_memory():
    assert progress_line(TRAINING) == "step 3/60, loss 2.500, 1,234 tokens/s, peak 1.50 GB"
    assert progress_line({**TRAINING, "peak_bytes": None}).endswith("tokens/s")
    assert progress_line({"doing": "evaluating"}) == "evaluating"
    assert progress_line({}) == "starting"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "an unknown time"), (0, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h")],
)
def test_times_are_spelled_in_one_unit(seconds, words):
    assert spell_seconds(seconds) == words
    assert spell_about(seconds) == (words if seconds is None else f"about {words}")


def test_plain_lines_tell_begin_each_end_and_the_sum(clock):
    out = StringIO()
    progress = Progress(Console(file=out, width=200))
    progress.begin(make_plan())
    progress.started("b")
    clock[0] += 5
    progress.update("b", TRAINING)
    assert len(out.getvalue().splitlines()) == 1  # not a line for each look
    clock[0] += 11
    progress.update("b", TRAINING)
    progress.finished("b", Path("b"))
    progress.started("c")
    progress.failed("c", Path("c/log.txt"))
    progress.end(["b"], ["c"])
    assert out.getvalue().splitlines() == [
        "cpu: 3 of 4 runs to do, 2 at a time, about 15 s",
        "cpu: 0 done, 1 running, 2 left, about 0 s to go",
        "  b: step 3/60, loss 2.500, 1,234 tokens/s, peak 1.50 GB",
        "  b: done in 16 s (1 of 3)",
        "  c: FAILED, see c/log.txt",
        "cpu: 1 runs finished, 1 failed, in 16 s",
    ]


def test_time_left_follows_the_studys_own_pace_once_a_run_is_done(clock):
    progress = Progress(Console(file=StringIO()))
    progress.begin(make_plan())
    assert progress.left_seconds() == 15
    progress.started("b")
    clock[0] += 30
    progress.finished("b", Path("b"))
    assert progress.left_seconds() == pytest.approx(60)
    unknown = Progress(Console(file=StringIO()))
    unknown.begin(make_plan(seconds=None))
    assert unknown.left_seconds() is None


def test_terminal_gets_a_live_line(clock):
    out = StringIO()
    progress = Progress(Console(file=out, width=200, force_terminal=True))
    progress.begin(make_plan())
    progress.started("b")
    progress.update("b", TRAINING)
    assert "0 done, 1 running, 2 left" in progress.draw().plain
    progress.finished("b", Path("b"))
    progress.end(["b"], [])
    assert progress.live is not None and not progress.live.is_started
    assert "1 runs finished, 0 failed" in out.getvalue()
