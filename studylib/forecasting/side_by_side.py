"""Answers that are kept on disk, made side by side by as many processes as there are cores.

Each process is a copy of this one, made before anything is traced, and leaves what it finds in the
cache, where the caller then finds it. What none of them made the caller makes itself.

Not covered: what is made (studylib.forecasting.prospects), the cache
(studylib.forecasting.kept_forecasts).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from studylib.core.errors import StudyError

Make = Callable[[], Any]
NUMBER_BYTES = 8


def make_ahead(makes: Sequence[Make]) -> None:
    """Make them here and in other processes, each taking the next one; where a copy is safe."""
    count = min(len(makes), count_cores())
    if count < 2 or not may_fork():
        return
    import_forecaster()
    left, numbers = os.pipe()
    with os.fdopen(numbers, "wb") as queue:  # a pipe holds 8,000 of them at least
        queue.write(b"".join(number.to_bytes(NUMBER_BYTES) for number in range(len(makes))))
    helpers = [start(makes, left) for _ in range(1, count)]
    make_next(makes, left)
    os.close(left)
    for pid in helpers:
        os.waitpid(pid, 0)


def make_next(makes: Sequence[Make], left: int) -> None:
    """Make one after the other of those that no process has taken."""
    while number := os.read(left, NUMBER_BYTES):
        with suppress(StudyError):  # said where it is asked for
            makes[int.from_bytes(number)]()


def count_cores() -> int:
    """Of those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def may_fork() -> bool:
    """Whether a copy of this process can work: it has one thread, and no card that it may touch."""
    import torch

    return (
        sys.platform == "linux"
        and threading.active_count() == 1
        and not torch.cuda.is_initialized()
    )


def import_forecaster() -> None:
    """What every copy would import for itself."""
    import peft  # noqa: F401

    import studylib.forecasting.forecast
    import studylib.modelling.skeleton  # noqa: F401


def start(makes: Sequence[Make], left: int) -> int:
    """A copy of this process that makes some of these and ends; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        import torch

        torch.set_num_threads(1)
        make_next(makes, left)
        code = 0
    finally:
        os._exit(code)
