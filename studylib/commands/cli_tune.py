"""`study tune`: sweep learning rates on validation questions, one process for each sweep.

Not covered: the sweep (studylib.training.tune), its record (studylib.schema.tuning).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from studylib.commands.cli_options import (
    DEFAULT_BUDGET_USD,
    BudgetOption,
    YesOption,
)
from studylib.commands.cli_plan import agree_to_sweep
from studylib.commands.study_options import StudyOptions, takes_study
from studylib.core.errors import StudyError


@takes_study
def tune(
    study: StudyOptions,
    extend: Annotated[
        int | None,
        typer.Option(help="Where the best rate lies at an edge, try up to so many beyond it."),
    ] = None,
    only: Annotated[str | None, typer.Option(help="One sweep, in this process.")] = None,
    jobs: Annotated[int, typer.Option(help="Sweeps that share the machine.")] = 1,
    budget: BudgetOption = DEFAULT_BUDGET_USD,
    yes: YesOption = False,
) -> None:
    """Choose each method's learning rate on questions that no result asks."""
    from studylib.inputs.origins import take_data
    from studylib.planning.plan import check_inputs
    from studylib.planning.sweeps import sweeps_left
    from studylib.running.runner import follow_parent
    from studylib.schema.methods import ADAPTER, WHOLE

    name, why = study.name()
    chosen = study.open()
    if not chosen.sweeps():
        raise StudyError(
            f"profile {chosen.name}",
            "it has no sweep",
            f"Give it tune: {{learning_rates: {{{WHOLE}: [...], {ADAPTER}: [...]}}}}.",
        )
    folder = study.folder(chosen)
    if only is not None:
        follow_parent()
        sweep_one(chosen, only, folder / "tune", extend, jobs)
        return
    if why:
        print(f"profile {name}: {why}")
    for line in take_data(chosen):
        print(line)
    waiting = sweeps_left(chosen, folder, extend)
    check_inputs(chosen, fetch=False)  # nobody should agree to what cannot start
    agree_to_sweep(waiting, budget, yes)
    raise typer.Exit(sweep_all(chosen, folder, extend, waiting))


def tune_first(profile: Any, folder: Path, force: bool) -> bool:
    """Make the sweeps that a study's runs wait for; says which rates cannot be tuned, and why.

    A method that by forecast does not fit is left out, unless `force` is given. Returns whether
    there are new rates. typer.Exit: a sweep failed; no run is started then.
    """
    from studylib.forecasting.prospects import foresee_runs
    from studylib.planning.sweeps import sweeps_first

    waiting, lines = sweeps_first(profile, folder)
    for line in lines:
        print(line)
    prospects = foresee_runs([spec for spec, _ in waiting]) if waiting and not force else {}
    fitting = [(spec, rates) for spec, rates in waiting
               if (found := prospects.get(spec.run_id)) is None or found.may_run]  # fmt: skip
    if not fitting:
        return False
    if code := sweep_all(profile, folder, None, fitting):
        print("study: no run was started. SWEEP=0 runs with the methods' default rates.",
              file=sys.stderr)  # fmt: skip
        raise typer.Exit(code)
    return True


def say_untuned(profile: Any, folder: Path) -> None:
    """Say it where the runs go to other machines, which do not sweep."""
    from studylib.planning.sweeps import sweeps_first

    if sweeps_first(profile, folder)[0]:
        print("learning rates are not tuned: sweeps run on this machine alone (make tune)")


def sweep_one(profile: Any, sweep_id: str, folder: Path, extend: int | None, jobs: int) -> None:
    from studylib.planning.sweeps import rates_beyond, sweep_id_of, tune_of
    from studylib.schema.settings import nearest
    from studylib.schema.tuning import read_sweep, write_sweep
    from studylib.training.tune import run_sweep

    known = {sweep_id_of(spec): (spec, rates) for spec, rates in profile.sweeps()}
    if sweep_id not in known:
        raise StudyError(
            sweep_id, f"profile {profile.name} has no such sweep", nearest(sweep_id, list(known))
        )
    spec, rates = known[sweep_id]
    asked = tune_of(profile, spec)
    work = folder / "work" / sweep_id
    work.mkdir(parents=True, exist_ok=True)

    def say(rate: float) -> None:
        (work / "progress.json").write_text(json.dumps({"doing": f"rate {rate:g}"}))

    path = folder / f"{sweep_id}.json"
    earlier = read_sweep(path) if path.is_file() else begun(spec, asked.limit, work, path)
    beyond = rates_beyond(earlier, rates, extend, asked.extend)
    record = run_sweep(
        spec, rates, asked.limit, beyond, earlier, jobs, say,
        lambda so_far: write_sweep(work, so_far), asked.stop_early,
    )  # fmt: skip
    print(write_sweep(folder, record))


