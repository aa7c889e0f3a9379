"""Has anything become slower? Ratios of the study's speed, held against what was measured before.

Each row compares work with work of the same run: the processor's seconds of both sides, or tokens
and modules counted. So a row says the same on a slow machine, and on one with other work, where
seconds by the clock do not. What takes a process is measured in yardsticks: the processor's seconds
of a process that imports torch and transformers.

A row fails where it is worse than the baseline by more than its factor; a count has no noise and
must not be worse at all. A failing row is measured twice again and the best counts: what else runs
on a machine makes a measurement worse, never better.

    make bench QUICK=1                 the rows that need nothing beside the project
    make bench                         a report of 1,000 records as well, and MMLU 5-shot on
                                       SmolLM2-135M beside lm-eval where --data has MMLU
    ... benchmarks/bench.py --quick --repeats 20 --write      a new baseline, bench.json

Not covered: a card; seconds by the clock; accuracy.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import bench_rows as rows
import mmlu_prefix

from studylib.core.errors import StudyError
from studylib.core.files import write_atomically
from studylib.metering.environment import device_name, package_versions
from studylib.running.runner import follow_parent

BASELINE = Path(__file__).with_name("bench.json")
AGAIN = 2  # times that a row is measured again before it fails


@dataclass(frozen=True)
class Row:
    """One figure: what it is, how it is measured, and by what factor it may be worse.

    more: whether more is better. factor: 1 for a count, which has no noise.
    """

    name: str
    what: str
    measure: Callable[[], float]
    more: bool
    factor: float
    quick: bool = True

    def worse_by(self, value: float, known: float) -> float:
        """How many times worse than what was known; below 1 is better."""
        return known / value if self.more else value / known

    def fails(self, value: float, known: float) -> bool:
        return self.worse_by(value, known) > self.factor * (1 + 1e-9)


def all_rows(data: Path) -> list[Row]:
    """Every row, in order; those on SmolLM2 only where the questions are."""
    found = [
        Row("few-shot tokens", "tokens that lm-eval's own path reads, over ours",
            lambda: rows.few_shot().token_ratio, True, 1.0),
        Row("few-shot time", "its processor seconds over ours",
            lambda: rows.few_shot().cpu_ratio, True, 1.5),
        Row("few-shot passes", "passes of ours", lambda: rows.few_shot().our_passes, False, 1.0),
        Row("labels tokens", "tokens of one forward a label, over ours",
            lambda: rows.labels().token_ratio, True, 1.0),
        Row("labels time", "its processor seconds over ours",
            lambda: rows.labels().cpu_ratio, True, 1.5),
        Row("training", "tokens a processor second, over those of transformers' Trainer",
            rows.training, True, 1.3),
        Row("help modules", "modules that `study --help` imports", rows.help_modules, False, 1.1),
        Row("help", "`study --help`, yardsticks", rows.help_yardsticks, False, 2.0),
        Row("forecast", "a first forecast of QLoRA of Llama-2-13B, yardsticks",
            rows.forecast_yardsticks, False, 1.7),
        Row("start", "a run of 4 steps beside an equal one, yardsticks",
            rows.start_yardsticks, False, 1.7),
        Row("report", "a report of 100 records, yardsticks",
            lambda: rows.report(100).yardsticks, False, 1.7),
        Row("large report", "a report of 1,000 records, yardsticks",
            lambda: rows.report(1000).yardsticks, False, 1.5, quick=False),
        Row("large report memory", "its largest memory, bytes",
            lambda: rows.report(1000).peak_bytes, False, 1.3, quick=False),
    ]  # fmt: skip
    if (data / "test.jsonl").is_file():
        mmlu = [
            Row("MMLU tokens", "lm-eval's over ours, SmolLM2-135M, 5 shots, context 2,048",
                lambda: rows.mmlu(data).token_ratio, True, 1.0, quick=False),
            Row("MMLU time", "its processor seconds over ours",
                lambda: rows.mmlu(data).cpu_ratio, True, 1.3, quick=False),
        ]  # fmt: skip
        found += mmlu
    return found


def read_baseline(path: Path) -> dict[str, dict[str, Any]]:
    """Figures by row; none where there is no baseline yet."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}


