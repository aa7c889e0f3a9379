"""`study report`: write REPORT.md and report.html.

One way for every report: the reader's own, the repository's and the end of `study reproduce`. A
report whose records, code and files are unchanged is left as it is.

Not covered: what a report says (studylib.reporting.report, compose).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from studylib.commands.cli_options import (
    DEFAULT_RESULTS,
    ProfileOption,
    ResultsOption,
    results_name,
)
from studylib.commands.forecast_only import quick
from studylib.core.errors import StudyError


def report(
    profile: ProfileOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    reference: Annotated[
        bool, typer.Option("--reference", help="Make REPORT.md from the shipped records.")
    ] = False,
) -> None:
    """Write REPORT.md and report.html from records alone."""
    from studylib.core.places import REFERENCE

    if reference:
        print(make_report(REFERENCE))
        return
    name = results_name(profile, results)
    folder = results / name
    if not (folder / "runs").is_dir():
        from studylib.schema.find_record import suggest_study

        raise StudyError(folder, "there are no results", suggest_study(results, name))
    path = make_report(folder)
    print(path)
    for line in verdict_of(path):
        print(line)


def verdict_of(path: Path) -> list[str]:
    """The line with which the report on a reader's own study opens; other reports have none."""
    from studylib.reporting.report import opening_of

    return list(filter(None, [opening_of(path)]))


def make_report(
    results: Path, failed: Mapping[str, str] | None = None, reference: Path | None = None
) -> Path:
    """Make a report with its page where it is not fresh; returns the path of REPORT.md.

    results: results/PROFILE, or the reference itself. failed: run id -> what is known of a failure.
    StudyError: no records, an untrusted record, a folder that cannot be written.
    """
    from studylib.core.places import REFERENCE
    from studylib.forecasting.run_forecasts import refresh_forecasts
    from studylib.reporting.made_from import REPORT, is_fresh
    from studylib.reporting.report import compose_report, find_sources, write_report
    from studylib.schema.records import read_records

    reference = reference or REFERENCE
    sources = find_sources(results, reference, failed)
    if sources.instead_of is not None:
        raise StudyError(results, "no record lies below its runs folder",
                         "Run the study first: make reproduce.")  # fmt: skip
    if not is_fresh(sources.out, sources.inputs):
        with quick():
            if not sources.shipped:
                refresh_forecasts(results, read_records(results / "runs"))
            write_report(sources, compose_report(sources))
    return sources.out / REPORT
