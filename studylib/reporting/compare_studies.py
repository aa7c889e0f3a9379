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

TIME_SHARE = 0.05  # of the first folder's median: what clocks and neighbours do to repeats
MEMORY_SHARE = 0.02  # of its peak: the allocator's luck
TIMES = ("clean_step_seconds", "tokens_per_second", "train_seconds", "end_to_end_seconds",
         "energy_watt_hours")  # fmt: skip
COUNTED = ("trainable_params", "variant_bytes")
ALPHA = 0.05
Rule = Literal["paired", "unpaired", "time", "memory", "counted", "ratio", "status"]
Group = tuple[str, str, str]  # track, model, method
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
    shared = [key for key in groups if key in others]
    if not shared:
        raise StudyError(f"{before}, {after}", "they have no track, model and method in common",
                         "Compare results of the same profile.")  # fmt: skip
    moves: list[Move] = []
    for key in shared:
        a, b = groups[key], others[key]
        moves += [*compare_status(key, a, b), *compare_resources(key, a, b)]
        moves += compare_peaks(key, a, b)
    moves += correct_accuracies(
        [m for k in shared for m in compare_accuracy(k, one, other, groups[k], others[k])]
    )
    moves += compare_servings(one.serves, other.serves)
    return ComparedStudies(
        before=str(before),
        after=str(after),
        moves=tuple(moves),
        only_before=tuple(group_words(key) for key in groups if key not in others),
        only_after=tuple(group_words(key) for key in others if key not in groups),
        settings=find_recipe([(groups[key], others[key]) for key in shared])
        | find_settings(one.records, other.records),
    )


def group_records(study: Study) -> dict[Group, list[Record]]:
    groups: dict[Group, list[Record]] = {}
    for record in sorted(study.records, key=lambda r: (r.run.track, r.run_id)):
        key = (record.run.track, record.run.model, record.run.method.slug)
        groups.setdefault(key, []).append(record)
    return groups


def group_words(key: Group) -> str:
    track, model, method = key
    return f"{model} {method}" + ("" if track == "main" else f" ({track})")


def compare_status(key: Group, a: list[Record], b: list[Record]) -> list[Move]:
    """How the runs ended, where that differs."""
    ends = [", ".join(sorted({r.status for r in records})) for records in (a, b)]
    if ends[0] == ends[1]:
        return []
    return [
        Move(what=group_words(key), figure="status", before=ends[0], after=ends[1], difference=None,
             rule="status", moved=True)
    ]  # fmt: skip


def compare_resources(key: Group, a: list[Record], b: list[Record]) -> list[Move]:
    """Times and energy by their rule, what is counted by equality."""
    one, other = (spread_figures([r for r in x if r.complete], None) for x in (a, b))
    found = [
        judge_spread(key, METRICS[name].label, one[name], other[name], "time", TIME_SHARE)
        for name in TIMES
        if name in one and name in other
    ]
    return found + [
        judge_spread(key, METRICS[name].label, one[name], other[name], "counted", 0.0)
        for name in COUNTED
        if name in one and name in other
    ]


def compare_peaks(key: Group, a: list[Record], b: list[Record]) -> list[Move]:
    one, other = (spread_memory([r for r in x if r.complete]) for x in (a, b))
    return [
        judge_spread(key, f"{stage} peak, {MEMORY[kind]}", one[kind, stage], other[kind, stage],
                     "memory", MEMORY_SHARE)
        for kind, stage in one
        if (kind, stage) in other
    ]  # fmt: skip


def judge_spread(
    key: Group, figure: str, one: Spread, other: Spread, rule: Rule, share: float
) -> Move:
    """Whether two figures over seeds moved: no overlap, and further apart than the share."""
    relative = other.value / one.value - 1 if one.value else float(other.value != one.value)
    apart = other.low > one.high or other.high < one.low
    moved = one.value != other.value if rule == "counted" else apart and abs(relative) > share
    return Move(
        what=group_words(key), figure=figure, before=one.value, after=other.value,
        difference=relative, rule=rule, moved=bool(moved),
    )  # fmt: skip


def compare_accuracy(
    key: Group, one: Study, other: Study, a: list[Record], b: list[Record]
) -> list[Move]:
    """Accuracy on each task and set of weights that both folders scored."""
    found = []
    for task, name in ACCURACY_NAMES.items():
        for weights in shared_weights(a, b, task):
            ours = answers_and_items(one, a, task, weights)
            theirs = answers_and_items(other, b, task, weights)
            if ours is not None and theirs is not None:
                fixed = not a[0].run.method.kind.trains
                merged = ", merged" if "merged" in weights else ""
                paired = ours[1] == theirs[1]
                found.append(
                    judge_answers(key, f"{name}{merged}", ours[0], theirs[0], fixed, paired)
                )
    return found


