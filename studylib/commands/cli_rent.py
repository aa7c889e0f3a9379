"""The command `study rent`: show what a rented machine would do and cost, ask, and send it off.

Not covered: the machine, its task and its price (studylib.running.rental), its life
(studylib.planning.renting).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from studylib.commands.cli_options import (
    DEFAULT_BUDGET_USD,
    BudgetOption,
    PricesOption,
    YesOption,
)
from studylib.commands.cli_plan import parse_budget
from studylib.commands.forecast_only import forecast_only
from studylib.commands.study_options import StudyOptions, takes_study
from studylib.core.errors import StudyError

FOR_RENT = "gpu"  # the profile that is rented for, where none is named


@takes_study
@forecast_only
def rent(
    study: StudyOptions,
    gpus: Annotated[str, typer.Option("--gpu", help="Card and count: H100:1, A100-80GB:8.")] = "",
    spot: Annotated[
        bool, typer.Option("--spot", help="Cheaper; taken away at times, then replaced.")
    ] = False,
    cloud: Annotated[
        str | None, typer.Option("--cloud", help="lambda, runpod, aws/us-east-1, …")
    ] = None,
    budget: BudgetOption = DEFAULT_BUDGET_USD,
    usd_cap: Annotated[
        float | None, typer.Option("--max", help="Dollars an hour that the machine may cost.")
    ] = None,
    prices: PricesOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and the task; start nothing.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Run a study on a rented machine: results come home, the machine is taken down, always."""
    from studylib.core.places import ROOT
    from studylib.forecasting.job_forecast import rented_machine
    from studylib.planning.catalog import load_prices
    from studylib.running.rental import (
        build_task,
        check_travels,
        disk_gb,
        estimate,
        make_bill,
        make_rental,
        to_yaml,
    )

    allowed = parse_budget(budget)
    if not allowed:
        raise StudyError(f"BUDGET={budget}", "a rented machine costs money", "Write BUDGET=10.")
    rental, offers = make_rental(gpus, load_prices(prices), spot, cloud, usd_cap)
    profile, why = study.name(FOR_RENT)
    chosen = study.open(FOR_RENT, lambda: rented_machine(rental.gpu.name, rental.cards))
    options = make_variables(
        PROFILE=profile, MODEL=study.model, DATA=study.data, MMLU=study.mmlu,
        METHODS=study.methods, SEEDS=study.seeds, STEPS=study.steps, LIMIT=study.limit,
        COLUMNS=study.columns, KEEP=study.keep, SET=" ".join(study.changes or []),
        BUDGET=f"{allowed:g}", YES="1",
    )  # fmt: skip
    if why:
        print(f"profile {profile}: {why}")
    check_travels(options, ROOT)
    home = study.folder(chosen)
    made = estimate(chosen, home, rental.gpu, rental.cards)
    if not (made.runs or made.misfits or made.unknown):
        print(f"{chosen.name}: all runs are done, there is nothing to rent for")
        return
    bill = make_bill(made, rental, offers, allowed)
    token = bool(os.environ.get("HF_TOKEN"))
    task = build_task(rental, chosen, options, ROOT, home, disk_gb(chosen), token)
    print(describe_rental(chosen, rental, offers, made, bill, task, home, token))
    if dry_run:
        print(f"\n{to_yaml(task)}\nNothing was started (DRYRUN=1).")
        return
    check_tools()
    if not yes:
        agree_to_rent(bill, allowed)
    order = {
        "name": task["name"], "task": task, "folder": chosen.name, "home": str(home.resolve()),
        "most_hours": bill.most_hours, "spot": spot,
    }  # fmt: skip
    send_off(order, ROOT, cloud)


