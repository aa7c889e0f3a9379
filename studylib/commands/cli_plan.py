"""The command `study plan`, and the question that `study reproduce` asks before it spends money.

On cards every run that was never measured there is estimated; on a machine without any, a time
comes from records or is unknown.

Not covered: the estimates themselves (studylib.forecasting.prospects, studylib.planning.estimate).
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from studylib.commands.cli_options import JsonOption
from studylib.commands.forecast_only import forecast_only
from studylib.commands.study_options import StudyOptions, takes_study
from studylib.core.errors import StudyError


@takes_study
@forecast_only
def plan(
    study: StudyOptions,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="As on this card, here or not: H100:1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would run, how long it would take and what it would cost. Starts nothing."""
    from studylib.commands.check_all import check_all
    from studylib.forecasting.disk import foresee_disk, tell_disk
    from studylib.forecasting.extent import tell_extents
    from studylib.forecasting.prospects import foresee_runs
    from studylib.planning.plan import specs_left, tell_unkept
    from studylib.planning.sweeps import sweeps_first

    machine = named_machine(gpu)
    name, why = study.name()
    chosen = study.open(find_machine=None if machine is None else lambda: machine)
    folder = study.folder(chosen)
    told = check_all(chosen)
    made, estimate = look_ahead(chosen, folder, machine=machine)
    left = specs_left(chosen, made)
    prospects, extents = foresee_runs(left, machine), tell_extents(left)
    on_cpu = None if machine else expect_cpu_time(chosen, made, estimate)
    sweeps = tell_sweeps(*sweeps_first(chosen, folder), made, on_cpu)
    if as_json:
        disk = foresee_disk(left)
        also: dict[str, Any] = {"data": told, "extents": extents, "sweeps": sweeps}
        also["disk"] = disk and disk.model_dump()
        print(json.dumps(to_json(made, estimate, prospects) | also, indent=1))
        return
    if why:
        print(f"profile {name}: {why}")
    print("\n".join(told), end="\n" if told else "")
    show_plan(made, estimate, prospects, on_cpu)
    lines = (
        *tell_cpu_time(made, on_cpu),
        *extents,
        tell_disk(left, study.results),
        tell_unkept(chosen, folder),
    )
    for line in sweeps:
        print(line)
    for line in filter(None, lines):
        print(f"{line}.")


def named_machine(gpu: str | None) -> Any:
    """The machine that --gpu names, as `study rent` takes it; None where it names none."""
    if gpu is None:
        return None
    from studylib.forecasting.job_forecast import rented_machine
    from studylib.running.rental import parse_gpus

    card, count = parse_gpus(gpu)
    return rented_machine(card.name, count)


def look_ahead(
    profile: Any, folder: Path, force: bool = False, machine: Any = None
) -> tuple[Any, Any]:
    """(plan, estimate of what is left; None without cards). force: misfits are started too.

    machine: in place of this one."""
    from studylib.planning.plan import plan_study, specs_left
    from studylib.planning.sweeps import sweeps_first
    from studylib.running.doctor import cards_here
    from studylib.running.runner import reference_records, serve_left
    from studylib.schema.serving import serve_specs

    reference = reference_records(profile.name)
    elsewhere = machine is not None
    if machine is None and profile.hardware.gpus and cards_here():
        from studylib.forecasting.prospects import this_machine

        machine = this_machine()
    if machine is None or not machine.cards:  # nothing here needs torch then
        return plan_study(profile, folder, reference), None
    from studylib.forecasting.prospects import estimate_on
    from studylib.metering.environment import device_name

    device = machine.gpu if elsewhere else device_name()  # no record is of a catalog's name
    made = plan_study(profile, folder, reference, device)
    waiting = set(serve_left(profile, folder))
    estimate = estimate_on(
        machine,
        specs_left(profile, made),
        [spec for spec in serve_specs(profile) if spec.serve_id in waiting],
        {run.run_id: run.seconds for run in made.left if run.seconds is not None},
        force,
        sweeps_first(profile, folder)[0],
    )
    return made, estimate


def to_json(made: Any, estimate: Any, prospects: dict[str, Any]) -> dict[str, Any]:
    content = made.model_dump(mode="json")
    for row in content["runs"]:
        found = prospects.get(row["run_id"])
        row["forecast"] = found and {
            **found.model_dump(mode="json"),
            "fits": found.may_run,
            "fit": found.fit.word,
        }
    content["estimate"] = estimate and {
        **estimate.model_dump(mode="json"),
        "run_hours": {name: run.total.model_dump() for name, run in estimate.runs.items()},
    }
    return content


