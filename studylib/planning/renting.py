"""Carry a rented machine through a study: launch, watch, bring results home, take it down.

A machine costs money for as long as it is up. So whatever happens here (a run fails, the cloud
takes a spot machine away, a sync breaks, Ctrl-C), the last two things done are to bring the results
home and to take the machine down. Standard library only: SkyPilot's own Python runs this too.

Not covered: SkyPilot itself (tools/sky_machine.py), what is rented and its price
(studylib.running.rental).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

REMOTE_CHECKOUT = "sky_workdir"  # where SkyPilot lays a task's workdir, in the home folder
RETRY_WAITS_SECONDS = (10.0, 30.0, 60.0)
MOST_LOSSES = 50
FAILED, INTERRUPTED = 1, 130


class JobState(Enum):
    """What the machine says of the study. GONE: there is no machine. UNKNOWN: no answer."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    GONE = "gone"
    UNKNOWN = "unknown"


class Ending(Enum):
    """Why watching ended, in words for people."""

    SUCCEEDED = "the study is done"
    FAILED = "the study failed: its log is above"
    GONE = "the machine is gone"
    OUT_OF_TIME = "the hours that were agreed on are used up"
    NOT_LAUNCHED = "no machine could be had"
    INTERRUPTED = "stopped"


class LaunchFailed(Exception):
    """No machine, or not a working one; the words are the provider's."""


class SyncFailed(Exception):
    """The results could not be copied home this time."""


class DownFailed(Exception):
    """The machine could not be taken down this time."""


class RentedMachine(Protocol):
    """A machine that may or may not be there."""

    name: str

    def launch(self) -> int:
        """Start the machine and the study on it, with what is already home; gives the job's id."""

    def follow(self, job: int) -> None:
        """Show the job's log from now on, beside everything else; called again and again."""

    def job_state(self, job: int) -> JobState: ...

    def fetch(self, checkpoints: bool) -> None:
        """Copy results home, with the checkpoints of unfinished runs or without."""

    def take_down(self) -> None:
        """Give the machine back; nothing happens where there is none."""


@dataclass(frozen=True)
class Limits:
    """How long a machine may be up in all, and how often it is looked at."""

    most_hours: float
    spot: bool = False
    poll_seconds: float = 20.0
    sync_seconds: float = 300.0
    relaunch_wait_seconds: float = 300.0


@dataclass
class Clock:
    """Time as this module uses it; tests have their own."""

    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep


def carry_through(
    machine: RentedMachine,
    limits: Limits,
    clock: Clock | None = None,
    say: Callable[..., Any] = print,
) -> int:
    """Run a study on a rented machine to its end; gives the exit code: 0, 1, or 130 after Ctrl-C.

    An exception that is not foreseen is raised, after the machine was taken down.
    """
    clock = clock or Clock()
    ending, home = Ending.FAILED, True
    try:
        ending = run_to_end(machine, limits, clock, say)
    except LaunchFailed as failure:
        ending = Ending.NOT_LAUNCHED
        say(f"rent: {failure}")
    except KeyboardInterrupt:
        ending = Ending.INTERRUPTED
    finally:
        say(f"rent: {ending.value}")
        try:
            if ending not in (Ending.NOT_LAUNCHED, Ending.GONE):
                say("rent: bringing results home (Ctrl-C leaves that out)")
                home = bring_home(machine, ending is not Ending.SUCCEEDED, clock, say)
        except KeyboardInterrupt:
            say("rent: what came home before is kept")
        finally:
            down = take_machine_down(machine, clock, say)
    if ending is Ending.INTERRUPTED:
        return INTERRUPTED
    return 0 if ending is Ending.SUCCEEDED and home and down else FAILED


def run_to_end(
    machine: RentedMachine, limits: Limits, clock: Clock, say: Callable[..., Any]
) -> Ending:
    """Launch and watch; a spot machine that is taken away is replaced, and goes on."""
    left_seconds = limits.most_hours * 3600
    for losses in range(MOST_LOSSES + 1):
        job = machine.launch() if not losses else relaunch(machine, limits, clock, say)
        began = clock.now()
        ending = watch_job(machine, job, limits, began + left_seconds, clock, say)
        left_seconds -= clock.now() - began
        if ending is not Ending.GONE or not limits.spot:
            return ending
        say(f"rent: the spot machine was taken away ({losses + 1}); starting another")
        take_machine_down(machine, clock, say)  # what may be left of it: a disk, a stopped machine
    return Ending.GONE


def relaunch(machine: RentedMachine, limits: Limits, clock: Clock, say: Callable[..., Any]) -> int:
    """Launch again, however long the cloud has no spot machine: waiting costs nothing."""
    while True:
        try:
            return machine.launch()
        except LaunchFailed as failure:
            say(f"rent: {failure}; trying again in {limits.relaunch_wait_seconds / 60:.0f} minutes")
            take_machine_down(machine, clock, say)
        clock.wait(limits.relaunch_wait_seconds)


def watch_job(
    machine: RentedMachine,
    job: int,
    limits: Limits,
    end: float,
    clock: Clock,
    say: Callable[..., Any],
) -> Ending:
    """Look after a job until it ends or `end` comes, bringing results home now and then."""
    synced = clock.now()
    gone = 0
    while True:
        machine.follow(job)
        state = machine.job_state(job)
        if state is JobState.SUCCEEDED:
            return Ending.SUCCEEDED
        if state is JobState.FAILED:
            return Ending.FAILED
        gone = gone + 1 if state is JobState.GONE else 0
        if gone > 1:  # asked twice: a cloud may lose sight of a machine for a moment
            return Ending.GONE
        if clock.now() >= end:
            return Ending.OUT_OF_TIME
        if clock.now() - synced >= limits.sync_seconds and state is JobState.RUNNING:
            bring_home(machine, limits.spot, clock, say)
            synced = clock.now()
        clock.wait(limits.poll_seconds)


def bring_home(
    machine: RentedMachine, checkpoints: bool, clock: Clock, say: Callable[..., Any]
) -> bool:
    """Copy results home, trying again where that breaks; whether it worked."""
    for wait_seconds in (*RETRY_WAITS_SECONDS, None):
        try:
            machine.fetch(checkpoints)
            return True
        except SyncFailed as failure:
            say(f"rent: the results did not come home: {failure}")
        if wait_seconds is not None:
            clock.wait(wait_seconds)
    return False


def take_machine_down(machine: RentedMachine, clock: Clock, say: Callable[..., Any]) -> bool:
    """Take the machine down and let nothing interrupt that; whether it worked."""
    with uninterrupted():
        for wait_seconds in (*RETRY_WAITS_SECONDS, None):
            try:
                machine.take_down()
                say(f"rent: {machine.name} is down")
                return True
            except DownFailed as failure:
                say(f"rent: {machine.name} could not be taken down: {failure}")
            if wait_seconds is not None:
                clock.wait(wait_seconds)
    say(
        f"rent: {machine.name} MAY STILL COST MONEY. Run .venv-sky/bin/sky down {machine.name}, "
        "or look at the provider's own page."
    )
    return False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would end the process wait outside; the machine is being given back."""
    names = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.signal(name, signal.SIG_IGN) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


def with_results(task: dict[str, Any], home: Path, folder: str) -> dict[str, Any]:
    """The task with the results that are home mounted into its checkout, so that it goes on."""
    if not (home / "runs").is_dir():
        return task
    mounts = {**task.get("file_mounts", {}), f"~/{REMOTE_CHECKOUT}/results/{folder}": str(home)}
    return {**task, "file_mounts": mounts}
