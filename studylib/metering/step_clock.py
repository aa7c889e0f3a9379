"""Seconds of a training step and of its parts: fetching rows, the optimizer, the whole.

A step begins when its rows are fetched and ends when its update is done. On a card the optimizer
is timed by events on its stream, so that measuring makes nothing wait; the whole step is read
after a synchronisation, once a step.

Not covered: the record of a step (studylib.training.train).
"""

from __future__ import annotations

import time
from typing import Any

import torch


class StepClock:
    """`start` before rows are fetched, `fetched` after, `optimizer_*` around the update, `stop`."""

    def __init__(self) -> None:
        self.on_card = torch.cuda.is_available()
        self.step_seconds = self.data_seconds = self.optimizer_seconds = 0.0
        self._begun = 0.0
        self._marks: list[Any] = []

    def start(self) -> None:
        self._synchronise()
        self._marks = []
        self._begun = time.perf_counter()

    def fetched(self) -> None:
        self.data_seconds = time.perf_counter() - self._begun

    def optimizer_begins(self) -> None:
        self._marks = [self._mark()]

    def optimizer_ends(self) -> None:
        self._marks.append(self._mark())

    def stop(self) -> None:
        self._synchronise()
        self.step_seconds = time.perf_counter() - self._begun
        if len(self._marks) < 2:  # no update was made in this step
            self.optimizer_seconds = 0.0
        elif self.on_card:
            self.optimizer_seconds = self._marks[0].elapsed_time(self._marks[1]) / 1000
        else:
            self.optimizer_seconds = self._marks[1] - self._marks[0]

    def _mark(self) -> Any:
        if not self.on_card:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _synchronise(self) -> None:
        if self.on_card:
            torch.cuda.synchronize()
