"""`study tune`: sweep learning rates on validation questions, one process for each sweep.

Not covered: the sweep (studylib.training.tune), its record (studylib.schema.tuning).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from studylib.commands.cli_options import (
    DEFAULT_BUDGET_USD,
    DEFAULT_RESULTS,
    BudgetOption,
    ProfileOption,
    ResultsOption,
    YesOption,
    resolve_profile,
)
from studylib.commands.cli_plan import agree_to_sweep
from studylib.core.errors import StudyError
from studylib.schema.settings import nearest


def tune(
    profile: ProfileOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    extend: Annotated[
        int, typer.Option(help="Where the best rate lies at an edge, try up to so many beyond it.")
    ] = 0,
    only: Annotated[str | None, typer.Option(help="One sweep, in this process.")] = None,
    jobs: Annotated[int, typer.Option(help="Sweeps that share the machine.")] = 1,
    budget: BudgetOption = DEFAULT_BUDGET_USD,
    yes: YesOption = False,
) -> None:
    """Choose each method's learning rate on questions that no result asks."""
    from studylib.inputs.origins import take_data
    from studylib.planning.plan import check_inputs, check_writable
    from studylib.running.runner import follow_parent

    chosen = resolve_profile(profile, results)
    sweeps = chosen.sweeps()
    if not sweeps:
        raise StudyError(
            f"profile {chosen.name}",
            "it has no sweep",
            "Give it tune: {learning_rates: {full: [...], lora: [...], qlora: [...]}}.",
        )
    folder = results / chosen.name / "tune"
    if only is not None:
        follow_parent()
        sweep_one(chosen, only, folder, extend, jobs)
        return
    for line in take_data(chosen):
        print(line)
    check_inputs(chosen)
    waiting = [(spec, rates) for spec, rates in sweeps if is_left(spec, rates, folder, extend)]
    agree_to_sweep(waiting, budget, yes)
    check_writable(folder)
    raise typer.Exit(sweep_all(chosen, profile or chosen.name, results, folder, extend, waiting))


def sweep_one(profile: Any, sweep_id: str, folder: Path, extend: int, jobs: int) -> None:
    from studylib.schema.tuning import read_sweep, sweep_name, write_sweep
    from studylib.training.tune import run_sweep

    known = {
        sweep_name(s.model_ref.slug, s.method.slug, s.track): (s, r) for s, r in profile.sweeps()
    }
    if sweep_id not in known:
        raise StudyError(
            sweep_id, f"profile {profile.name} has no such sweep", nearest(sweep_id, list(known))
        )
    spec, rates = known[sweep_id]
    limit = next(t.tune.limit for t in profile.tracks if t.name == spec.track)
    work = folder / "work" / sweep_id
    work.mkdir(parents=True, exist_ok=True)

    def say(rate: float) -> None:
        (work / "progress.json").write_text(json.dumps({"doing": f"rate {rate:g}"}))

    path = folder / f"{sweep_id}.json"
    earlier = read_sweep(path) if path.is_file() else begun(spec, limit, work, path)
    record = run_sweep(
        spec, rates, limit, extend, earlier, jobs, say, lambda so_far: write_sweep(work, so_far)
    )
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


def is_left(spec: Any, rates: Any, folder: Path, extend: int) -> bool:
    """Whether a sweep is missing, lacks a rate, or is to be extended beyond its edge."""
    from studylib.planning.stale import refuse_stale_sweep
    from studylib.schema.tuning import read_sweep, sweep_name

    path = folder / f"{sweep_name(spec.model_ref.slug, spec.method.slug, spec.track)}.json"
    if not path.is_file():
        return True
    record = read_sweep(path)
    refuse_stale_sweep(spec, record, path)
    tried = {point.learning_rate for point in record.points}
    return not set(rates) <= tried or bool(extend and record.at_edge)


def sweep_all(
    profile: Any, name: str, results: Path, folder: Path, extend: int, waiting: list[Any]
) -> int:
    """Sweep what is waiting; prints what was chosen."""
    import shutil

    from studylib.running.executor import Outcome, Task, run_batch
    from studylib.running.progress import Progress
    from studylib.running.warm import warm_starts
    from studylib.schema.tuning import sweep_name

    tasks = []
    cards = min(profile.hardware.gpus, 1)
    for spec, _ in waiting:
        sweep_id = sweep_name(spec.model_ref.slug, spec.method.slug, spec.track)
        path = folder / f"{sweep_id}.json"
        words = ("tune", "--only", sweep_id, "--extend", str(extend))
        tasks.append(Task(sweep_id, words, folder / "work" / sweep_id, path, name, results, cards))
    outcome, progress = Outcome(), Progress()
    progress.begin_tasks(f"{profile.name}, tuning", len(tasks), profile.hardware.jobs)
    with warm_starts(profile.hardware, progress.say) as start:
        run_batch(tasks, profile.hardware, progress, outcome, start)
    progress.end(outcome.finished, list(outcome.failed))
    show_choices(folder)
    for sweep_id, failure in outcome.failed.items():
        print(f"study: {sweep_id} failed: {failure.message or f'read {failure.log}'}")
    if not outcome.failed:
        shutil.rmtree(folder / "work", ignore_errors=True)
    return outcome.exit_code


def show_choices(folder: Path) -> None:
    from studylib.schema.tuning import read_sweeps

    for sweep in read_sweeps(folder):
        curve = "  ".join(f"{p.learning_rate:.2g}: {p.text()}" for p in sweep.points)
        edge = "  AT THE EDGE: --extend 2 tries beyond" if sweep.at_edge else ""
        print(f"{sweep.sweep_id}: {sweep.best.learning_rate:.2g}   [{curve}]{edge}")