def show_plan(made: Any, estimate: Any, prospects: dict[str, Any], on_cpu: Any) -> None:
    """A line a run and one of all. on_cpu: what the forecast for this processor says, or None."""
    from studylib.running.progress import spell_about, spell_seconds

    width = max(len(run.run_id) for run in made.runs)
    for run in made.runs:
        hours = estimate.runs.get(run.run_id) if estimate else None
        if hours is None:
            usd = "" if run.usd is None else f"  ${run.usd:.4f}"
            figures = f"{spell_seconds(run.seconds):>15}{usd}"
            if run.seconds is None and on_cpu and run.run_id in on_cpu.runs:
                figures = f"{spell_about(on_cpu.runs[run.run_id].mid):>15} (forecast)"
        else:
            figures = spell_run(hours, estimate.gpu)
        print(f"{run.run_id:{width}}  {run.state:9}  {figures}{spell_prospect(prospects, run)}")
    for name, hours in (estimate.runs if estimate else {}).items():
        if name.endswith(("(serving)", "(sweep)")):
            print(f"{name:{width}}  {'to do':9}  {spell_run(hours, estimate.gpu)}")
    left = f"{len(made.left)} of {len(made.runs)} runs left"
    if estimate:
        print(f"{left}, {spell_estimate(estimate)}. Results: {made.results}")
        print(f"How this is known: {estimate.assumptions}.")
        return
    usd = "cost unknown" if made.left_usd is None else f"${made.left_usd:.2f}"
    seconds = f"{spell_about(made.left_seconds)}, "
    if made.left_seconds is None and on_cpu:
        seconds = ""  # the forecast stands below
    print(f"{left}, {made.jobs} at a time: {seconds}{usd}. Results: {made.results}")


@dataclass(frozen=True)
class CpuTime:
    """Seconds on this processor by forecast: of runs that were never measured, and of sweeps.

    source: how the share of the processor's speed that trainings reach is known."""

    runs: dict[str, Any]
    trainings: int
    sweeps: Any
    source: str


def expect_cpu_time(profile: Any, made: Any, estimate: Any) -> CpuTime | None:
    """None where records tell all of it, or a card's estimate does."""
    unknown = {run.run_id for run in made.left if run.seconds is None}
    if estimate is not None or not unknown:
        return None
    from studylib.forecasting.cpu_hours import expect_runs, expect_sweeps, learned_speed
    from studylib.forecasting.prospects import size_models, this_machine
    from studylib.planning.plan import specs_left

    waiting = [spec for spec in specs_left(profile, made) if spec.run_id in unknown]
    params = size_models(waiting, {}, this_machine())
    known = sorted({learned_speed("train", size)[1] for size in params.values()})
    return CpuTime(expect_runs(waiting, params), *expect_sweeps(profile, params), "; ".join(known))


def tell_cpu_time(made: Any, on_cpu: CpuTime | None) -> list[str]:
    """The sum of it, with what records tell of the rest."""
    if on_cpu is None:
        return []
    from studylib.running.progress import spell_seconds
    from studylib.schema.ranges import NOTHING, exactly

    known = [exactly(run.seconds) for run in made.left if run.seconds is not None]
    total = sum([*known, *on_cpu.runs.values(), on_cpu.sweeps], NOTHING)
    spelled = " to ".join(spell_seconds(value) for value in (total.low, total.high))
    words = f"{len(on_cpu.runs)} runs that were never measured"
    if on_cpu.trainings:
        words += f" and {on_cpu.trainings} trainings of sweeps"
    return [f"By forecast on this processor: about {spell_seconds(total.mid)} ({spelled}) with "
            f"{words}, one after the other; share of its speed: {on_cpu.source}"]  # fmt: skip


def tell_sweeps(
    sweeps: Any, others: list[str], made: Any, on_cpu: CpuTime | None = None
) -> list[str]:
    """What is searched for before the runs, and how long that takes by what like runs took."""
    from studylib.running.progress import spell_about

    if not sweeps:
        return others
    seconds = {run.run_id.rpartition("--s")[0]: run.seconds for run in made.runs}
    trainings = [len(rates) for _, rates in sweeps]
    known = [one * len(rates) for spec, rates in sweeps
             if (one := seconds.get(spec.run_id.rpartition("--s")[0])) is not None]  # fmt: skip
    whole = sum(known) / made.jobs if len(known) == len(sweeps) else None
    time = spell_about(whole)
    if whole is None and on_cpu and on_cpu.trainings == sum(trainings):
        time = f"{spell_about(on_cpu.sweeps.mid)} (forecast)"
    words = f"before them {len(sweeps)} searches for a learning rate, {sum(trainings)} trainings "
    words += f"as long as a run: {time} (SWEEP=0 leaves them out)"
    return [words, *others]


