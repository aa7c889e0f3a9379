"""How do time and memory grow with the work? Measured by size, fitted and drawn.

    OMP_NUM_THREADS=1 python benchmarks/growth.py                      all that is not measured yet
    ... growth.py --rows plan,report                                   of these alone
    ... growth.py --rows plan --sizes 10,100,1000 --kept /tmp/g.txt    a short one, kept elsewhere

growth.txt keeps a line a point, at once, so that what was cut off goes on; --again measures anew.
growth.svg beside it is drawn from its lines.

A process takes a fixed time to start, and then some for its work: seconds = start + b × size^e is
fitted to the processor's seconds, each point weighed by its own size, and e is the exponent, 1
where twice the work takes twice the time. Runs on Ray are held against the time that they would
take if nothing were added. Code 1 where a rule does not hold.

Not covered: cards; whole machines.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import growth_work as work
import numpy as np
from scipy import stats as distributions
from scipy.optimize import least_squares
from spending import Spent

from studylib.core.errors import StudyError
from studylib.core.files import write_atomically
from studylib.metering.environment import device_name

KEPT = Path(__file__).with_name("growth.txt")
MOST_EXPONENT = 1.15  # a linear work with the noise of a shared machine
MOST_BYTES = 1e9  # that a process may hold at the largest size
LEAST_EFFICIENCY = 0.9
FEWEST = 4  # points that three parameters are fitted to


class Point(NamedTuple):
    """A work's size and what it took: seconds on processors and by the clock, bytes."""

    size: int
    cpu: float
    wall: float
    peak: float


@dataclass(frozen=True)
class Curve:
    """seconds: the most that the largest size may take of a processor; spread: whether sizes are
    machines, with as much work each."""

    name: str
    unit: str
    sizes: tuple[int, ...]
    measure: Callable[[int, Path], Spent]
    seconds: float | None = None
    spread: bool = False


CURVES = (
    Curve("training", "tokens trained", (12_800, 51_200, 102_400, 204_800, 409_600, 819_200),
          work.train_tokens),
    Curve("examples", "examples read, checked and packed",
          (100, 1000, 10_000, 100_000, 300_000, 1_000_000), work.prepare_examples),
    Curve("report", "records in a report", (10, 30, 100, 300, 600, 1000), work.report_records,
          seconds=5),
    Curve("plan", "runs in a plan", (10, 30, 100, 1000, 3000, 10_000), work.plan_runs, seconds=5),
    Curve("ray", "Ray nodes, four runs of 20 s each", (1, 2, 4), work.spread_runs, spread=True),
)  # fmt: skip


class Fit(NamedTuple):
    """seconds = start + factor × size^exponent, with the exponent's 95 % interval."""

    start: float
    factor: float
    exponent: float
    low: float
    high: float

    def at(self, size: float) -> float:
        return self.start + self.factor * size**self.exponent


def fit_growth(points: list[Point]) -> Fit | None:
    """Least squares of the logarithms; None of fewer points than can tell."""
    if len(points) < FEWEST:
        return None
    sizes, seconds = np.array([(p.size, p.cpu) for p in points], dtype=float).T
    scale = sizes.max()

    def residuals(values: np.ndarray) -> np.ndarray:
        start, grown, exponent = values
        return np.log(np.exp(start) + np.exp(grown) * (sizes / scale) ** exponent) - np.log(seconds)

    least = max(seconds.max() - seconds.min(), 1e-3 * seconds.max())
    found = least_squares(residuals, [np.log(seconds.min()), np.log(least), 1.0])
    free = len(points) - 3
    variance = 2 * found.cost / free * np.linalg.pinv(found.jac.T @ found.jac)[2, 2]
    half = float(distributions.t.ppf(0.975, free) * math.sqrt(variance))
    start, grown, exponent = found.x
    factor = math.exp(grown - exponent * math.log(scale))
    return Fit(math.exp(start), factor, exponent, exponent - half, exponent + half)


def efficiency(point: Point) -> float:
    """Of the time that a node's runs take one after the other."""
    return work.SLEEP_SECONDS * work.RUNS_A_NODE / point.wall


def judge(curve: Curve, points: list[Point]) -> list[tuple[str, bool | None]]:
    """Each rule in words, and whether it holds; None where that cannot be told yet."""
    if curve.spread:
        worst = min(map(efficiency, points))
        words = ", ".join(f"{efficiency(p):.2f} at {p.size}" for p in points)
        return [(f"efficiency {words}; at least {LEAST_EFFICIENCY}", worst >= LEAST_EFFICIENCY)]
    found: list[tuple[str, bool | None]] = []
    if fit := fit_growth(points):
        words = f"exponent {fit.exponent:.2f} ({fit.low:.2f} to {fit.high:.2f}), start "
        words += f"{fit.start:.2f} s; at most {MOST_EXPONENT}"
        found.append((words, fit.exponent <= MOST_EXPONENT))
    first, last = points[0], points[-1]
    if curve.seconds is not None:
        most = curve.sizes[-1]
        rule = f"{last.cpu:.2f} s of a processor at {last.size:,}; at most {curve.seconds:g} s"
        met = last.cpu <= curve.seconds if last.size >= most else None
        found.append((f"{rule} at {most:,}", met))
    each = max(0.0, last.peak - first.peak) / max(last.size - first.size, 1)
    rule = f"memory {last.peak / 1e6:,.0f} MB at {last.size:,}, {each:,.0f} bytes more each"
    found.append((f"{rule}; at most {MOST_BYTES / 1e6:,.0f} MB", last.peak <= MOST_BYTES))
    return found


