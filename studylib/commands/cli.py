"""The command line `study`: plan, run, reproduce, report, publish, doctor.

Exit codes: 0 done; 1 a run failed or something is a bug; 2 bad input, in one message.

Not covered: the work itself. Every command calls one function that a notebook can call too.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from studylib.commands.cli_advise import advise, diff
from studylib.commands.cli_card import TERMINATED, card, end
from studylib.commands.cli_check_model import check_model, gpu_check
from studylib.commands.cli_evaluate import evaluate
from studylib.commands.cli_forecast import forecast, forecasts, prices
from studylib.commands.cli_options import (
    DEFAULT_BUDGET_USD,
    DEFAULT_RESULTS,
    BudgetOption,
    JsonOption,
    ProfileOption,
    ResultsOption,
    YesOption,
    default_profile,
    resolve_profile,
    results_name,
)
from studylib.commands.cli_plan import (
    agree_to_spend,
    plan,
)
from studylib.commands.cli_rent import rent
from studylib.commands.cli_report import make_report, report, verdict_of
from studylib.commands.cli_serve import serve
from studylib.commands.cli_try import merge, try_run
from studylib.commands.cli_tune import say_failures, say_untuned, tune, tune_first
from studylib.commands.study_options import StudyOptions, takes_study
from studylib.core.errors import StudyError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="PEFT or full fine-tuning? Plan, run and report a study that measures it.",
)

INTERRUPTED = 130  # the exit code after Ctrl-C


@app.command()
def run(
    run_id: Annotated[str, typer.Argument(help="A run of the profile; `study plan` lists them.")],
    profile: ProfileOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    jobs: Annotated[int, typer.Option(help="Runs that share the machine; goes on record.")] = 1,
) -> None:
    """Execute one run's notebook, from its checkpoint if it was interrupted."""
    from studylib.running.runner import RunFailed, follow_parent, run_one

    follow_parent()
    name = profile or default_profile()
    spec = resolve_profile(name, results).run(run_id)
    try:
        print(run_one(spec, name, results, concurrent_runs=jobs))
    except RunFailed as failure:
        print(failure, file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
@takes_study
def reproduce(
    study: StudyOptions,
    force: Annotated[
        bool, typer.Option("--force", help="Start runs that do not fit by forecast, too.")
    ] = False,
    budget: BudgetOption = DEFAULT_BUDGET_USD,
    yes: YesOption = False,
    executor: Annotated[
        str, typer.Option(help="local: this machine; ray: a Ray cluster's machines.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="auto or HOST:PORT; else Ray's own, or one for this study.")
    ] = None,
) -> None:
    """Run all that is not done yet, then write the report. What is finished is kept."""
    from studylib.commands.said_before import keep_said, say_again

    if (known := say_again()) is not None:
        print("\n".join(known))
        return
    from studylib.commands.check_all import source_places
    from studylib.planning.plan import check_room, tell_unkept
    from studylib.running.progress import Progress
    from studylib.running.runner import check_executor, open_executor, write_profile
    from studylib.running.runner import reproduce as run_study
    from studylib.schema.profile import is_file_name

    check_executor(executor)
    signal.signal(signal.SIGTERM, end)  # the runs are ended in order, as at Ctrl-C
    name, why = study.name()
    chosen = study.open()
    folder = study.folder(chosen)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        print(line)

    if why:
        say(f"profile {name}: {why}")
    agree_to_spend(chosen, folder, budget, yes, force, elsewhere=executor != "local")
    if executor != "local":
        say_untuned(chosen, folder)
    elif tune_first(chosen, folder, force):
        chosen = study.open()  # with the rates that were found
    with open_executor(executor, ray_address) as execute:
        outcome = run_study(chosen, folder, Progress(), force, execute)
    idle = bool(outcome.done_before) and not outcome.finished and not outcome.failed
    if idle:
        say(f"{chosen.name}: all {len(outcome.done_before)} runs are done, nothing to run")
    if outcome.done_before and (unkept := tell_unkept(chosen, folder)):
        say(unkept)
    failed = {run_id: f.message or str(f.log) for run_id, f in outcome.failed.items()}
    say_failures(outcome)
    if outcome.done_before or outcome.finished:
        write_profile(chosen, folder)  # what only the report reads may have changed
        path = make_report(folder, failed)
        for line in (f"report: {path}", *verdict_of(path)):
            say(line)
        # Not where runs were found not to fit just now: the next command counts them as done.
        settled = idle and len(outcome.done_before) == len(chosen.runs()) and executor == "local"
        places = source_places(chosen) if settled else None
        if places is not None:
            own = [Path(name).expanduser()] if is_file_name(name) else []
            keep_said(said, [folder, *own, *places])
    if outcome.failed:
        check_room(folder)  # a full disk also leaves logs empty
    raise typer.Exit(outcome.exit_code)


@app.command()
def publish(profile: ProfileOption = None, results: ResultsOption = DEFAULT_RESULTS) -> None:
    """Make a profile's finished results the reference that ships with the study."""
    from studylib.core.places import REFERENCE
    from studylib.running.publish import publish_results

    print(publish_results(results / results_name(profile, results), REFERENCE))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say in one screen what this machine has, and which profile fits it."""
    from studylib.running.doctor import examine_machine, format_findings

    findings = examine_machine()
    print(json.dumps(findings, indent=1) if as_json else format_findings(findings))


@app.command()
def data(
    profile: ProfileOption = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A folder that has them, or what they are made of."),
    ] = None,
) -> None:
    """Make the files that a profile reads, of public files or a folder's, by their hashes."""
    from studylib.inputs.origins import bring_data
    from studylib.schema.profile import read_profile

    if not profile:
        raise StudyError("data", "it needs a profile", "Write make data PROFILE=real.")
    bring_data(read_profile(profile), source and source.expanduser(), print)


for command in (
    advise,
    card,
    check_model,
    diff,
    evaluate,
    forecast,
    forecasts,
    gpu_check,
    merge,
    plan,
    prices,
    rent,
    report,
    serve,
    tune,
):
    app.command()(command)
app.command("try")(try_run)


def main() -> None:
    """Run a command; bad input is one message on stderr and exit code 2."""
    from studylib.core.files import disk_full, is_full

    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers 5 warns of names that it will change in 6; the ranges of this study end before.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
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
        if end.code in (INTERRUPTED, TERMINATED):
            print("study: stopped; what is finished is kept, the rest goes on next time.",
                  file=sys.stderr)  # fmt: skip
        raise
