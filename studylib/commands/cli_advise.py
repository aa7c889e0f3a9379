"""The commands `study advise` and `study diff`: which method to take, and what moved.

Not covered: the advice (studylib.advice.advise) and the comparison
(studylib.reporting.compare_studies).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studylib.commands.cli_options import (
    DEFAULT_RESULTS,
    JsonOption,
    PricesOption,
    ResultsOption,
    split,
)
from studylib.commands.forecast_only import forecast_only
from studylib.schema.method_names import name_methods


@forecast_only
def advise(
    model: Annotated[str, typer.Option(help="shape:NAME, hub:ID, path:FOLDER or ladder:NAME.")],
    change: Annotated[str, typer.Option(help="task, knowledge or language.")],
    tokens: Annotated[int, typer.Option(help="Size of the training data.")],
    facts: Annotated[int | None, typer.Option(help="New facts, if it is knowledge.")] = None,
    variants: Annotated[int, typer.Option(help="How many models are kept ready.")] = 1,
    retrains_per_year: Annotated[float, typer.Option(help="Of each variant.")] = 1.0,
    gpu: Annotated[
        str | None, typer.Option(help="Cards at hand: rtx4090-24gb, 8xa100-80gb.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Dollars a year, at most.")] = None,
    max_latency_overhead: Annotated[
        float | None, typer.Option(help="Per cent that an answer may take longer.")
    ] = None,
    max_accuracy_loss: Annotated[
        float | None, typer.Option(help="Points behind full fine-tuning that may be lost.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="How often the data is read.")] = 3.0,
    serving_gpu: Annotated[
        str | None, typer.Option(help="The card that serves; default: --gpu, or the cheapest.")
    ] = None,
    serving_hours_per_year: Annotated[
        float, typer.Option(help="Hours that a card is rented to serve; 8760 is always.")
    ] = 0.0,
    methods: Annotated[
        str | None, typer.Option(help=f"To weigh, with commas: {name_methods()}.")
    ] = None,
    usd_per_gpu_hour: Annotated[
        float | None, typer.Option(help="Your own price of an hour of --gpu.")
    ] = None,
    usd_per_gb_month: Annotated[float, typer.Option(help="Price of storage.")] = 0.023,
    prices: PricesOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    why: Annotated[
        bool, typer.Option("--why", help="The ranking, every reason and its records.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Which method to choose for your case, why, and what would change the answer."""
    from studylib.advice.advice_text import format_advice
    from studylib.advice.advise import advise as weigh
    from studylib.commands.gather import gather_evidence
    from studylib.planning.case import build_case

    case = build_case(
        model=model, change=change, tokens=tokens, facts=facts, variants=variants,
        retrains_per_year=retrains_per_year, gpu=gpu, budget_usd=budget,
        max_latency_overhead_percent=max_latency_overhead, max_accuracy_loss_pp=max_accuracy_loss,
        epochs=epochs, serving_gpu=serving_gpu, serving_hours_per_year=serving_hours_per_year,
        usd_per_gpu_hour=usd_per_gpu_hour, usd_per_gb_month=usd_per_gb_month,
        methods=tuple(split(methods) or ()),
    )  # fmt: skip
    advice = weigh(case, gather_evidence(case, results, prices))
    print(advice.model_dump_json(indent=1) if as_json else format_advice(case, advice, why))


def diff(
    before: Annotated[
        Path, typer.Argument(help="A results folder, such as results/reference/cpu.")
    ],
    after: Annotated[Path, typer.Argument(help="The other one, such as results/cpu.")],
    as_json: JsonOption = False,
) -> None:
    """Which figures of two results folders differ by more than their noise."""
    from studylib.reporting.compare_studies import compare_folders
    from studylib.reporting.move_words import format_moves

    compared = compare_folders(before, after)
    print(compared.model_dump_json(indent=1) if as_json else format_moves(compared))
