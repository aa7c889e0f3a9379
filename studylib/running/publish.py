"""Make finished results the reference that ships with the study.

Not covered: the report that is made from it (studylib.reporting.report).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from studylib.core.errors import StudyError
from studylib.core.files import explain_write_error
from studylib.forecasting.run_forecasts import refresh_forecasts
from studylib.planning.plan import plan_study
from studylib.schema.card_study import CARD_FILES, CARD_STUDY, read_card_study
from studylib.schema.profile import read_profile
from studylib.schema.records import RECORD, Environment, Record, Scalar, read_records
from studylib.schema.run_forecasts import RUN_FORECASTS
from studylib.schema.serve_records import SERVE_RECORD, ServeRecord, read_serve_records
from studylib.schema.tuning import read_sweeps
from studylib.serving.pair_timings import TIMINGS

NOTEBOOK = "executed.ipynb"
LIBRARY = re.compile(r"(?<![\w.])/[^\s\"']*/(?:site|dist)-packages/")


def publish_results(results: Path, reference: Path) -> Path:
    """Copy the records of results/PROFILE to reference/PROFILE, whole or not at all.

    Raises StudyError where a run of the profile is missing or was made with other settings, where
    code differs from its commit, or where runs were made by different code. What a card measured is
    taken as far as it came, in parts made by other commits too (the report sets them apart), and
    what an earlier time on it left there stays: such records cannot be made again at will.
    """
    file = results / "profile.yaml"
    if not file.is_file():
        raise StudyError(results, "there are no results", "Run `make reproduce` first.")
    profile = read_profile(str(file))
    planned = {spec.run_id for spec in profile.runs()}
    records = [r for r in read_records(results / "runs") if r.run_id in planned]
    on_card = is_card_study(results) or is_of_cards(results, records)
    missing = plan_study(profile, results).left
    if missing and not on_card:
        raise StudyError(
            results,
            f"{len(missing)} runs are not done, {missing[0].run_id} for one",
            "Run `make reproduce` to the end first.",
        )
    serves = read_serve_records(results / "serve")
    sweeps = read_sweeps(results / "tune")
    kinds: list[list[Made]] = [
        [(r.run_id, r.environment, r.fingerprint) for r in records],
        [(s.serve_id, s.environment, s.fingerprint) for s in serves],
        [(s.sweep_id, s.environment, {}) for s in sweeps],
    ]
    for made in kinds:
        check_committed(made)
        if not on_card:
            check_one_code(made)
    target = reference / results.name
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    try:
        copy_results(records, results, fresh)
        copy_serves(serves, results / "serve", fresh / "serve")
        if on_card:
            keep_earlier(target, fresh)
            copy_beside(results, fresh)
        refresh_forecasts(fresh, read_records(fresh / "runs"))
        copy_sweeps(target / "tune", fresh / "tune")  # shipped ones, where there is no newer one
        copy_sweeps(results / "tune", fresh / "tune")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.replace(old)
        fresh.replace(target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise explain_write_error(target, error) from error
    shutil.rmtree(old, ignore_errors=True)
    return target


Made = tuple[str, Environment, Mapping[str, Scalar]]  # id, where it was made, fingerprint


def check_committed(made: Sequence[Made]) -> None:
    """A reference is made by a state of the code that is a commit."""
    for name, environment, _ in made:
        if environment.git_dirty is not False:
            raise StudyError(
                name,
                "it was made by code that differs from its commit",
                "Commit, move the results away, run again: a reference must be traceable.",
            )


def check_one_code(made: Sequence[Made]) -> None:
    """All of a reference are made by the same code, whatever was committed in between."""
    for name, _, marks in made[1:]:
        if marks.get("code.sha256") != made[0][2].get("code.sha256"):
            raise StudyError(
                name,
                f"it was made by other code than {made[0][0]}",
                "Move the results away and run them again, all with the same code.",
            )


def is_card_study(results: Path) -> bool:
    """Whether results are of a card under a clock, and not of its rehearsal."""
    return (results / CARD_STUDY).is_file() and not read_card_study(results).rehearsal


def is_of_cards(results: Path, records: Sequence[Record]) -> bool:
    """Whether there are runs, a CUDA card made all of them, and this is no rehearsal of one."""
    rehearsed = (results / CARD_STUDY).is_file()
    return bool(records) and not rehearsed and all(r.environment.devices for r in records)


def keep_earlier(target: Path, fresh: Path) -> None:
    """Records of an earlier time on the card that were not made again."""
    for kind in ("runs", "serve"):
        for old in sorted((target / kind).glob("*")):
            if not (fresh / kind / old.name).exists():
                shutil.copytree(old, fresh / kind / old.name)


def copy_beside(results: Path, fresh: Path) -> None:
    """What a card's study leaves beside its records: its steps, other libraries, its self-check."""
    for pattern in CARD_FILES:
        for path in sorted(results.glob(pattern)):
            goal = fresh / path.relative_to(results)
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, goal)


def copy_results(records: list[Record], results: Path, fresh: Path) -> None:
    """Each run's record, the tables that it names and its notebook; no logs, no working files."""
    shutil.rmtree(fresh, ignore_errors=True)
    for record in records:
        source, goal = results / "runs" / record.run_id, fresh / "runs" / record.run_id
        goal.mkdir(parents=True)
        for name in (RECORD, *record.files):
            shutil.copyfile(source / name, goal / name)
        copy_notebook(source, goal)
    shutil.copyfile(results / "profile.yaml", fresh / "profile.yaml")
    if (results / RUN_FORECASTS).is_file():
        shutil.copyfile(results / RUN_FORECASTS, fresh / RUN_FORECASTS)


def copy_serves(records: list[ServeRecord], source: Path, goal: Path) -> None:
    """Each serving run's record with its notebook and memory samples."""
    for record in records:
        folder = goal / record.serve_id
        folder.mkdir(parents=True)
        copy_notebook(source / record.serve_id, folder)
        for name in (SERVE_RECORD, "trace.parquet", TIMINGS):
            if (source / record.serve_id / name).is_file():
                shutil.copyfile(source / record.serve_id / name, folder / name)


def copy_notebook(source: Path, goal: Path) -> None:
    """The executed notebook, if there is one. A library's warning names its file by the place that
    it has on the machine; what is published names it from the library on."""
    if (source / NOTEBOOK).is_file():
        text = (source / NOTEBOOK).read_text(encoding="utf-8")
        (goal / NOTEBOOK).write_text(LIBRARY.sub("", text), encoding="utf-8")


def copy_sweeps(source: Path, goal: Path) -> None:
    """The searches for learning rates, from which the runs' rates come."""
    for path in sorted(source.glob("*.json")):
        goal.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, goal / path.name)
