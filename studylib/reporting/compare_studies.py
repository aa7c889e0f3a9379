"""Which figures of two results folders differ by more than their noise: mine and the reference's,
or before and after a driver's update.

Accuracy is paired on the same items where both folders asked them, else compared as independent;
its p-values are corrected for how many accuracies are compared. Times, energy and peaks moved if
the seeds' ranges do not overlap and the middles are further apart than a stated share. Ratios of
latency moved if their 95 % intervals do not overlap. What is counted moved if it is not the same.

Not covered: why a figure moved (what differs in code, device and packages is listed beside it), and
the words (studylib.reporting.move_words).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats as distributions

from studylib.core import stats
from studylib.core.errors import StudyError
from studylib.core.metrics import METRICS
from studylib.reporting.resources import MEMORY, Spread, spread_figures, spread_memory
from studylib.reporting.study import RightAnswers, Study, gather_answers, read_study
from studylib.schema.differences import changed_fields
from studylib.schema.records import Record
from studylib.schema.serve_records import ServeRecord
from studylib.schema.settings import Frozen

Rule = Literal["paired", "unpaired", "time", "memory", "counted", "ratio", "status"]
ALPHA = 0.05
# Of the first folder's figure: what clocks and neighbours do to repeats, and the allocator's luck.
SHARES: dict[Rule, float] = {"time": 0.05, "memory": 0.02}
JUDGED_BY: dict[str, Rule] = {
    "clean_step_seconds": "time", "tokens_per_second": "time", "train_seconds": "time",
    "end_to_end_seconds": "time", "energy_watt_hours": "time", "trainable_params": "counted",
    "variant_bytes": "counted",
}  # fmt: skip
ACCURACY_NAMES = {"questions": "accuracy", "retention": "kept knowledge"}


class Move(Frozen):
    """One figure in both folders. difference and its interval: accuracy in shares, ratios as they
    are, all else relative to the first folder's."""

    what: str
    figure: str
    before: float | str
    after: float | str
    difference: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    rule: Rule
    moved: bool


