"""Say how a study is getting on: a live line at a terminal, plain lines elsewhere.

Not covered: measuring (the runs leave word in their progress.json).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from studylib.planning.plan import Plan

PLAIN_EVERY_SECONDS = 15.0


class Progress:
    """What is running and what it last said. Use begin, started, update, finished/failed, end."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(soft_wrap=True)
        self.live: Live | None = None
        self.now: dict[str, dict[str, Any]] = {}
        self.done = self.total = self.broken = 0
        self.started_at: dict[str, float] = {}

    def begin(self, plan: Plan, serving: int = 0, here: bool = True) -> None:
        """here: on this machine, whose number of runs at a time and pace the plan knows."""
        expected = plan.left_seconds if here and not serving else None
        every = len(plan.runs) + serving
        left = len(plan.left) + serving
        self.begin_tasks(
            plan.profile,
            left,
            plan.jobs if here else None,
            expected,
            f" of {every}" if left < every else "",
        )

    def begin_tasks(
        self,
        name: str,
        total: int,
        jobs: int | None,
        expected_seconds: float | None = None,
        of: str = "",
    ) -> None:
        """jobs: how many at a time; None where machines take as many as they have room for."""
        self.name, self.total, self.expected_seconds = name, total, expected_seconds
        self.begun = self.last_plain = time.monotonic()
        self.say(
            f"{name}: {total}{of} runs to do, {jobs or 'as many as there is room for'} at a time, "
            f"{spell_about(expected_seconds)}"
        )
        if self.console.is_terminal:
            self.live = Live(self.draw(), console=self.console, refresh_per_second=4)
            self.live.start()

    def started(self, run_id: str) -> None:
        self.now[run_id] = {}
        self.started_at[run_id] = time.monotonic()

    def update(self, run_id: str, figures: dict[str, Any]) -> None:
        self.now[run_id] = figures
        if self.live:
            self.live.update(self.draw())
        elif time.monotonic() - self.last_plain > PLAIN_EVERY_SECONDS:
            self.last_plain = time.monotonic()
            self.say(self.draw().plain)

    def finished(self, run_id: str, folder: Path) -> None:
        self.now.pop(run_id, None)
        self.done += 1
        seconds = time.monotonic() - self.started_at[run_id]
        self.say(f"  {run_id}: done in {spell_seconds(seconds)} ({self.done} of {self.total})")

    def failed(self, run_id: str, log: Path) -> None:
        self.now.pop(run_id, None)
        self.done += 1
        self.broken += 1
        self.say(f"  {run_id}: FAILED, see {log}")

    def end(self, finished: Iterable[str], failed: Iterable[str]) -> None:
        if self.live:
            self.live.update(Text(""))
            self.live.stop()
        self.say(
            f"{self.name}: {len(list(finished))} runs finished, "
            f"{len(list(failed))} failed, in {spell_seconds(time.monotonic() - self.begun)}"
        )

    def say(self, line: str) -> None:
        self.console.print(Text(line))

    def draw(self) -> Text:
        lines = [
            f"{self.name}: {self.done} done, {len(self.now)} running, "
            f"{self.total - self.done - len(self.now)} left, "
            f"{spell_about(self.left_seconds())} to go"
        ]
        lines += [f"  {run_id}: {progress_line(figures)}" for run_id, figures in self.now.items()]
        return Text("\n".join(lines))

    def left_seconds(self) -> float | None:
        """From this study's own pace once a run is done, from the plan before that."""
        elapsed = time.monotonic() - self.begun
        if self.done:
            half_done = 0.5 * len(self.now)
            return elapsed / (self.done + half_done) * (self.total - self.done - half_done)
        planned = self.expected_seconds
        return None if planned is None else max(0.0, planned - elapsed)


def progress_line(figures: dict[str, Any]) -> str:
    """One run's line: step, loss, tokens/s, peak memory, or what it is doing."""
    if figures.get("doing") != "training":
        return str(figures.get("doing", "starting"))
    peak = figures.get("peak_bytes")
    parts = [
        f"step {figures['step']}/{figures['steps']}",
        f"loss {figures['loss']:.3f}",
        f"{figures['tokens_per_second']:,.0f} tokens/s",
        f"peak {peak / 1e9:.2f} GB" if peak else "",
    ]
    return ", ".join(part for part in parts if part)


def spell_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def spell_about(seconds: float | None) -> str:
    """about 5 min, or an unknown time, about which nothing is told."""
    return ("" if seconds is None else "about ") + spell_seconds(seconds)
