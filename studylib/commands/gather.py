"""Everything that advice on a case may rest on, brought together: records, forecasts, prices.

This is where records meet forecasts, which need torch; the advice itself does not.

Not covered: judging any of it (studylib.advice.advise).
"""

from __future__ import annotations

from pathlib import Path

from studylib.advice.evidence import read_roots
from studylib.core.places import REFERENCE
from studylib.forecasting.calibration import learn_from
from studylib.forecasting.card_forecasts import foresee_case
from studylib.planning.case import Case, Evidence
from studylib.planning.catalog import load_prices, price_range


def gather_evidence(case: Case, results: Path, prices: Path | None = None) -> Evidence:
    """Forecasts for the case's model and cards, counts, prices, and the records of the reader's
    results and of the reference."""
    learn_from(results)
    jobs, sizes, failed = foresee_case(case)
    read, offers = read_roots([results, REFERENCE]), load_prices(prices)
    found = {gpu: price_range(gpu, offers) for gpu in sorted({offer.gpu for offer in offers})}
    return read.model_copy(
        update={
            "forecasts": tuple(jobs),
            "sizes": tuple(sizes),
            "prices": {gpu: each.usd for gpu, each in found.items() if each},
            "left_out": (*failed, *read.left_out),
        }
    )