class ComparedStudies(Frozen):
    """Two folders, figure by figure; `settings`: field -> (first, second) where they differ."""

    before: str
    after: str
    moves: tuple[Move, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    settings: dict[str, tuple[str, str]]

    @property
    def moved(self) -> list[Move]:
        return [move for move in self.moves if move.moved]


def compare_folders(before: Path, after: Path) -> ComparedStudies:
    """Every figure that both folders have. StudyError: a folder without trusted records, or two
    folders that have no run in common."""
    one, other = read_study(before, planned=()), read_study(after, planned=())
    groups, others = group_records(one), group_records(other)
    shared = {key: (groups[key], others[key]) for key in groups if key in others}
    if not shared:
        raise StudyError(f"{before}, {after}", "they have no track, model and method in common",
                         "Compare results of the same profile.")  # fmt: skip
    moves = [move for key, pair in shared.items() for move in compare_resources(key, *pair)]
    moves += correct_accuracies(
        [move for key, pair in shared.items() for move in compare_accuracy(key, one, other, *pair)]
    )
    servings = {record.serve_id: record for record in other.serves}
    for record in one.serves:
        if served := servings.get(record.serve_id):
            moves += compare_ratios(record, served) + compare_footprints(record, served)
    return ComparedStudies(
        before=str(before),
        after=str(after),
        moves=tuple(moves),
        only_before=tuple(key for key in groups if key not in others),
        only_after=tuple(key for key in others if key not in groups),
        settings=find_recipe(shared.values()) | find_settings(one.records, other.records),
    )


def group_records(study: Study) -> dict[str, list[Record]]:
    """Model, method and track in words -> the runs."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(study.records, key=lambda r: (r.run.track, r.run_id)):
        run = record.run
        track = "" if run.track == "main" else f" ({run.track})"
        groups.setdefault(f"{run.model} {run.method.slug}{track}", []).append(record)
    return groups


def compare_resources(what: str, a: list[Record], b: list[Record]) -> list[Move]:
    """How the runs ended where that differs; times, energy, peaks and what is counted."""
    found = []
    ends = [", ".join(sorted({r.status for r in records})) for records in (a, b)]
    if ends[0] != ends[1]:
        found.append(Move(what=what, figure="status", before=ends[0], after=ends[1],
                          difference=None, rule="status", moved=True))  # fmt: skip
    ours, theirs = resources_of(a), resources_of(b)
    return found + [
        judge_spread(what, figure, spread, theirs[figure][1], rule)
        for figure, (rule, spread) in ours.items()
        if figure in theirs
    ]


def resources_of(records: list[Record]) -> dict[str, tuple[Rule, Spread]]:
    """Figure in words -> by which rule it is judged, and what it came to in complete runs."""
    complete = [record for record in records if record.complete]
    spreads = spread_figures(complete, None)
    figures: dict[str, tuple[Rule, Spread]] = {
        METRICS[key].label: (rule, spreads[key])
        for key, rule in JUDGED_BY.items()
        if key in spreads
    }
    for (kind, stage), spread in spread_memory(complete).items():
        figures[f"{stage} peak, {MEMORY[kind]}"] = ("memory", spread)
    return figures


def judge_spread(what: str, figure: str, one: Spread, other: Spread, rule: Rule) -> Move:
    """Whether two figures over seeds moved: no overlap, and further apart than the rule's share."""
    relative = other.value / one.value - 1 if one.value else float(other.value != one.value)
    apart = other.low > one.high or other.high < one.low
    moved = apart and abs(relative) > SHARES[rule] if rule in SHARES else one.value != other.value
    return Move(
        what=what, figure=figure, before=one.value, after=other.value,
        difference=relative, rule=rule, moved=bool(moved),
    )  # fmt: skip


def compare_accuracy(
    what: str, one: Study, other: Study, a: list[Record], b: list[Record]
) -> list[Move]:
    """Accuracy on each task and set of weights that both folders scored."""
    found = []
    for task, name in ACCURACY_NAMES.items():
        sets = [
            {s.weights for r in x if r.evaluate for s in r.evaluate.scores if s.task == task}
            for x in (a, b)
        ]
        for weights in sorted(sets[0] & sets[1]):
            ours, theirs = (
                gather_answers(study.items(r for r in x if r.complete), task, weights)
                for study, x in ((one, a), (other, b))
            )
            if ours is not None and theirs is not None:
                fixed = not a[0].run.method.kind.trains
                merged = ", merged" if "merged" in weights else ""
                found.append(judge_answers(what, f"{name}{merged}", ours, theirs, fixed))
    return found


def judge_answers(
    what: str, figure: str, ours: RightAnswers, theirs: RightAnswers, fixed: bool
) -> Move:
    """The difference second less first; paired where the items are the very same."""
    rule: Rule = "unpaired"
    if np.array_equal(ours.subjects, theirs.subjects) and np.array_equal(ours.items, theirs.items):
        rule = "paired"
        made = stats.compare_methods(
            theirs.correct, ours.correct, ours.clusters, reference_fixed=fixed
        )
        values = {"difference": made.value, "low": made.low, "high": made.high}
        p = 1.0 if np.array_equal(ours.correct, theirs.correct) else made.p_value
    else:
        values, p = compare_independent(ours, theirs, fixed)
    return Move(
        what=what, figure=figure, before=float(ours.correct.mean()),
        after=float(theirs.correct.mean()), p_value=p, rule=rule, moved=p <= ALPHA, **values,
    )  # fmt: skip


def compare_independent(
    ours: RightAnswers, theirs: RightAnswers, fixed: bool
) -> tuple[dict[str, float], float]:
    """Welch's t on two accuracies, each with its own standard error and degrees of freedom."""
    one, other = (
        stats.measure_accuracy(x.correct, x.clusters, fixed=fixed) for x in (ours, theirs)
    )
    se = float(np.hypot(one.se, other.se))
    df = se**4 / (one.se**4 / one.df + other.se**4 / other.df)
    difference = other.value - one.value
    half = float(distributions.t.ppf(0.975, df) * se)
    p = float(2 * distributions.t.sf(abs(difference) / se, df))
    return {"difference": difference, "low": difference - half, "high": difference + half}, p


def correct_accuracies(moves: list[Move]) -> list[Move]:
    """The same moves with Holm-corrected p-values, judged by them."""
    corrected = stats.adjust_holm(np.array([move.p_value for move in moves], dtype=float))
    return [
        m.model_copy(update={"p_value": float(p), "moved": bool(p <= ALPHA)})
        for m, p in zip(moves, corrected, strict=True)
    ]


def compare_ratios(one: ServeRecord, other: ServeRecord) -> list[Move]:
    """Latency of each variant over what it is set against."""
    ratios, others = (
        {
            f"{r.variant} over {r.against}, {r.decoding}, batch {r.batch}, prompt "
            f"{r.prompt_tokens}": r.whole_ratio
            for r in record.measures.latency
            if r.whole_ratio is not None
        }
        for record in (one, other)
    )
    return [
        Move(
            what=one.serve_id, figure=name, before=before.value, after=after.value,
            difference=after.value - before.value, rule="ratio",
            moved=after.low > before.high or after.high < before.low,
        )
        for name, before in ratios.items()
        if (after := others.get(name)) is not None
    ]  # fmt: skip


def compare_footprints(one: ServeRecord, other: ServeRecord) -> list[Move]:
    """Bytes of what is kept of each variant."""
    sizes, others = (
        {f"{row.what} on disk, {row.dtype}": row.disk_bytes for row in record.measures.footprint}
        for record in (one, other)
    )
    return [
        Move(
            what=one.serve_id, figure=name, before=size, after=others[name],
            difference=others[name] / size - 1, rule="counted", moved=others[name] != size,
        )
        for name, size in sizes.items()
        if name in others
    ]  # fmt: skip


def find_recipe(pairs: Iterable[tuple[list[Record], list[Record]]]) -> dict[str, tuple[str, str]]:
    """Keys of the profile that runs of one track, model and method were made with differently."""
    found: dict[str, list[tuple[str, str]]] = {}
    for before, after in pairs:
        for field, (old, new) in changed_fields(after[0].run, before[0].run).items():
            found.setdefault(field, []).append((str(old), str(new)))
    found.pop("seed", None)
    return {
        field: (join_values(old for old, _ in values), join_values(new for _, new in values))
        for field, values in sorted(found.items())
    }


def join_values(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def find_settings(a: Iterable[Record], b: Iterable[Record]) -> dict[str, tuple[str, str]]:
    """Device, code, packages, driver, threads: where the two folders differ."""
    one, other = (environment_of(records) for records in (a, b))
    return {
        key: (one.get(key, "absent"), other.get(key, "absent"))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    }


def environment_of(records: Iterable[Record]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for record in records:
        where = record.environment
        facts: dict[str, Any] = {
            "device": where.device,
            "threads": where.threads,
            "concurrent runs": where.concurrent_runs,
            "git commit": where.git_commit,
            "code": record.fingerprint.get("code.sha256"),
            **{f"package {name}": version for name, version in where.packages.items()},
            **{f"driver {i}": d.get("driver_version") for i, d in enumerate(where.devices)},
        }
        for key, value in facts.items():
            found.setdefault(key, []).append(str(value))
    return {key: join_values(values) for key, values in found.items()}
