"""The command line `study`: plan, run, reproduce, report, publish, doctor.

Exit codes: 0 done; 1 a run failed or something is a bug; 2 bad input, in one message.

Not covered: the work itself. Every command calls one function that a notebook can call too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from studylib.errors import StudyError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="PEFT or full fine-tuning? Plan, run and report a study that measures it.",
)

ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="A shipped profile's name or a YAML file.")
]
ResultsOption = Annotated[
    Path, typer.Option("--results", help="The folder that holds a folder for each profile.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="hub:ID, path:FOLDER, shape:NAME or ladder:NAME; several with commas."
    ),
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Alpaca-format json or jsonl file, or hub:ID.")
]
MmluOption = Annotated[
    str | None, typer.Option("--mmlu", help="hub, or a folder with test.jsonl and dev.jsonl.")
]
MethodsOption = Annotated[
    str | None, typer.Option("--methods", help="For example full,lora,qlora-r64.")
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="For example 0,1,2.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Updates of a training.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Questions a subject.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any key of the profile: train.seq_len=1024 (may be repeated)."),
]
DEFAULT_RESULTS = Path("results")
INTERRUPTED = 130  # the exit code after Ctrl-C


def default_profile() -> str:
    """`cpu`: the default where there is no GPU (profiles for GPUs are chosen by name)."""
    return "cpu"


def resolve_profile(
    profile: str | None,
    model: str | None = None,
    data: str | None = None,
    mmlu: str | None = None,
    methods: str | None = None,
    seeds: str | None = None,
    steps: int | None = None,
    limit: int | None = None,
    changes: list[str] | None = None,
) -> Any:
    """The profile that the options name, each option laid over it."""
    from studylib.profile import merge, read_profile

    over: dict[str, Any] = {}
    for key, value in (
        ("models", split(model)),
        ("data.source", data),
        ("evaluate.questions", mmlu),
        ("methods", split(methods)),
        ("seeds", split_numbers(seeds)),
        ("train.steps", steps),
        ("evaluate.limit", limit),
    ):
        if value is not None:
            over = merge(over, nest(key, value))
    for change in changes or []:
        key, equals, text = change.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise StudyError(change, "--set takes KEY=VALUE", "Write --set train.seq_len=1024.")
        over = merge(over, nest(key.strip(), parse_value(text, change)))
    name = profile or default_profile()
    if name == "custom":
        missing = [
            option
            for option, value in (("MODEL", model), ("DATA", data), ("MMLU", mmlu))
            if not value
        ]
        if missing:
            raise StudyError(
                "PROFILE=custom",
                f"it needs {', '.join(missing)}",
                "make reproduce PROFILE=custom MODEL=path:FOLDER DATA=FILE MMLU=hub|FOLDER",
            )
    return read_profile(name, over)


def results_name(profile: str | None) -> str:
    """The name of a profile's folder of results; a YAML file's profile knows its own."""
    from studylib.profile import is_file_name, read_profile

    name = profile or default_profile()
    return read_profile(name).name if is_file_name(name) else name


def split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def split_numbers(text: str | None) -> list[int] | None:
    if not text:
        return None
    try:
        return [int(part) for part in split(text) or []]
    except ValueError:
        raise StudyError(text, "seeds are whole numbers", "Write SEEDS=0,1,2.") from None


def nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def parse_value(text: str, change: str) -> Any:
    """A value as YAML reads it, numbers such as 1e-4 included."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise StudyError(change, f"the value is not YAML ({problem})", "Correct it.") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


