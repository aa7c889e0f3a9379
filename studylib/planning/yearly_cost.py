"""What a method costs over a year: training, storage and serving, from forecasts and counts.

Training is variants × trainings × hours × cards × price, on the allowed cards that make it
cheapest. Storage keeps each variant once. Serving keeps every variant ready: whole variants take
one card at least, and beyond it the share of a card's memory that they fill; adapters kept apart
take a card for their base and their own share on top. So a further variant never takes less, and
one variant is never dearer as an adapter, which can be merged, than as a whole model.

Not covered: requests under way beyond the reserve, people's hours, network and taxes.
"""

from __future__ import annotations

from typing import Literal

from studylib.planning.case import Case, Evidence, JobForecast, Sizes
from studylib.planning.catalog import find_gpu
from studylib.planning.footprint import RESERVE_SHARE
from studylib.schema.methods import WHOLE
from studylib.schema.ranges import NOTHING, Range, exactly
from studylib.schema.settings import Frozen

Way = Literal["whole", "merged", "apart"]


class YearlyCost(Frozen):
    """Dollars a year and what they are of; `way` is how the variants are served."""

    usd: Range
    training_usd: Range
    storage_usd: float
    serving_usd: Range
    hours: Range
    job: JobForecast
    serving_gpu: str | None
    way: Way
    ids: tuple[str, ...]


def hourly_price(case: Case, evidence: Evidence, gpu: str) -> Range | None:
    """Dollars an hour: the reader's own price for the card at hand, else the offers'."""
    if case.usd_per_gpu_hour is not None and gpu == case.gpu:
        return exactly(case.usd_per_gpu_hour)
    return evidence.prices.get(gpu)


def cheapest_job(
    case: Case, evidence: Evidence, model: str, method: str
) -> tuple[JobForecast, Range] | None:
    """The allowed cards on which this training is cheapest at the median price, those that it fits
    for sure before those that are tight, and their price; None if none."""
    jobs = [job for job in allowed_jobs(case, evidence, model, method) if job.fit.may_run]
    jobs = [job for job in jobs if job.fit.word == "fits"] or jobs
    priced = [(job, usd) for job in jobs if (usd := hourly_price(case, evidence, job.gpu))]
    return min(
        priced,
        key=lambda p: (p[0].seconds_per_token.mid * p[0].gpus * p[1].mid, p[0].gpus, p[0].id),
        default=None,
    )


def allowed_jobs(case: Case, evidence: Evidence, model: str, method: str) -> list[JobForecast]:
    """Forecasts on the cards at hand, no more of them than there are; else on any card."""
    jobs = evidence.forecasts_of.get((model, method), ())
    if case.gpu is None:
        return list(jobs)
    return [job for job in jobs if job.gpu == case.gpu and job.gpus <= case.gpus]


def choose_serving_card(case: Case, evidence: Evidence) -> tuple[str, Range] | None:
    """One card for all methods, with its price: the reader's, else the cheapest hour that holds one
    whole model. Where none holds it, the card with the cheapest gigabyte."""
    if named := case.serving_gpu or case.gpu:
        usd = hourly_price(case, evidence, named)
        return (named, usd) if usd else None
    sizes = evidence.sizes_of.get((case.model, WHOLE))
    whole = sizes.whole_bytes if sizes else 0
    offers = [(usd.mid, gpu) for gpu, usd in evidence.prices.items()]
    holding = [(usd, gpu) for usd, gpu in offers if room_bytes(gpu) >= whole]
    by_size = [(usd / room_bytes(gpu), gpu) for usd, gpu in offers]
    _, gpu = min(holding or by_size, default=(0, ""))
    return (gpu, evidence.prices[gpu]) if gpu else None


def room_bytes(gpu: str) -> int:
    """What a card leaves for weights, beside its reserve for requests."""
    return int(find_gpu(gpu).usable_bytes * (1 - RESERVE_SHARE))


def cards_needed(sizes: Sizes, variants: int, room: int, way: Way) -> float:
    """Cards, the first one whole and the rest by the share of memory that is filled."""
    if way == "apart":
        return max(1.0, sizes.base_bytes / room) + variants * (sizes.adapter_bytes or 0) / room
    return max(1.0, variants * sizes.whole_bytes / room)


def cost_year(
    case: Case, evidence: Evidence, model: str, method: str, ways: tuple[Way, ...]
) -> YearlyCost | None:
    """The year's dollars with the cheapest allowed cards and, of `ways`, way to serve an adapter.

    None where no allowed card fits and has a price, or where sizes are unknown.
    """
    sizes = evidence.sizes_of.get((model, method))
    chosen = cheapest_job(case, evidence, model, method)
    if sizes is None or chosen is None:
        return None
    job, price = chosen
    hours = job.seconds_per_token * (case.trained_tokens / 3600)
    training = hours * price * (case.variants * case.trainings_per_year * job.gpus)
    card = choose_serving_card(case, evidence) if case.serving_hours_per_year else None
    if card is None and case.serving_hours_per_year:
        return None
    serving_gpu, rate = card or (None, NOTHING)
    yearly = rate * case.serving_hours_per_year
    room = room_bytes(serving_gpu) if serving_gpu else 1

    def keep(way: Way) -> tuple[float, float]:
        """(storage in dollars, cards) of one way."""
        stored = storage_bytes(sizes, case.variants, way) / 1e9 * case.usd_per_gb_month * 12
        return stored, cards_needed(sizes, case.variants, room, way)

    kept = {way: keep(way) for way in (("whole",) if sizes.adapter_bytes is None else ways)}
    way = min(kept, key=lambda w: kept[w][0] + kept[w][1] * yearly.mid)
    storage, cards = kept[way]
    serving = yearly * cards
    ids = (job.id, sizes.id, f"price:{job.gpu}", *([f"price:{serving_gpu}"] if card else []))
    return YearlyCost(
        usd=training + serving + exactly(storage),
        training_usd=training,
        storage_usd=storage,
        serving_usd=serving,
        hours=hours,
        job=job,
        serving_gpu=serving_gpu,
        way=way,
        ids=tuple(dict.fromkeys(ids)),
    )


def storage_bytes(sizes: Sizes, variants: int, way: Way) -> int:
    """Each variant once; adapters with one base, in 16 bits where they are merged into it."""
    if sizes.adapter_bytes is None:
        return variants * sizes.whole_bytes
    base = sizes.base_bytes if way == "apart" else sizes.whole_bytes
    return base + variants * sizes.adapter_bytes
