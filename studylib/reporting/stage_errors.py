"""What a plan said of each stage beside what happened: seconds, and bytes in tensors.

One row a stage and device, over all runs that had it to themselves: a plan speaks of those alone.

Not covered: making the plan's figures (studylib.forecasting.stage_forecasts), peaks by part
(studylib.reporting.forecast_errors).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from studylib.core.metrics import MISSING, byte_size, plain_number, points
from studylib.reporting.blocks import Block, Number, Table, Text, cell_of, figures, named, words
from studylib.reporting.cells import short_number
from studylib.reporting.forecast_errors import MeasuredAndForecast, compare_runs, set_beside, worst
from studylib.reporting.glossary import say
from studylib.reporting.study import Study
from studylib.schema.ranges import Range
from studylib.schema.records import Record
from studylib.schema.run_forecasts import PlannedStage
from studylib.schema.shared_card import runs_on_card

STAGES = {"load": "start and load", "train": "train", "evaluate": "score", "serve": "serving run"}


@dataclass(frozen=True)
class Staged:
    """One stage of one run: its seconds, the plan's, and its bytes beside the plan's."""

    stage: str
    device: str
    seconds: float | None
    plan: Range | None
    memory: MeasuredAndForecast | None

    @property
    def time(self) -> MeasuredAndForecast | None:
        """None where one of the two is not known, or nothing was done."""
        return set_beside(self.seconds, self.plan.mid if self.plan else None)

    @property
    def inside(self) -> bool:
        """Whether it took as long as the plan's best to worst case."""
        assert self.seconds is not None and self.plan is not None
        return self.plan.low <= self.seconds <= self.plan.high


def compare_stages(studies: Iterable[Study]) -> Iterator[Staged]:
    """Every stage of complete runs and serving runs of which the plan says something."""
    for study in studies:
        for one in compare_runs([study]):
            if one.record.complete:
                yield from stages_of(one.record, one.forecast.stages)
        for served in study.serves:
            plan = study.serving_plans.get(served.serve_id)
            if plan is None or served.status != "complete":
                continue
            peaks = [m.torch_peak_allocated_bytes or 0 for m in served.stages.values()]
            seconds = sum(measure.wall_seconds for measure in served.stages.values())
            device = served.environment.device
            yield Staged(
                "serve", device, seconds, plan.seconds, set_beside(max(peaks), plan.allocated_bytes)
            )


def stages_of(record: Record, plans: dict[str, PlannedStage]) -> Iterator[Staged]:
    alone, one_card = runs_on_card(record) == 1, record.run.gpus <= 1
    asked = record.evaluate and (record.evaluate.scores or record.evaluate.measures)
    for stage, plan in plans.items():
        block = getattr(record, stage)
        if block is None or (stage == "evaluate" and not asked):  # random weights
            continue
        measure = block.measure
        seconds = start_seconds(record) if stage == "load" else measure.wall_seconds
        seen = measure.torch_peak_allocated_bytes or measure.live_tensor_peak_bytes
        yield Staged(stage, record.environment.device, seconds if alone else None, plan.seconds,
                     set_beside(seen if one_card else None, plan.allocated_bytes))  # fmt: skip


def start_seconds(record: Record) -> float | None:
    """From a run's begin to its end without its other stages; None of one that was interrupted."""
    where = record.environment
    if where.sessions != 1:
        return None
    begin, end = (datetime.fromisoformat(at) for at in (where.started_at, where.finished_at))
    others = [b.measure.wall_seconds for b in (record.train, record.evaluate, record.serve) if b]
    return max(0.0, (end - begin).total_seconds() - sum(others))


def stage_table(found: Iterable[Staged]) -> Table:
    """A row for each stage and device: medians, and the worst of the errors."""
    header = (named("Stage"), *words("Device"), *figures("Runs", "Seconds, measured",
              "Planned ÷ measured", "Worst", "Within the plan's range", "Memory, measured",
              "Forecast's error", "Worst error"))  # fmt: skip
    groups: dict[tuple[int, str], list[Staged]] = {}
    for one in found:
        groups.setdefault((list(STAGES).index(one.stage), one.device), []).append(one)
    return Table(header, tuple(stage_row(groups[place]) for place in sorted(groups)))


def stage_row(like: Sequence[Staged]) -> tuple[str, ...]:
    timed = [one for one in like if one.time]
    times = [time for one in timed if (time := one.time)]
    memory = [one.memory for one in like if one.memory]
    seconds: tuple[str, ...] = (MISSING,) * 4
    if times:
        ratios = sorted((time.forecast / time.measured for time in times), key=far)
        within = sum(one.inside for one in timed)
        seconds = (short_number(statistics.median(time.measured for time in times)),
                   *(cell_of(ratio, partial(plain_number, digits=2))
                     for ratio in (statistics.median(ratios), ratios[-1])),
                   Number(f"{within} of {len(timed)}", within / len(timed)))  # fmt: skip
    cells: tuple[str, ...] = (MISSING,) * 3
    if memory:
        off = (statistics.median(one.error for one in memory), worst(memory).error)
        cells = (cell_of(statistics.median(one.measured for one in memory), byte_size),
                 *(Number(f"{points(error)} %", error) for error in off))  # fmt: skip
    return (STAGES[like[0].stage], like[0].device, str(len(like)), *seconds, *cells)


def far(ratio: float) -> float:
    """How far a ratio is from 1, half and double alike."""
    return max(ratio, 1 / ratio)


def stage_errors_section(studies: Iterable[Study]) -> list[Block]:
    """The report's part, or nothing where no plan was kept of a run."""
    found = [one for one in compare_stages(studies) if one.time or one.memory]
    title = Text("**Plan against measured, by stage**")
    return [title, Text(say("plan_by_stage")), stage_table(found)] if found else []