@app.command()
def plan(
    profile: ProfileOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    model: ModelOption = None,
    data: DataOption = None,
    mmlu: MmluOption = None,
    methods: MethodsOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    limit: LimitOption = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would run, how long it would take and what it would cost. Starts nothing."""
    from studylib.plan import check_inputs, plan_study
    from studylib.runner import reference_records

    chosen = resolve_profile(profile, model, data, mmlu, methods, seeds, steps, limit, changes)
    check_inputs(chosen, fetch=False)
    made = plan_study(chosen, results / chosen.name, reference_records(chosen.name))
    if as_json:
        print(made.model_dump_json(indent=1))
        return
    show_plan(made)


def show_plan(made: Any) -> None:
    from studylib.progress import spell_seconds

    width = max(len(run.run_id) for run in made.runs)
    for run in made.runs:
        usd = "" if run.usd is None else f"  ${run.usd:.4f}"
        print(f"{run.run_id:{width}}  {run.state:9}  {spell_seconds(run.seconds):>15}{usd}")
    usd = "cost unknown" if made.left_usd is None else f"${made.left_usd:.2f}"
    print(
        f"{len(made.left)} of {len(made.runs)} runs left, {made.jobs} at a time: "
        f"about {spell_seconds(made.left_seconds)}, {usd}. Results: {made.results}"
    )


@app.command()
def run(
    run_id: Annotated[str, typer.Argument(help="A run of the profile; `study plan` lists them.")],
    profile: ProfileOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    jobs: Annotated[int, typer.Option(help="Runs that share the machine; goes on record.")] = 1,
) -> None:
    """Execute one run's notebook, from its checkpoint if it was interrupted."""
    from studylib.profile import read_profile
    from studylib.runner import RunFailed, run_one

    follow_parent()
    name = profile or default_profile()
    spec = read_profile(name).run(run_id)
    try:
        print(run_one(spec, name, results, concurrent_runs=jobs))
    except RunFailed as failure:
        print(failure, file=sys.stderr)
        raise typer.Exit(1) from None


def follow_parent() -> None:
    """End when the study that started this run has died, so that no run goes on unwatched."""
    parent = os.environ.get("STUDY_PARENT_PID")
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@app.command()
def reproduce(
    profile: ProfileOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    model: ModelOption = None,
    data: DataOption = None,
    mmlu: MmluOption = None,
    methods: MethodsOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    limit: LimitOption = None,
    changes: SetOption = None,
) -> None:
    """Run all that is not done yet, then write the report. What is finished is kept."""
    from studylib.plan import check_room
    from studylib.progress import Progress
    from studylib.report import build_report
    from studylib.runner import REFERENCE
    from studylib.runner import reproduce as run_study

    chosen = resolve_profile(profile, model, data, mmlu, methods, seeds, steps, limit, changes)
    folder = results / chosen.name
    outcome = run_study(chosen, folder, Progress())
    if outcome.done_before and not outcome.finished and not outcome.failed:
        print(f"{chosen.name}: all {len(outcome.done_before)} runs are done, nothing to run")
    if outcome.done_before or outcome.finished:
        failed = {run_id: f.message or str(f.log) for run_id, f in outcome.failed.items()}
        made = build_report(
            folder, REFERENCE / chosen.name, planned=chosen.runs(), failed=failed or None
        )
        print(f"report: {made}")
    for run_id, failure in outcome.failed.items():
        why = failure.message or f"read {failure.log}"
        print(f"study: {run_id} failed: {why}", file=sys.stderr)
    if outcome.failed:
        check_room(folder)  # a full disk also leaves logs empty
    raise typer.Exit(outcome.exit_code)


@app.command()
def report(
    profile: ProfileOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    reference: Annotated[
        bool, typer.Option("--reference", help="Make REPORT.md from the shipped records.")
    ] = False,
) -> None:
    """Write REPORT.md from records alone."""
    from studylib.report import build_reference_report, build_report
    from studylib.runner import REFERENCE, ROOT

    if reference:
        print(build_reference_report(ROOT))
        return
    name = results_name(profile)
    folder = results / name
    if not (folder / "runs").is_dir():
        raise StudyError(folder, "there are no results", f"Run `make reproduce PROFILE={name}`.")
    print(build_report(folder, REFERENCE / name))


@app.command()
def publish(profile: ProfileOption = None, results: ResultsOption = DEFAULT_RESULTS) -> None:
    """Make a profile's finished results the reference that ships with the study."""
    from studylib.publish import publish_results
    from studylib.runner import REFERENCE

    print(publish_results(results / results_name(profile), REFERENCE))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say in one screen what this machine has, and which profile fits it."""
    from studylib.doctor import examine_machine, format_findings

    findings = examine_machine()
    print(json.dumps(findings, indent=1) if as_json else format_findings(findings))


def main() -> None:
    """Run a command; bad input is one message on stderr and exit code 2."""
    from studylib.files import disk_full, is_full

    try:
        app()
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if not is_full(error):
            raise
        print(f"study: {disk_full(Path(error.filename or DEFAULT_RESULTS))}", file=sys.stderr)
        sys.exit(StudyError.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("study: stopped; what is finished is kept, the rest goes on next time.",
                  file=sys.stderr)  # fmt: skip
        raise
