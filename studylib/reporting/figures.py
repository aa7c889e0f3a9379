"""The report's pictures as SVG: the same summary gives the same bytes.

Points and lines are labelled where they lie, axes carry units and direction, and every accuracy and
difference has its 95 % interval.

Not covered: colours and bytes (studylib.reporting.panels), which figures there are
(studylib.reporting.summary).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studylib.reporting import ranking_section, serve_figures
from studylib.reporting.blocks import Block, Picture
from studylib.reporting.capacity import CAPTION, draw_capacity, is_capacity
from studylib.reporting.cells import interval_cell
from studylib.reporting.claims import article_rule
from studylib.reporting.curves import draw_loss, draw_tuning
from studylib.reporting.notes import count_of
from studylib.reporting.panels import (
    BAND,
    CLAIM,
    INK,
    Names,
    colour,
    draw_panels,
    error_bar,
    house_style,
    note_on_line,
    sign_ticks,
)
from studylib.reporting.resources import MEMORY
from studylib.reporting.serve_figures import draw_overhead
from studylib.reporting.summary import Comparison, Row, Summary
from studylib.schema.methods import METHODS, UNTRAINED, WHOLE

Spot = tuple[float, float, Any, Any]  # x, y and their error bars


def draw_all(summary: Summary) -> dict[str, Figure]:
    """Every picture of a study by file name without ending; those without data are left out."""
    found = {"serve-overhead": draw_overhead(summary.study.serves)}
    if is_capacity(summary):
        found["capacity"] = draw_capacity(summary)
    else:
        with house_style():
            for track, comparisons in summary.tracks.items():
                found |= {f"{track}-{name}": draw(comparisons) for name, draw in PICTURES.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


# Accuracy against what it takes -------------------------------------------------------------------


def draw_accuracy_memory(comparisons: Sequence[Comparison]) -> Figure | None:
    """Accuracy against the peak memory of training, one panel a size."""
    kind = comparisons[0].memory_kind
    peaks = [row.memory.get((kind, "train")) for c in comparisons for row in c.rows]
    small = all(peak.value < 1e8 for peak in peaks if peak)
    unit, size = ("MB", 1e6) if small else ("GB", 1e9)

    def spot(row: Row) -> Spot | None:
        spread, y = row.memory.get((kind, "train")), row.accuracy
        if spread is None or y is None or not row.method.kind.trains:
            return None
        x, low, high = (value / size for value in (spread.value, spread.low, spread.high))
        return x, 100 * y.value, ([x - low], [high - x]), error_bar(y)

    def finish(panel: Axes, comparison: Comparison) -> None:
        draw_levels(panel, comparison)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.margins(x=0.12, y=0.08)

    label = f"← peak memory of training, {MEMORY[kind]} ({unit})"
    return draw_points(comparisons, spot, finish, label, "accuracy (%) ↑")


def draw_points(
    comparisons: Sequence[Comparison],
    spot: Callable[[Row], Spot | None],
    finish: Callable[[Axes, Comparison], None],
    x_label: str,
    y_label: str,
) -> Figure | None:
    """A labelled point with error bars for each method, one panel a size; `finish` draws lines."""

    def draw(panel: Axes, comparison: Comparison) -> Names:
        panel.set(title=comparison.name, xlabel=x_label, ylabel=y_label)
        labels = []
        for row in comparison.rows:
            if (found := spot(row)) is None:
                continue
            x, y, x_error, y_error = found
            panel.errorbar(
                x, y, xerr=x_error, yerr=y_error, color=colour(row.method),
                marker=row.method.kind.marker, markersize=7, capsize=2, linewidth=1.2,
            )  # fmt: skip
            labels.append((x, y, row.method.label, colour(row.method)))
        finish(panel, comparison)
        return labels

    return draw_panels([c for c in comparisons if any(spot(row) for row in c.rows)], draw)


def draw_levels(panel: Axes, comparison: Comparison) -> None:
    """The untouched model and guessing, as lines: they cost no training."""
    base = comparison.row(UNTRAINED)
    chances = [row.chance.chance for row in comparison.rows if row.chance]
    level = 100 * base.accuracy.value if base and base.accuracy else None
    if chances:
        guess = 100 * chances[0]
        panel.axhline(guess, color=INK, linewidth=0.8, linestyle=":")
        note_on_line(panel, guess, "guessing", below=level is None or level >= guess)
    if level is not None:
        panel.axhline(level, color=METHODS[UNTRAINED].colour, linewidth=1, linestyle="--")
        note_on_line(panel, level, "base", below=bool(chances) and level < 100 * chances[0])


# Differences --------------------------------------------------------------------------------------


def draw_forest(comparisons: Sequence[Comparison]) -> Figure | None:
    """Differences to full with intervals, and the article's margins as bands."""
    rows = [(c, row) for c in comparisons for row in c.scored if row.gap is not None]
    if not rows:
        return None
    figure = Figure(figsize=(8.4, 1.3 + 0.38 * len(rows)), layout="constrained")
    panel = figure.subplots()
    claimed = False
    for i, (comparison, row) in enumerate(rows):
        gap, rule = row.gap, article_rule(row.method.name, comparison.track)
        assert gap is not None
        if rule is not None:  # the article counts points behind full, the picture points above it
            claimed = True
            low, high = rule.band
            panel.barh(-i, high - low, left=-high, height=0.72, color=BAND)
            width = max(rule.high - rule.low, 0.06)
            panel.barh(-i, width, left=-rule.high, height=0.72, color=CLAIM)
        panel.errorbar(
            100 * gap.value, -i, xerr=error_bar(gap), color=colour(row.method), capsize=3,
            marker=row.method.kind.marker, markersize=7, linewidth=1.6,
        )  # fmt: skip
        panel.annotate(
            f"{interval_cell(gap)} pp", (1.01, -i), xycoords=("axes fraction", "data"),
            va="center", fontsize=8.5, color=colour(row.method), annotation_clip=False,
        )  # fmt: skip
    panel.axvline(0, color=INK, linewidth=1)
    panel.set_yticks([-i for i in range(len(rows))])
    panel.set_yticklabels([f"{c.name}  {row.label}" for c, row in rows])
    panel.set_ylim(-len(rows) + 0.4, 0.6)
    panel.grid(axis="y", visible=False)
    bands = "\ndark band: the article's claim, light band: what still agrees with it"
    panel.set_xlabel(
        "accuracy less full fine-tuning's (pp, 95 % interval)" + (bands if claimed else "")
    )
    sign_ticks(panel)
    return figure


