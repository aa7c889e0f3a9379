"""Curves over a run or over runs: training loss by update, validation accuracy by learning rate.

Not covered: what is compared between methods (studylib.reporting.figures).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studylib.reporting.measured import RIGHT_ANSWERS
from studylib.reporting.panels import Names, colour, draw_panels
from studylib.reporting.summary import Comparison, Row
from studylib.schema.measures import MEASURES, Measure
from studylib.schema.settings import LoraSettings, parse_method
from studylib.schema.tuning import TunePoint

Curve = tuple[np.ndarray, np.ndarray]  # updates [n], losses [seeds, n]


def draw_loss(comparisons: Sequence[Comparison]) -> Figure | None:
    """Training loss by update: the mean over seeds, with the range of the seeds behind it."""

    def draw(panel: Axes, shown: tuple[Comparison, list[tuple[Row, Curve]]]) -> Names:
        panel.set(title=shown[0].name, xlabel="update", ylabel="training loss (nats a token) ↓")
        labels = []
        for row, (steps, losses) in shown[1]:
            mean = losses.mean(0)
            panel.fill_between(steps, losses.min(0), losses.max(0), color=colour(row.method),
                               alpha=0.18, linewidth=0)  # fmt: skip
            panel.plot(steps, mean, color=colour(row.method), linewidth=1.4)
            labels.append((steps[-1], mean[-1], row.method.label, colour(row.method)))
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
        return labels

    curves = [(c, [(row, curve) for row in c.rows if (curve := read_loss(c, row))])
              for c in comparisons]  # fmt: skip
    return draw_panels([(c, rows) for c, rows in curves if rows], draw)


def read_loss(comparison: Comparison, row: Row) -> Curve | None:
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
    scored = [p for c in shown for s in c.sweeps for p in s.points if not p.is_out]
    counts = sorted({p.questions for p in scored}) or [0]
    asked = " to ".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1])))
    label = f"validation accuracy (%, {asked} questions) ↑"
    if scored and scored[0].measure:
        label = f"validation, {measure_of(scored[0]).header} ({asked} examples)"

    def draw(panel: Axes, comparison: Comparison) -> Names:
        panel.set(title=comparison.name, xlabel="learning rate", ylabel=label)
        labels = []
        for sweep in comparison.sweeps:
            method = parse_method(sweep.method, LoraSettings())
            points = sorted((p.learning_rate, rate_height(p)) for p in sweep.points if not p.is_out)
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
        return labels

    return draw_panels(shown, draw)


def measure_of(point: TunePoint) -> Measure:
    """What a rate was judged by."""
    return MEASURES[point.measure] if point.measure else RIGHT_ANSWERS


def rate_height(point: TunePoint) -> float:
    """What a rate came to, in the unit shown."""
    value = point.accuracy if point.value is None else point.value
    return measure_of(point).scale * (value or 0)