def measure_row(row: Row, known: dict[str, Any] | None) -> float:
    """A row's figure; one that fails is measured again, and the best counts."""
    value = row.measure()
    for _ in range(AGAIN if known else 0):
        if not row.fails(value, known["value"]):  # type: ignore[index]
            break
        rows.forget()
        value = (max if row.more else min)(value, row.measure())
    return value


def spell(row: Row, value: float, known: dict[str, Any] | None) -> tuple[str, bool]:
    """A row's line, and whether it holds; without a baseline it has nothing to hold."""
    line = f"{row.name:20} {value:14,.2f}"
    if known is None:
        return f"{line}   no baseline   {row.what}", True
    fails = row.fails(value, known["value"])
    spread = f"{known['low']:,.2f} to {known['high']:,.2f} in {known['repeats']}"
    verdict = "FAILS" if fails else "holds"
    limit = f"{verdict}, {row.worse_by(value, known['value']):.2f} of {row.factor:g} times worse"
    return f"{line}   {known['value']:,.2f} ({spread})   {limit}   {row.what}", not fails


def summarise(values: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Median, least and most of each row's repeats."""
    return {
        name: {"value": median(found), "low": min(found), "high": max(found),
               "repeats": len(found)}
        for name, found in values.items()
    }  # fmt: skip


def false_alarms(chosen: list[Row], values: dict[str, list[float]]) -> dict[str, int]:
    """Of a row's repeats, each measured once only: how many fail against their median."""
    return {
        row.name: sum(row.fails(value, median(values[row.name])) for value in values[row.name])
        for row in chosen
    }


def repeat(chosen: list[Row], repeats: int) -> dict[str, list[float]]:
    """Every row so many times, nothing measured again."""
    values: dict[str, list[float]] = {row.name: [] for row in chosen}
    for number in range(repeats):
        rows.forget()
        for row in chosen:
            values[row.name].append(row.measure())
        print(f"repeat {number + 1} of {repeats}: load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return values


def read_options(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="at most two minutes")
    parser.add_argument("--rows", help="only these, with commas")
    parser.add_argument("--data", type=Path, default=mmlu_prefix.DEFAULT_DATA)
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--repeats", type=int, default=1, help="measure all so often, judge none")
    parser.add_argument("--write", action="store_true", help="make these figures the baseline's")
    return parser.parse_args(words)


def choose(options: argparse.Namespace) -> list[Row]:
    found = [row for row in all_rows(options.data) if row.quick or not options.quick]
    if options.rows is None:
        return found
    known = [row.name for row in found]
    wanted = [name.strip() for name in options.rows.split(",")]
    for name in wanted:
        if name not in known:
            raise StudyError(name, "there is no such row", f"Known: {', '.join(known)}.")
    return [row for row in found if row.name in wanted]


def main(words: list[str] | None = None) -> int:
    """Measure and judge; 1 where a row fails, 2 where something asked for is not there."""
    options = read_options(words)
    follow_parent()
    rows.keep_to_one_thread()
    logging.disable(logging.WARNING)
    try:
        if options.repeats < 1:
            raise StudyError(f"--repeats {options.repeats}", "1 or more", "20 show the spread.")
        chosen = choose(options)
        if options.repeats > 1 or options.write:
            values = repeat(chosen, options.repeats)
            found = summarise(values)
            alarms = false_alarms(chosen, values)
            for row in chosen:
                one = found[row.name]
                print(f"{row.name:20} {one['value']:14,.2f} ({one['low']:,.2f} to "
                      f"{one['high']:,.2f}), {alarms[row.name]} of {one['repeats']} beyond "
                      f"{row.factor:g} times")  # fmt: skip
            if options.write:
                write_baseline(options.baseline, found)
            return 0
        baseline = read_baseline(options.baseline)
        holds = True
        for row in chosen:
            known = baseline.get(row.name)
            line, good = spell(row, measure_row(row, known), known)
            holds &= good
            print(line, flush=True)
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    return 0 if holds else 1


def write_baseline(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Figures into the baseline; rows that were not measured keep theirs."""
    names = ("torch", "transformers", "peft", "lm_eval")
    versions = package_versions()
    content = {
        "device": device_name(),
        "cores": os.cpu_count(),
        "packages": {name: versions[name] for name in names if name in versions},
        "rows": read_baseline(path) | found,
    }
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    raise SystemExit(main())