def draw_forgetting(comparisons: Sequence[Comparison]) -> Figure | None:
    """What was kept of old knowledge against what was gained of new, one panel a size."""

    def spot(row: Row) -> Spot | None:
        x, y = row.gain, row.forgetting
        return (100 * x.value, 100 * y.value, error_bar(x), error_bar(y)) if x and y else None

    def finish(panel: Axes, comparison: Comparison) -> None:
        panel.axhline(0, color=METHODS[UNTRAINED].colour, linewidth=1, linestyle="--")
        note_on_line(panel, 0, "nothing forgotten", below=False, right=True)
        panel.margins(x=0.12, y=0.1)

    labels = "gain on the new questions (pp) →", "change on what the base knew (pp) ↑"
    return draw_points(comparisons, spot, finish, *labels)


def draw_subjects(comparisons: Sequence[Comparison]) -> Figure | None:
    """Differences to full by subject, largest model: where a gap comes from."""
    shown = [c for c in comparisons if any(row.gap for row in c.rows)]
    if not shown:
        return None
    comparison = shown[-1]
    rows = [row for row in comparison.rows if row.gap is not None]
    full = comparison.row(WHOLE)
    assert full is not None  # it has gaps
    theirs = subject_shares(full)
    gaps = [{name: share - theirs[name] for name, share in subject_shares(row).items()}
            for row in rows]  # fmt: skip
    names = sorted(gaps[0], key=lambda name: (gaps[0][name], name))
    if len(names) < 2:
        return None
    figure = Figure(figsize=(8.4, 1.2 + 0.2 * len(names)), layout="constrained")
    panel = figure.subplots()
    for i, row in enumerate(rows):
        values = [100 * gaps[i][name] for name in names]
        panel.plot(
            values, range(len(names)), linestyle="", markersize=5.5, alpha=0.85,
            marker=row.method.kind.marker, color=colour(row.method),
        )  # fmt: skip
        panel.annotate(
            row.method.label, (values[-1], len(names) - 1), xytext=(0, 8 + 11 * i), ha="center",
            textcoords="offset points", color=colour(row.method), fontsize=8.5, fontweight="bold",
        )  # fmt: skip
    panel.axvline(0, color=INK, linewidth=1)
    panel.set_yticks(range(len(names)), names, fontsize=7.5)
    panel.set_ylim(-0.7, len(names) + 0.8 * len(rows))
    sign_ticks(panel)
    panel.set_xlabel(
        f"accuracy less full fine-tuning's, {comparison.name} (pp; {asked_each(rows[0])})"
    )
    return figure


def asked_each(row: Row) -> str:
    """How many questions a point of a subject rests on: without that, its scatter misleads."""
    scores = [r.evaluate.score("questions") for r in row.complete if r.evaluate]
    counts = [asked for s in scores if s for asked, _ in s.by_subject.values()]
    each = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    return f"{each} questions a subject × {count_of(len(row.complete), 'seed')}"


def subject_shares(row: Row) -> dict[str, float]:
    totals: dict[str, tuple[int, int]] = {}
    for record in row.complete:
        score = record.evaluate.score("questions") if record.evaluate else None
        for name, (asked, right) in score.by_subject.items() if score else ():
            before = totals.get(name, (0, 0))
            totals[name] = (before[0] + asked, before[1] + right)
    return {name: right / asked for name, (asked, right) in totals.items()}


PICTURES: dict[str, Callable[[Sequence[Comparison]], Figure | None]] = {
    "accuracy-memory": draw_accuracy_memory,
    "ranking": ranking_section.draw_ranking,
    "gap-to-full": draw_forest,
    "kept-and-gained": draw_forgetting,
    "subjects": draw_subjects,
    "tuning": draw_tuning,
    "loss": draw_loss,
}
CAPTIONS = {
    "accuracy-memory": "Accuracy against the peak memory of training, 95 % intervals",
    "ranking": ranking_section.CAPTION,
    "gap-to-full": "Accuracy less full fine-tuning's, on the same questions",
    "kept-and-gained": "What was kept of old knowledge against what was gained of new",
    "subjects": "Differences to full fine-tuning by subject, sorted by the first method",
    "tuning": "On the validation part, by learning rate; the ring is the rate that was chosen",
    "loss": "Training loss, mean over seeds; the band is their range",
    "capacity": CAPTION,
    **serve_figures.CAPTIONS,
}


def show_pictures(pictures: list[str], kinds: tuple[str, ...]) -> list[Block]:
    """The pictures of these kinds, of all whose paths are given."""
    return [
        Picture(CAPTIONS[kind], path)
        for kind in kinds
        for path in pictures
        if path.endswith((f"-{kind}.svg", f"/{kind}.svg"))
    ]
