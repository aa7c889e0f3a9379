"""A study under way in a notebook: what runs, how its loss falls, and about how long it will take.

Not covered: the same at a terminal (studylib.running.progress), a run that has ended
(studylib.notebook_views.views).
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.text import Text

from studylib.notebook_views.views import finish
from studylib.running.progress import Progress, spell_seconds

DRAWN_EVERY_SECONDS = 1.0
MOST_LINES = 40
Point = tuple[int, float]


class LiveProgress(Progress):
    """Shows in one place of the notebook what the study last said, and every run's loss."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))  # what is said stands in the notebook instead
        self.lines: list[str] = []
        self.losses: dict[str, list[Point]] = {}
        self.places: list[Any] = []
        self.first: dict[str, tuple[int, float]] = {}  # the step that was seen first, and when
        self.drawn = 0.0

    def say(self, line: str) -> None:
        self.lines = [*self.lines, line.rstrip()][-MOST_LINES:]
        self.show()

    def update(self, run_id: str, figures: dict[str, Any]) -> None:
        self.now[run_id] = figures
        points = self.losses.setdefault(run_id, [])
        if "loss" in figures and (not points or figures["step"] > points[-1][0]):
            points.append((figures["step"], figures["loss"]))
            self.first.setdefault(run_id, (figures["step"], time.monotonic()))
        if time.monotonic() - self.drawn > DRAWN_EVERY_SECONDS:
            self.show()

    def finished(self, run_id: str, folder: Path) -> None:
        if (folder / "steps.parquet").is_file():  # every step, where some were seen under way
            steps = pd.read_parquet(folder / "steps.parquet", columns=["step", "loss"])
            self.losses[run_id] = list(steps.itertuples(index=False, name=None))
        super().finished(run_id, folder)

    def draw(self) -> Text:
        """What the study last said, with the time that each training still takes at its pace."""
        lines = super().draw().plain.splitlines()
        told = [self.tell_left(run_id) for run_id in self.now]
        return Text("\n".join([lines[0], *map("".join, zip(lines[1:], told, strict=True))]))

    def tell_left(self, run_id: str) -> str:
        figures, first = self.now[run_id], self.first.get(run_id)
        if "step" not in figures or first is None or figures["step"] <= first[0]:
            return ""
        pace = (time.monotonic() - first[1]) / (figures["step"] - first[0])
        left = spell_seconds(pace * (figures["steps"] - figures["step"]))
        return f", its training ends in about {left}"

    def show(self) -> None:
        """Draw anew what stands in the notebook, or put it there."""
        from IPython.display import display

        self.drawn = time.monotonic()
        under_way = [self.draw().plain] if self.now else []
        words = "\n".join([*self.lines, *under_way])  # as they stand, whatever is in them
        shown: list[Any] = [{"text/plain": words}, plot_losses(self.losses)]
        if not self.places:
            self.places = [
                display(one, display_id=True, raw=isinstance(one, dict)) for one in shown
            ]
            return
        for place, one in zip(self.places, shown, strict=True):
            place.update(one, raw=isinstance(one, dict))


def plot_losses(losses: Mapping[str, Sequence[Point]]) -> Figure:
    """The loss of every run by its step, each line named with its last one."""
    figure, axes = plt.subplots(figsize=(7.2, 3.0), layout="constrained")
    known = {name: points for name, points in losses.items() if points}
    for name, points in known.items():
        steps, values = zip(*points, strict=True)
        label = f"{name}: {values[-1]:.2f}"
        (line,) = axes.plot(steps, values, linewidth=1.4, label=label)
        axes.plot(steps[-1:], values[-1:], "o", color=line.get_color(), markersize=3)
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = "Loss by step" if known else "No run trains yet"
    axes.set_title(title, loc="left", fontsize=10)
    if known:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return finish(figure)