def shared_weights(a: Iterable[Record], b: Iterable[Record], task: str) -> list[str]:
    sets = [
        {s.weights for r in x if r.evaluate for s in r.evaluate.scores if s.task == task}
        for x in (a, b)
    ]
    return sorted(sets[0] & sets[1])


def answers_and_items(
    study: Study, records: Iterable[Record], task: str, weights: str
) -> tuple[RightAnswers, list[str]] | None:
    """Answers over seeds, and the items in their order; None where there are none."""
    answers = gather_answers(study.items(r for r in records if r.complete), task, weights)
    if answers is None:
        return None
    return answers, [f"{s}/{i}" for s, i in zip(answers.subjects, answers.items, strict=True)]


def judge_answers(
    key: Group, figure: str, ours: RightAnswers, theirs: RightAnswers, fixed: bool, paired: bool
) -> Move:
    """The difference second less first; paired where the items are the very same."""
    values: dict[str, Any]
    if paired:
        made = stats.compare_methods(
            theirs.correct, ours.correct, ours.clusters, reference_fixed=fixed
        )
        values = {"difference": made.value, "low": made.low, "high": made.high}
        p = 1.0 if np.array_equal(ours.correct, theirs.correct) else made.p_value
    else:
        values, p = compare_independent(ours, theirs, fixed)
    return Move(
        what=group_words(key), figure=figure, before=float(ours.correct.mean()),
        after=float(theirs.correct.mean()), p_value=p, rule="paired" if paired else "unpaired",
        moved=p <= ALPHA, **values,
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
    if not moves:
        return []
    corrected = stats.adjust_holm([1.0 if m.p_value is None else m.p_value for m in moves])
    return [
        m.model_copy(update={"p_value": float(p), "moved": bool(p <= ALPHA)})
        for m, p in zip(moves, corrected, strict=True)
    ]


def compare_servings(a: Iterable[ServeRecord], b: Iterable[ServeRecord]) -> list[Move]:
    """Latency ratios of each variant, and bytes of what is kept, of servings in both folders."""
    others = {record.serve_id: record for record in b}
    found: list[Move] = []
    for record in a:
        other = others.get(record.serve_id)
        if other is None:
            continue
        found += compare_ratios(record, other)
        found += compare_footprints(record, other)
    return found


def compare_ratios(one: ServeRecord, other: ServeRecord) -> list[Move]:
    tables = []
    for record in (one, other):
        rows = [row for row in record.measures.latency if row.whole_ratio is not None]
        keys = [(r.variant, r.against, r.decoding, r.batch, r.prompt_tokens) for r in rows]
        tables.append(dict(zip(keys, (r.whole_ratio for r in rows), strict=True)))
    found = []
    for key, ratio in tables[0].items():
        after = tables[1].get(key)
        if ratio is None or after is None:
            continue
        variant, against, decoding, batch, prompt = key
        name = f"{variant} over {against}, {decoding}, batch {batch}, prompt {prompt}"
        found.append(
            Move(
                what=one.serve_id,
                figure=name,
                before=ratio.value,
                after=after.value,
                difference=after.value - ratio.value,
                rule="ratio",
                moved=after.low > ratio.high or after.high < ratio.low,
            )
        )
    return found


def compare_footprints(one: ServeRecord, other: ServeRecord) -> list[Move]:
    tables = [
        {(row.what, row.dtype): row.disk_bytes for row in record.measures.footprint}
        for record in (one, other)
    ]
    return [
        Move(
            what=one.serve_id, figure=f"{what} on disk, {dtype}", before=size,
            after=tables[1][what, dtype], difference=tables[1][what, dtype] / size - 1,
            rule="counted", moved=tables[1][what, dtype] != size,
        )
        for (what, dtype), size in tables[0].items()
        if (what, dtype) in tables[1]
    ]  # fmt: skip


def find_recipe(pairs: Iterable[tuple[list[Record], list[Record]]]) -> dict[str, tuple[str, str]]:
    """Keys of the profile that runs of one track, model and method were made with differently."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for before, after in pairs:
        for field, (old, new) in changed_fields(after[0].run, before[0].run).items():
            seen = found.setdefault(field, (set(), set()))
            seen[0].add(str(old))
            seen[1].add(str(new))
    found.pop("seed", None)
    return {
        field: (", ".join(sorted(old)), ", ".join(sorted(new)))
        for field, (old, new) in sorted(found.items())
    }


def find_settings(a: Iterable[Record], b: Iterable[Record]) -> dict[str, tuple[str, str]]:
    """Device, code, packages, driver, threads: where the two folders differ."""
    one, other = (environment_of(records) for records in (a, b))
    return {
        key: (one.get(key, "absent"), other.get(key, "absent"))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    }


def environment_of(records: Iterable[Record]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
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
            found.setdefault(key, set()).add(str(value))
    return {key: ", ".join(sorted(values)) for key, values in found.items()}