def read_points(path: Path) -> dict[str, dict[int, Point]]:
    """Curve -> size -> point of what is kept; StudyError where a line is none."""
    found: dict[str, dict[int, Point]] = {curve.name: {} for curve in CURVES}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        if line.startswith("#") or not line.strip():
            continue
        try:
            name, size, *figures = line.split()
            cpu, wall, peak = map(float, figures)
            found[name][int(size)] = Point(int(size), cpu, wall, peak * 1e6)
        except (ValueError, KeyError):
            raise StudyError(path, f"this is no point: {line}", "Remove the line.") from None
    return found


def keep(path: Path, found: dict[str, dict[int, Point]]) -> bool:
    """Write points with their rules; whether every rule holds."""
    columns = "".join(f"{name:>10}" for name in ("size", "cpu_s", "wall_s", "peak_MB"))
    lines = [f"# Growth with the size of the work: {device_name()}, {os.cpu_count()} cores"]
    lines.append(f"#{'curve':8}{columns}")
    holds = True
    for curve in CURVES:
        points = [found[curve.name][size] for size in sorted(found[curve.name])]
        for p in points:
            lines.append(
                f"{curve.name:9} {p.size:9} {p.cpu:9.2f} {p.wall:9.2f} {p.peak / 1e6:9.1f}"
            )
        for words, good in judge(curve, points) if points else ():
            lines.append(f"#   {words}: {'open' if good is None else 'holds' if good else 'FAILS'}")
            holds &= good is not False
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return holds


def draw(found: dict[str, dict[int, Point]]) -> bytes:
    """A column a curve: seconds above, with the fit, and the largest memory below."""
    from matplotlib.figure import Figure

    from studylib.reporting.panels import CLAIM, INK, house_style, to_svg

    with house_style():
        figure = Figure(figsize=(2.9 * len(CURVES), 5.4), layout="constrained")
        for column, (above, below) in enumerate(figure.subplots(2, len(CURVES)).T):
            curve = CURVES[column]
            points = [found[curve.name][size] for size in sorted(found[curve.name])]
            sizes = [p.size for p in points]
            above.set(title=curve.name, xscale="log", xlabel=curve.unit)
            if curve.spread:
                above.plot(sizes, [efficiency(p) for p in points], "o-", color=INK)
                above.axhline(LEAST_EFFICIENCY, color=CLAIM)
                above.set(ylim=(0, 1.05), ylabel="efficiency", xticks=sizes, xticklabels=sizes)
                above.minorticks_off()
                below.set_axis_off()
                continue
            above.plot(sizes, [p.cpu for p in points], "o", color=INK)
            if fit := fit_growth(points):
                line = np.geomspace(sizes[0], sizes[-1], 60)
                above.plot(line, fit.at(line), color=INK, linewidth=1)
                above.set_title(f"exponent {fit.exponent:.2f} ({fit.low:.2f} to {fit.high:.2f})",
                                loc="right", fontsize=7.5, fontweight="normal")  # fmt: skip
            if curve.seconds is not None:
                above.axhline(curve.seconds, color=CLAIM)
            above.set(yscale="log", ylabel="processor seconds")
            below.plot(sizes, [p.peak / 1e6 for p in points], "o-", color=INK, linewidth=1)
            below.set(xscale="log", xlabel=curve.unit, ylabel="peak memory, MB")
            below.set_ylim(bottom=0)
        return to_svg(figure)


def read_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="only these curves, with commas")
    parser.add_argument("--sizes", help="these sizes in place of each curve's own, with commas")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where the points are kept")
    parser.add_argument("--again", action="store_true", help="measure what is kept anew")
    return parser.parse_args(words)


def choose(rows: str | None, sizes: str | None) -> list[tuple[Curve, int]]:
    """(curve, size) of what is asked for. StudyError names what is not there."""
    known = {curve.name: curve for curve in CURVES}
    names = [name.strip() for name in rows.split(",")] if rows is not None else [*known]
    for name in names:
        if name not in known:
            raise StudyError(name, "there is no such row", f"Known: {', '.join(known)}.")
    given: list[int] | None = None
    if sizes is not None:
        if not all(text.strip().isdecimal() and int(text) for text in sizes.split(",")):
            raise StudyError(f"--sizes {sizes}", "whole numbers above 0", "Write 10,100,1000.")
        given = sorted(map(int, sizes.split(",")))
    return [(known[n], size) for n in names for size in given or known[n].sizes]


def measure(curve: Curve, size: int) -> Point:
    with tempfile.TemporaryDirectory() as folder:
        spent = curve.measure(size, Path(folder))
    return Point(size, spent.cpu_seconds, spent.wall_seconds, float(spent.peak_bytes))


def main(words: list[str] | None = None) -> int:
    """Measure what is asked for and not kept; 1 where a rule fails, 2 at bad input."""
    options = read_options(words)
    try:
        chosen, found = choose(options.rows, options.sizes), read_points(options.kept)
        begun = set[str]()
        for curve, size in chosen:
            if size in found[curve.name] and not options.again:
                continue
            if curve.name not in begun and not curve.spread:
                measure(curve, curve.sizes[0])  # it fills the caches, of bytecode and of forecasts
                begun.add(curve.name)
            point = found[curve.name][size] = measure(curve, size)
            keep(options.kept, found)
            print(f"{curve.name} {size:,}: {point.cpu:.2f} s of a processor, {point.wall:.2f} s, "
                  f"{point.peak / 1e6:,.0f} MB", flush=True)  # fmt: skip
        holds = keep(options.kept, found)
        write_atomically(options.kept.with_suffix(".svg"), draw(found))
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    print(options.kept.read_text(encoding="utf-8"), end="")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