def make_variables(**values: Any) -> dict[str, str]:
    """What is asked for, as make takes it."""
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def describe_rental(
    profile: Any, rental: Any, offers: Any, made: Any, bill: Any, task: Any, home: Path, token: bool
) -> str:
    """The plan in a few lines: what is rented, for how long, at what price."""
    from studylib.running.rental import IDLE_MINUTES

    kind = "spot" if rental.spot else "on demand"
    where = rental.cloud or "the cheapest of your providers"
    odd = "".join(f"misfit    {run_id}: {reason}\n" for run_id, reason in made.misfits.items())
    if made.unknown:
        odd += f"unknown   no forecast for {', '.join(made.unknown)}\n"
    secret = "none (HF_TOKEN is not set): gated models will be refused"
    if token:
        secret = "HF_TOKEN goes along as a secret"
    return f"""\
study     {profile.name}, {len(profile.runs())} runs; results come home to {home}
machine   {rental.accelerators} ({rental.gpu.label}), {kind}, {where}, \
disk {task["resources"]["disk_size"]} GB
price     {describe_price(rental, offers)}
forecast  {describe_forecast(made, bill)}
known by  {made.assumptions}
{odd}at most   {bill.most_hours:.1f} h and ${bill.most_usd:.2f}, then the machine is taken down; \
also when the study ends or fails, at Ctrl-C, and by itself {IDLE_MINUTES} minutes after the \
study's end
hub token {secret}"""


def describe_price(rental: Any, offers: Any) -> str:
    cap = f"nothing above ${rental.usd_cap:.2f} is taken"
    if offers is None:
        return f"no offer known; {cap} an hour"
    usd = offers.usd * rental.cards
    spot = ", on demand (spot is cheaper)" if rental.spot else ""
    return (
        f"${usd.low:.2f} to ${usd.high:.2f} an hour, median ${usd.mid:.2f} "
        f"({len(offers.offers)} offers{spot}); {cap}"
    )


def describe_forecast(made: Any, bill: Any) -> str:
    if bill.hours is None:
        return "none: neither hours nor dollars are known"
    text = f"{bill.hours.mid:.1f} h ({bill.hours.low:.1f} to {bill.hours.high:.1f})"
    if bill.usd is not None:
        text += f", ${bill.usd.mid:.2f} (${bill.usd.low:.2f} to ${bill.usd.high:.2f})"
    return f"{text}, for {len(made.runs)} runs"


def check_tools() -> None:
    """The two programs by which results come home, before anything costs money."""
    for tool in ("ssh", "rsync"):
        if shutil.which(tool) is None:
            raise StudyError(
                tool, "results come home through it, and it is not here", "Install it."
            )
    shown = subprocess.run(["rsync", "--help"], capture_output=True, text=True, check=False)
    if "--delay-updates" not in shown.stdout:
        raise StudyError(
            "rsync", "this kind lacks --delay-updates", "Install rsync 3 (on a Mac: brew's)."
        )


def agree_to_rent(bill: Any, budget: float) -> None:
    """Take a "y" at a terminal; without one, YES=1 is needed, whatever it costs."""
    if bill.usd is None:
        cost, rule = "unknown dollars", "no forecast says what this costs"
    else:
        cost, rule = f"${bill.usd.mid:.2f} (up to ${bill.usd.high:.2f})", "this costs money"
        if bill.usd.high > budget:
            rule = f"this may be more than the budget of ${budget:g}"
            cost += f", {rule.removeprefix('this ')}"
    if not sys.stdin.isatty():
        raise StudyError(cost.partition(",")[0], rule, "Say YES=1 to rent it, or DRYRUN=1 to look.")
    print(f"Rent it for {cost} (at most ${bill.most_usd:.2f})? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        print("Nothing was started.")
        raise typer.Exit(0)


def send_off(order: dict[str, Any], root: Path, cloud: str | None) -> None:
    """Become the process that looks after the machine: it alone gets the signals."""
    environment = {**os.environ, "STUDY_PYTHON": sys.executable, "CLOUD": cloud or ""}
    sys.stdout.flush()
    program = str(root / "tools" / "sky")
    os.execve(
        program, [program, str(root / "tools" / "sky_machine.py"), json.dumps(order)], environment
    )
