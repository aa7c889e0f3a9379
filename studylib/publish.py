"""Make finished results the reference that ships with the study.

Not covered: the report that is made from it (studylib.report).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from studylib.errors import StudyError
from studylib.profile import read_profile
from studylib.records import read_records

KEPT = ("record.json", "items.parquet", "trace.parquet", "steps.parquet", "executed.ipynb")


def publish_results(results: Path, reference: Path) -> Path:
    """Copy the records of results/PROFILE to reference/PROFILE, whole or not at all.

    Raises StudyError where a run of the profile is missing, where code differs from its commit,
    or where runs were made by different code.
    """
    file = results / "profile.yaml"
    if not file.is_file():
        raise StudyError(results, "there are no results", "Run `make reproduce` first.")
    records = {record.run_id: record for record in read_records(results / "runs")}
    missing = [s.run_id for s in read_profile(str(file)).runs() if s.run_id not in records]
    if missing:
        raise StudyError(
            results,
            f"{len(missing)} runs are not done, {missing[0]} for one",
            "Run `make reproduce` to the end first.",
        )
    dirty = [r.run_id for r in records.values() if r.environment.git_dirty is not False]
    if dirty:
        raise StudyError(
            dirty[0],
            "it was made by code that differs from its commit",
            "Commit, move the results away, run again: a reference must be traceable.",
        )
    target = reference / results.name
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    for run_id in records:
        (fresh / "runs" / run_id).mkdir(parents=True)
        for name in KEPT:
            source = results / "runs" / run_id / name
            if source.is_file():
                shutil.copy2(source, fresh / "runs" / run_id / name)
    shutil.copy2(file, fresh / "profile.yaml")
    if target.exists():
        target.replace(old)
    fresh.replace(target)
    shutil.rmtree(old, ignore_errors=True)
    return target
