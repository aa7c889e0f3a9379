"""Make finished results the reference that ships with the study.

Not covered: the report that is made from it (studylib.report).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from studylib.errors import StudyError
from studylib.files import explain_write_error
from studylib.plan import plan_study
from studylib.profile import read_profile
from studylib.records import RECORD, Record, read_records

NOTEBOOK = "executed.ipynb"


def publish_results(results: Path, reference: Path) -> Path:
    """Copy the records of results/PROFILE to reference/PROFILE, whole or not at all.

    Raises StudyError where a run of the profile is missing or was made with other settings, where
    code differs from its commit, or where runs were made by different code.
    """
    file = results / "profile.yaml"
    if not file.is_file():
        raise StudyError(results, "there are no results", "Run `make reproduce` first.")
    profile = read_profile(str(file))
    missing = plan_study(profile, results).left
    if missing:
        raise StudyError(
            results,
            f"{len(missing)} runs are not done, {missing[0].run_id} for one",
            "Run `make reproduce` to the end first.",
        )
    planned = {spec.run_id for spec in profile.runs()}
    records = [r for r in read_records(results / "runs") if r.run_id in planned]
    check_traceable(records)
    target = reference / results.name
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    try:
        copy_results(records, results, fresh)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.replace(old)
        fresh.replace(target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise explain_write_error(target, error) from error
    shutil.rmtree(old, ignore_errors=True)
    return target


def check_traceable(records: list[Record]) -> None:
    """A reference is made by one state of the code, and that state is a commit."""
    dirty = [r.run_id for r in records if r.environment.git_dirty is not False]
    if dirty:
        raise StudyError(
            dirty[0],
            "it was made by code that differs from its commit",
            "Commit, move the results away, run again: a reference must be traceable.",
        )
    first = records[0]
    for record in records[1:]:
        if record.fingerprint.get("code.sha256") != first.fingerprint.get("code.sha256"):
            raise StudyError(
                record.run_id,
                f"it was made by other code than {first.run_id}",
                "Move the results away and run them again, all with the same code.",
            )


def copy_results(records: list[Record], results: Path, fresh: Path) -> None:
    """Each run's record, the tables that it names and its notebook; no logs, no working files."""
    shutil.rmtree(fresh, ignore_errors=True)
    for record in records:
        source, goal = results / "runs" / record.run_id, fresh / "runs" / record.run_id
        goal.mkdir(parents=True)
        for name in (RECORD, *record.files):
            shutil.copyfile(source / name, goal / name)
        if (source / NOTEBOOK).is_file():
            shutil.copyfile(source / NOTEBOOK, goal / NOTEBOOK)
    shutil.copyfile(results / "profile.yaml", fresh / "profile.yaml")
