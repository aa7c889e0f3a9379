"""Curves over a run or over runs: training loss by update, validation accuracy by learning rate.

Not covered: what is compared between methods (studylib.reporting.figures).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studylib.reporting.measured import RIGHT_ANSWERS
from studylib.reporting.panels import colour, label_right, new_panels
from studylib.reporting.summary import Comparison, Row
from studylib.schema.measures import MEASURES, Measure
from studylib.schema.settings import LoraSettings, parse_method
from studylib.schema.tuning import TunePoint


def draw_loss(comparisons: Sequence[Comparison]) -> Figure | None:
    """Training loss by update: the mean over seeds, with the range of the seeds behind it."""
    shown = [c for c in comparisons if any(row.complete for row in c.rows)]
    curves = [(c, [(row, curve) for row in c.rows if (curve := read_loss(c, row))]) for c in shown]
    curves = [(c, rows) for c, rows in curves if rows]
    if not curves:
        return None
    figure, panels = new_panels(len(curves))
    for panel, (comparison, rows) in zip(panels, curves, strict=True):
        panel.set_title(comparison.name)
        labels = []
        for row, (steps, losses) in rows:
            mean = losses.mean(0)
            panel.fill_between(steps, losses.min(0), losses.max(0), color=colour(row.method),
                               alpha=0.18, linewidth=0)  # fmt: skip
            panel.plot(steps, mean, color=colour(row.method), linewidth=1.4)
            labels.append((steps[-1], mean[-1], row.method.label, colour(row.method)))
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
        label_right(panel, labels)
        panel.set_xlabel("update")
    panels[0].set_ylabel("training loss (nats a token) ↓")
    return figure


def read_loss(comparison: Comparison, row: Row) -> tuple[np.ndarray, np.ndarray] | None:
    """Updates [n] and losses [seeds, n], smoothed over a twentieth of the run."""
    trained = (record for record in row.complete if record.train)
    tables = comparison.study.tables(trained, "steps.parquet", ["step", "loss"])
    tables = [table for table in tables if len(table)]
    if not tables:
        return None
    count = min(map(len, tables))
    window = max(1, count // 20)
    losses = pd.DataFrame({n: t["loss"][:count].to_numpy() for n, t in enumerate(tables)})
    smooth = losses.rolling(window, min_periods=1).mean().to_numpy()
    return tables[0]["step"][:count].to_numpy(), np.ascontiguousarray(smooth.T)


def draw_tuning(comparisons: Sequence[Comparison]) -> Figure | None:
    """What judged the rates, by learning rate, one panel a size; a diverged rate is left out.

    A ring marks the chosen rate. At an end of its curve a better one may lie beyond.
    """
    shown = [c for c in comparisons if c.sweeps]
    if not shown:
        return None
    figure, panels = new_panels(len(shown))
    for panel, comparison in zip(panels, shown, strict=True):
        panel.set_title(comparison.name)
        labels = []
        for sweep in comparison.sweeps:
            method = parse_method(sweep.method, LoraSettings())
            points = sorted(
                (point.learning_rate, rate_height(point))
                for point in sweep.points
                if not point.is_out
            )
            if not points:
                continue
            shade, marker = colour(method), method.kind.marker
            panel.plot(*zip(*points, strict=True), color=shade, marker=marker, linewidth=1.2)
            best = sweep.best
            panel.plot(
                best.learning_rate, rate_height(best), marker="o", markersize=13,
                markerfacecolor="none", markeredgecolor=shade,
            )  # fmt: skip
            labels.append((*points[-1], method.label, shade))
        panel.set_xscale("log")
        panel.margins(x=0.1, y=0.12)
        label_right(panel, labels)
        panel.set_xlabel("learning rate")
    scored = [p for c in shown for s in c.sweeps for p in s.points if not p.is_out]
    counts = sorted({p.questions for p in scored}) or [0]
    asked = " to ".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1])))
    label = f"validation accuracy (%, {asked} questions) ↑"
    if scored and scored[0].measure:
        label = f"validation, {measure_of(scored[0]).header} ({asked} examples)"
    panels[0].set_ylabel(label)
    return figure


def measure_of(point: TunePoint) -> Measure:
    """What a rate was judged by."""
    return MEASURES[point.measure] if point.measure else RIGHT_ANSWERS


def rate_height(point: TunePoint) -> float:
    """What a rate came to, in the unit shown."""
    value = point.accuracy if point.value is None else point.value
    return measure_of(point).scale * (value or 0)
