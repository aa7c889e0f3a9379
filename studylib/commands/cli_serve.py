"""The command `study serve`: the serving runs of a profile, one notebook process each.

Not covered: what happens inside a serving run (studylib.serving.serve_run).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from studylib.commands.cli_options import (
    DEFAULT_RESULTS,
    ProfileOption,
    ResultsOption,
    default_profile,
)


def serve(
    serve_id: Annotated[
        str | None, typer.Argument(help="One serving run, for example ladder-0.4m--METHOD-r16.")
    ] = None,
    profile: ProfileOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    jobs: Annotated[int, typer.Option(help="Runs that share the machine; goes on record.")] = 1,
) -> None:
    """Measure what each model and method costs to serve. What is finished is kept."""
    from studylib.running.runner import RunFailed, follow_parent
    from studylib.schema.profile import read_profile
    from studylib.schema.serving import find_spec, serve_specs
    from studylib.serving.engines import missing_reason

    follow_parent()
    if missing := missing_reason(engine):
        print(f"skipped: {missing}")
        return
    name = profile or default_profile()
    chosen = read_profile(name)
    specs = (
        [find_spec(chosen, serve_id)] if serve_id else serve_specs(chosen, engine)  # type: ignore
    )
    failed = False
    for spec in specs:
        try:
            print(serve_one(spec.serve_id, spec.profile, name, results, jobs))
        except RunFailed as failure:
            failed = True
            print(f"study: {spec.serve_id} failed: {failure}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def serve_one(
    serve_id: str, profile_name: str, profile: str, results: Path, concurrent_runs: int = 1
) -> Path:
    """Execute one serving run's notebook and return its record's path; a finished one is kept."""
    from studylib.running.runner import make_record
    from studylib.schema.serve_records import SERVE_RECORD

    record = results / profile_name / "serve" / serve_id / SERVE_RECORD
    if record.is_file():
        return record
    return make_record("20_serve.ipynb", record, profile, results, concurrent_runs)
