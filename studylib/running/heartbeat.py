"""Whether a run still does something; one that stands still for long is ended, with a message.

A notebook that waits for ever (a lock in a library, a mount that is gone, a stopped process) ends
never by itself, and a rented machine costs as much. Its heartbeat is its word in progress.json and
the processor's time of the main threads of its kernel and what that has started: the meter's
thread samples on in a kernel that hangs.

Not covered: a run that computes for ever, and one that has left no word yet (papermill gives a
kernel a minute to start); other machines (Ray watches its own).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

LOOK_SECONDS = 2.0
PAUSE_SECONDS = 60.0  # between two looks: the study itself was stopped, and its runs may have been


class Heartbeat:
    """One run's: `beat` tells what it last said, and gives for how long it has done nothing.

    clock: seconds that a change of the machine's date does not move.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._sign: object = None
        self._since = self._looked = clock()

    def beat(self, said: dict[str, Any]) -> float:
        """Seconds since the last sign of life; 0 where nothing is known of the run's process."""
        instant = self.clock()
        if "pid" not in said or instant - self._looked > PAUSE_SECONDS:
            self._since = self._looked = instant
        elif instant - self._looked >= LOOK_SECONDS or self._sign is None:
            self._looked = instant
            sign = (sorted(said.items(), key=str), spent_ticks(said["pid"]))
            if sign != self._sign:
                self._sign, self._since = sign, instant
        return instant - self._since


def spent_ticks(pid: int) -> dict[int, int]:
    """Each process's ticks of the processor in its main thread: of this one and its descendants."""
    try:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return {}
    ticks = {}
    for each in family:
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{each}/task/{each}/stat").read_text().rpartition(")")[2].split()
            ticks[each] = int(fields[11]) + int(fields[12])
    return ticks


def end_hanging(pid: int) -> None:
    """Kill a kernel that stands still, and what it has started: it would hear nothing softer."""
    with suppress(psutil.Error):
        kernel = psutil.Process(pid)
        for each in (*kernel.children(recursive=True), kernel):
            with suppress(psutil.Error):
                each.kill()


def explain_hang(said: dict[str, Any], minutes: float) -> str:
    """Why a run was ended, in one message."""
    return (
        f"it stood still for {minutes:g} minutes ({said.get('doing', 'starting')}) and was ended. "
        "Start again, it goes on from its checkpoint; hardware.hang_minutes is how long it may."
    )
