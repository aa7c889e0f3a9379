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
    carrier = Carrier(machine, limits, clock or Clock(), say)
    ending, home = Ending.FAILED, True
    try:
        ending = carrier.run_to_end()
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
                home = carrier.bring_home(checkpoints=ending is not Ending.SUCCEEDED)
        except KeyboardInterrupt:
            say("rent: what came home before is kept")
        finally:
            down = carrier.take_down()
    if ending is Ending.INTERRUPTED:
        return INTERRUPTED
    return 0 if ending is Ending.SUCCEEDED and home and down else FAILED


@dataclass(frozen=True)
class Carrier:
    """What is done with a machine, step by step, within limits."""

    machine: RentedMachine
    limits: Limits
    clock: Clock
    say: Callable[..., Any]

    def run_to_end(self) -> Ending:
        """Launch and watch; a spot machine that is taken away is replaced, and goes on."""
        left_seconds = self.limits.most_hours * 3600
        for losses in range(MOST_LOSSES + 1):
            job = self.relaunch() if losses else self.machine.launch()
            began = self.clock.now()
            ending = self.watch(job, began + left_seconds)
            left_seconds -= self.clock.now() - began
            if ending is not Ending.GONE or not self.limits.spot:
                return ending
            self.say(f"rent: the spot machine was taken away ({losses + 1}); starting another")
            self.take_down()  # what may be left of it: a disk, a stopped machine
        return Ending.GONE

    def relaunch(self) -> int:
        """Launch again, however long the cloud has no spot machine: waiting costs nothing."""
        wait_seconds = self.limits.relaunch_wait_seconds
        while True:
            try:
                return self.machine.launch()
            except LaunchFailed as failure:
                self.say(f"rent: {failure}; trying again in {wait_seconds / 60:.0f} minutes")
                self.take_down()
            self.clock.wait(wait_seconds)

    def watch(self, job: int, end: float) -> Ending:
        """Look after a job until it ends or `end` comes, bringing results home now and then."""
        synced = self.clock.now()
        gone = 0
        while True:
            self.machine.follow(job)
            state = self.machine.job_state(job)
            if state is JobState.SUCCEEDED:
                return Ending.SUCCEEDED
            if state is JobState.FAILED:
                return Ending.FAILED
            gone = gone + 1 if state is JobState.GONE else 0
            if gone > 1:  # asked twice: a cloud may lose sight of a machine for a moment
                return Ending.GONE
            if self.clock.now() >= end:
                return Ending.OUT_OF_TIME
            due = self.clock.now() - synced >= self.limits.sync_seconds
            if due and state is JobState.RUNNING:
                self.bring_home(self.limits.spot)
                synced = self.clock.now()
            self.clock.wait(self.limits.poll_seconds)

    def bring_home(self, checkpoints: bool) -> bool:
        """Copy results home, trying again where that breaks; whether it worked."""
        return self.insist(lambda: self.machine.fetch(checkpoints), "the results did not come home")

    def take_down(self) -> bool:
        """Take the machine down and let nothing interrupt that; whether it worked."""
        name = self.machine.name
        with uninterrupted():
            down = self.insist(self.machine.take_down, f"{name} could not be taken down")
            if down:
                self.say(f"rent: {name} is down")
        if not down:
            self.say(
                f"rent: {name} MAY STILL COST MONEY. Run .venv-sky/bin/sky down {name}, "
                "or look at the provider's own page."
            )
        return down

    def insist(self, act: Callable[[], None], complaint: str) -> bool:
        """Try a few times, waiting longer each time; whether it worked."""
        for wait_seconds in (*RETRY_WAITS_SECONDS, None):
            try:
                act()
                return True
            except (SyncFailed, DownFailed) as failure:
                self.say(f"rent: {complaint}: {failure}")
            if wait_seconds is not None:
                self.clock.wait(wait_seconds)
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
