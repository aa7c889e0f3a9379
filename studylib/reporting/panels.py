"""The look of every picture, and its bytes: colours, markers, labels, SVG without a date.

Each method has one colour and one marker in every picture (Okabe and Ito's colours, darkened where
a word in them would be hard to read). The background is solid white, so that a picture reads on a
dark page too. Text is drawn as outlines: it looks the same without the font.

Not covered: what is drawn (studylib.reporting.figures).
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from studylib.core.metrics import points
from studylib.core.stats import Estimate
from studylib.schema.methods import METHODS
from studylib.schema.profile import MethodSettings

COLOURS = {name: row.colour for name, row in METHODS.items()}
INK, FAINT, BAND, CLAIM = "#222222", "#d9d9d9", "#fdf0cf", "#f0b429"
STYLE: Any = {
    "svg.hashsalt": "study", "svg.fonttype": "path", "font.family": "DejaVu Sans",
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip
PANEL_INCHES = (4.2, 3.3)
Shown = TypeVar("Shown")
Names = Sequence[tuple[float, float, str, str]]  # each with its point (x, y) and colour


@contextmanager
def house_style() -> Iterator[None]:
    """The same look whatever the reader's own matplotlibrc says."""
    take_own_font()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


@functools.cache
def take_own_font() -> None:
    """Let the font be the one that comes with matplotlib, also where the system has it too: another
    build of it numbers its glyphs otherwise, and these numbers stand in a picture's bytes."""
    fonts = font_manager.fontManager
    family = STYLE["font.family"]
    fonts.ttflist = [entry for entry in fonts.ttflist if entry.name != family]
    known = {Path(entry.fname) for entry in fonts.ttflist}
    for file in sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        if file not in known:  # a list that another environment left may lack them all
            fonts.addfont(file)


def to_svg(figure: Figure) -> bytes:
    """Bytes without a date: they depend on what is drawn and on matplotlib's version alone.

    Panels side by side are named with their left and right ends, so that a narrow page can set one
    below the other; for that each has the words of the height's axis.
    """
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        ends = panel_ends(figure, canvas)
    text = buffer.getvalue().decode().replace("<svg ", f'<svg data-panels="{ends}" ', 1)
    return ("\n".join(line.rstrip() for line in text.splitlines()) + "\n").encode()


def panel_ends(figure: Figure, canvas: FigureCanvasAgg) -> str:
    """Left and right end of every panel with its labels, in points of the picture."""
    scale = 72 / figure.dpi
    boxes = [panel.get_tightbbox(canvas.get_renderer()) for panel in figure.axes]
    return " ".join(f"{scale * end:.0f}" for box in boxes if box for end in (box.x0, box.x1))


def made_elsewhere(path: Path, content: bytes) -> bool:
    """Whether a picture on disk was drawn by another version of matplotlib than this one."""
    creator = re.compile(rb"<dc:title>(Matplotlib [^<,]*)")
    theirs, ours = creator.search(path.read_bytes()), creator.search(content)
    return bool(theirs and ours and theirs.group(1) != ours.group(1))


def draw_panels(
    shown: Sequence[Shown],
    draw: Callable[[Axes, Shown], Names],
    height: float = PANEL_INCHES[1],
    step: float = 0.07,
    sharey: bool = True,
) -> Figure | None:
    """A row of panels, one for each of what is shown; None of nothing. draw: puts it there, with
    title and axes, and gives the names of its points. step: a name's height (label_right)."""
    if not shown:
        return None
    with house_style():
        width = max(PANEL_INCHES[0] * len(shown), 6.4)  # one panel needs room for its labels
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False, sharey=sharey)[0]
        for panel, one in zip(panels, shown, strict=True):
            panel.tick_params(labelleft=True)
            label_right(panel, draw(panel, one), step)
    return figure


def colour(method: MethodSettings) -> str:
    return method.kind.colour


def tint(shade: str, share: float) -> str:
    """A colour mixed with that share of white."""
    red, green, blue = (c + share * (1 - c) for c in to_rgb(shade))
    return to_hex((red, green, blue))


def note_on_line(panel: Axes, y: float, text: str, below: bool, right: bool = False) -> None:
    """A word on a level line, at the panel's left or right end."""
    panel.annotate(
        text, (1 if right else 0, y), xycoords=("axes fraction", "data"),
        xytext=(-3 if right else 3, -2 if below else 2), textcoords="offset points",
        ha="right" if right else "left", va="top" if below else "bottom", fontsize=7.5, color=INK,
    )  # fmt: skip


def sign_ticks(panel: Axes) -> None:
    """Ticks of an axis of differences: +20, 0, −20."""
    panel.xaxis.set_major_formatter(lambda value, _: points(value / 100).removesuffix(".0"))


def label_right(panel: Axes, labels: Names, step: float) -> None:
    """Names beside their points, moved apart where they would lie on each other (step: a name's
    height as a share of the panel's).

    The line from name to point is dotted: a drawn one would look like an interval.
    """
    panel.get_xlim(), panel.get_ylim()  # asking settles limits that are still open
    place = panel.transData + panel.transAxes.inverted()  # a logarithmic axis included
    heights = spread_apart([place.transform((x, y))[1] for x, y, _, _ in labels], step)
    for (x, y, text, shade), share in zip(labels, heights, strict=True):
        height = place.inverted().transform((0.5, share))[1]
        panel.annotate(
            text, (x, y), xytext=(1.01, height), textcoords=("axes fraction", "data"), va="center",
            color=shade, fontsize=8.5, fontweight="bold", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": shade, "linewidth": 0.7, "alpha": 0.6,
                        "linestyle": (0, (1, 2)), "shrinkA": 1, "shrinkB": 5},
        )  # fmt: skip


def spread_apart(values: Sequence[float], step: float) -> list[float]:
    """The values moved as little as needed so that neighbours are at least a step apart."""
    order = np.argsort(values, kind="stable")
    placed = np.array(values, dtype=float)
    for _ in range(200):
        moved = False
        for a, b in pairwise(order):
            lack = step - (placed[b] - placed[a])
            if lack > 1e-9:
                placed[a] -= lack / 2
                placed[b] += lack / 2
                moved = True
        if not moved:
            break
    return placed.tolist()


def error_bar(estimate: Estimate) -> list[list[float]]:
    return [[100 * (estimate.value - estimate.low)], [100 * (estimate.high - estimate.value)]]
