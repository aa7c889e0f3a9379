"""Everything that advice on a case may rest on, brought together: records, forecasts, prices.

This is where records meet forecasts, which need torch; the advice itself does not.

Not covered: judging any of it (studylib.advice.advise).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from studylib.advice.advise import Advice, advise
from studylib.advice.evidence import quote_prices, read_roots
from studylib.core.places import REFERENCE
from studylib.forecasting.calibration import learn_from
from studylib.forecasting.card_forecasts import foresee_case, foresee_with_sibling, normal_model
from studylib.planning.case import Case, Evidence, build_case
from studylib.planning.catalog import load_gpus, load_prices


def gather_evidence(
    case: Case, results: Path, reference: Path = REFERENCE, prices: Path | None = None
) -> Evidence:
    """Forecasts for the case's model and cards, counts, prices, and the records of both folders."""
    learn_from(results)
    jobs, sizes, failed = foresee_case(case)
    return with_records(
        Evidence(forecasts=tuple(jobs), sizes=tuple(sizes), left_out=tuple(failed)),
        results, reference, prices,
    )  # fmt: skip


def gather_grid_evidence(models: Iterable[str], results: Path) -> dict[str, Evidence]:
    """Model -> evidence on every card, for a grid of cases; each model and method traced once."""
    learn_from(results)
    base = with_records(Evidence(), results, REFERENCE, None)
    found = {}
    for model in map(normal_model, models):
        jobs, sizes, failed = foresee_with_sibling(model, list(load_gpus().values()))
        update = {"forecasts": tuple(jobs), "sizes": tuple(sizes)}
        left_out = (*base.left_out, *failed)
        found[model] = base.model_copy(update={**update, "left_out": left_out})
    return found


def with_records(
    evidence: Evidence, results: Path, reference: Path, prices: Path | None
) -> Evidence:
    read = read_roots([results, reference])
    return evidence.model_copy(
        update={
            "quotes": tuple(quote_prices(load_prices(prices))),
            "accuracy": tuple(read.accuracy),
            "latency": tuple(read.latency),
            "left_out": (*evidence.left_out, *read.left_out),
        }
    )


def advise_case(results: Path, prices: Path | None = None, **given: object) -> tuple[Case, Advice]:
    """The case that the options state, and the advice on it."""
    case = build_case(**given)
    case = case.model_copy(update={"model": normal_model(case.model)})
    return case, advise(case, gather_evidence(case, results, REFERENCE, prices))


def open_case(
    model: str,
    change: str,
    tokens: int,
    variants: int,
    retrains_per_year: float,
    cards: str | None,
    budget_usd: float | None,
    max_latency_overhead: float | None,
    max_accuracy_loss: float | None,
) -> Case:
    """A case from a notebook's parameters; StudyError names what is wrong."""
    case = build_case(
        model=model, change=change, tokens=tokens, variants=variants,
        retrains_per_year=retrains_per_year, gpu=cards, budget_usd=budget_usd,
        max_latency_overhead_percent=max_latency_overhead, max_accuracy_loss_pp=max_accuracy_loss,
    )  # fmt: skip
    return case.model_copy(update={"model": normal_model(case.model)})