def spell_run(run: Any, gpu: str | None) -> str:
    from studylib.planning.estimate import price

    usd = price(run.total, gpu, run.gpus)
    cost = "" if usd is None else f"  ${usd.mid:.2f}"
    how = "measured" if run.measured else f"({run.total.low:.2f} to {run.total.high:.2f})"
    return f"{run.total.mid:7.2f} h {how}{cost}"


def spell_prospect(prospects: dict[str, Any], run: Any) -> str:
    """A run's forecast peak on its line of the plan, and whether it fits."""
    found = prospects.get(run.run_id)
    if found is None:
        return ""
    each = " a card" if found.gpus > 1 else ""
    return f"  peak {found.peak_bytes / 1e9:.2f} GB{each} (forecast), {found.in_words}"


def spell_estimate(estimate: Any) -> str:
    """Hours and dollars of what is left, in words: expected, and from the best to the worst."""
    h, usd = estimate.hours, estimate.usd
    words = f"about {h.mid:.1f} hours ({h.low:.1f} to {h.high:.1f})"
    words += f" on {estimate.cards} × {estimate.gpu or 'a card that the catalog lacks'}"
    if usd is None:
        words += ", cost unknown"
    else:
        words += f", ${usd.mid:.2f} (${usd.low:.2f} at the cheapest offer, ${usd.high:.2f} at the "
        words += "dearest and slowest)"
    if estimate.misfits:
        words += f"; {len(estimate.misfits)} do not fit and are recorded so"
    if estimate.unknown:
        words += f"; {len(estimate.unknown)} could not be estimated"
    return words


def parse_budget(text: str) -> float:
    try:
        budget = float(text)
    except ValueError:
        budget = math.nan
    if not 0 <= budget < math.inf:
        raise StudyError(f"BUDGET={text}", "a budget is dollars, 0 or more", "Write BUDGET=25.")
    return budget


def agree_to_spend(
    profile: Any, folder: Path, budget: str, yes: bool, force: bool, elsewhere: bool = False
) -> None:
    """Show what is left in hours and dollars; go on if that is within the budget or agreed to.

    Without cards only a cost that is known and beyond the budget is asked about; elsewhere: the
    runs go to machines whose cards are not known here, and that is asked about too. StudyError
    where nobody can be asked or the answer is no; nothing is started then.
    """
    allowed = parse_budget(budget)
    made, estimate = look_ahead(profile, folder, force)
    if estimate is not None:
        if not estimate.runs and not estimate.unknown:
            return
        from studylib.commands.check_all import check_all

        for line in check_all(profile):  # nobody should agree to what cannot start
            print(line)
        cost = estimate.usd.high if estimate.known else None
        words = spell_estimate(estimate)
        print(f"{profile.name}: {words}")
    elif elsewhere and profile.hardware.gpus and made.left:
        cost, words = None, f"{len(made.left)} runs on the cards of other machines, cost unknown"
    else:
        cost, words = made.left_usd or 0.0, f"about ${made.left_usd or 0:.2f}"
    agree_to_cost(words, cost, allowed, yes)


def agree_to_sweep(sweeps: Any, budget: str, yes: bool) -> None:
    """The same before sweeps of learning rates: (spec, rates) each; on cards only."""
    from studylib.running.doctor import cards_here

    allowed = parse_budget(budget)
    if not any(spec.gpus for spec, _ in sweeps) or not cards_here():
        return
    from studylib.forecasting.prospects import estimate_on, this_machine

    machine = this_machine()
    if not machine.cards:
        return
    made = estimate_on(machine, [], sweeps=sweeps)
    words = spell_estimate(made)
    print(f"sweeps: {len(sweeps)}, trainings: {sum(len(rates) for _, rates in sweeps)}, {words}")
    agree_to_cost(words, made.usd.high if made.known and made.usd else None, allowed, yes)


def agree_to_cost(words: str, cost: float | None, allowed: float, yes: bool) -> None:
    """Go on if it costs no more than is allowed or if somebody agrees; else StudyError."""
    if yes or (cost is not None and cost <= allowed):
        return
    if sys.stdin.isatty() and input("Start it? [y/N] ").strip().lower() in ("y", "yes"):
        return
    rule = f"this may be more than the budget of ${allowed:g}"
    remedy = "Agree with YES=1 (--yes)"
    if cost is None:
        rule = f"so nobody knows whether it stays within the budget of ${allowed:g}"
    else:
        remedy += f", or allow as much: BUDGET={math.ceil(cost)} (--budget {math.ceil(cost)})"
    raise StudyError(words, rule, f"{remedy}. Nothing was started.")
