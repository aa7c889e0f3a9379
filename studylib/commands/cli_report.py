"""`study report`: execute the report notebook, which writes REPORT.md, and make report.html of it.

One way for every report: the reader's own, the repository's and the end of `study reproduce`. A
report whose records, code and files are unchanged is left as it is.

Not covered: what a report says (studylib.reporting.report, compose), the page
(studylib.reporting.page).
"""

from __future__ import annotations

import sys
import tempfile
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
    show_verdict(path)


def show_verdict(path: Path) -> None:
    """Print the verdict with which the report on a reader's own study opens; other reports have
    none."""
    from studylib.reporting.report import opening_of

    if verdict := opening_of(path):
        print(verdict)


def make_report(
    results: Path, failed: Mapping[str, str] | None = None, reference: Path | None = None
) -> Path:
    """Make a report with its page where it is not fresh; returns the path of REPORT.md.

    results: results/PROFILE, or the reference itself. failed: run id -> what is known of a failure.
    StudyError: no records, an untrusted record, a folder that cannot be written.
    """
    from studylib.core.places import REFERENCE
    from studylib.forecasting.run_forecasts import refresh_forecasts
    from studylib.reporting.made_from import REPORT, is_fresh, remember_page
    from studylib.reporting.report import find_sources
    from studylib.schema.records import read_records

    reference = reference or REFERENCE
    sources = find_sources(results, reference, failed)
    if sources.instead_of is not None:
        raise StudyError(results, "no record lies below its runs folder",
                         "Run the study first: make reproduce.")  # fmt: skip
    if not is_fresh(sources.out, sources.inputs):
        if not sources.shipped:
            refresh_forecasts(results, read_records(results / "runs"))
        parameters: dict[str, object] = {
            "RESULTS": str(results), "REFERENCE": str(reference), "FAILED": dict(failed or {}),
        }  # fmt: skip
        page = make_page(parameters, sources.out)
        if not sources.shipped:  # the repository's own is made whenever it is asked for
            remember_page(sources.out, page)
    return sources.out / REPORT


def make_page(parameters: dict[str, object], out: Path) -> bytes:
    """Execute the notebook, which writes the report's other files, then write the page."""
    from studylib.core.files import write_atomically
    from studylib.reporting.made_from import PAGE, REPORT_NOTEBOOK
    from studylib.reporting.page import export_page
    from studylib.running.runner import RunFailed, run_notebook

    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / REPORT_NOTEBOOK
        try:
            run_notebook(REPORT_NOTEBOOK, executed, parameters)
        except RunFailed as failure:
            print(failure, file=sys.stderr)
            raise typer.Exit(1) from None
        page = export_page(executed)
    write_atomically(out / PAGE, page)
    return page