def begun(spec: Any, limit: int | None, work: Path, path: Path) -> Any:
    """What an earlier process left of the sweep `path` that it did not end, by the same code and
    recipe; None where there is no such thing, and the sweep begins anew.

    It lies with the sweep's work: a curve that is not whole chooses no rate.
    """
    from studylib.planning.stale import refuse_stale_sweep
    from studylib.schema.tuning import read_sweep
    from studylib.training.tune import name_recipe, name_validation

    try:
        record = read_sweep(work / path.name)
        refuse_stale_sweep(spec, record, path)
    except StudyError:
        return None
    asked = spec.evaluate.for_validation(limit)
    same = name_recipe(spec, asked).items() <= record.fingerprint.items()
    return record if same and record.validation == name_validation(spec, asked) else None


def sweep_all(profile: Any, home: Path, extend: int | None, waiting: list[Any]) -> int:
    """Check what the sweeps read, sweep what is waiting, print what was chosen; the exit code.

    home: results/PROFILE, where the profile is written for the sweeps' processes.
    """
    import shutil

    from studylib.core.files import lock_folder
    from studylib.planning.plan import brings_models, check_inputs, check_writable, pin_sources
    from studylib.planning.sweeps import sweep_id_of
    from studylib.running.executor import Outcome, Task, run_batch
    from studylib.running.progress import Progress
    from studylib.running.runner import write_profile
    from studylib.running.warm import warm_starts

    profile = pin_sources(profile)
    check_inputs(profile)
    if brings_models(profile):
        from studylib.modelling.preflight import check_models

        check_models(profile)
    folder, tasks = home / "tune", []
    check_writable(folder)
    outcome, progress = Outcome(), Progress()
    with lock_folder(home / ".study", "study"):
        file = str(write_profile(profile, home))
        for spec, _ in waiting:
            sweep_id = sweep_id_of(spec)
            words: tuple[str, ...] = ("tune", "--only", sweep_id)
            words += () if extend is None else ("--extend", str(extend))
            place = folder / "work" / sweep_id
            path = folder / f"{sweep_id}.json"
            cards = min(profile.hardware.gpus, 1)
            tasks.append(Task(sweep_id, words, place, path, file, home.parent, cards))
        progress.begin_tasks(f"{profile.name}, tuning", len(tasks), profile.hardware.jobs)
        with warm_starts(profile.hardware, progress.say) as start:
            run_batch(tasks, profile.hardware, progress, outcome, start)
    progress.end(outcome.finished, list(outcome.failed))
    say_failures(outcome)
    if not outcome.failed:
        shutil.rmtree(folder / "work", ignore_errors=True)
    show_choices(folder)
    return outcome.exit_code


def say_failures(outcome: Any) -> None:
    """A line on stderr for each run or sweep that failed: its message, or the log to read."""
    for name, failure in outcome.failed.items():
        why = failure.message or f"read {failure.log}"
        print(f"study: {name} failed: {why}", file=sys.stderr)


def show_choices(folder: Path) -> None:
    from studylib.schema.tuning import read_sweeps

    for sweep in read_sweeps(folder):
        curve = "  ".join(f"{p.learning_rate:.2g}: {p.text()}" for p in sweep.points)
        edge = "  AT THE EDGE: --extend 2 (EXTEND=2) tries beyond" if sweep.at_edge else ""
        print(f"{sweep.sweep_id}: {sweep.best.learning_rate:.2g}   [{curve}]{edge}")
