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

from studylib.planning.case import Case, Evidence, JobForecast, Quote, Sizes, Span
from studylib.planning.catalog import find_gpu
from studylib.planning.footprint import RESERVE_SHARE
from studylib.schema.methods import WHOLE
from studylib.schema.settings import Frozen

Way = Literal["whole", "merged", "apart"]


class YearlyCost(Frozen):
    """Dollars a year and what they are of; `way` is how the variants are served."""

    usd: Span
    training_usd: Span
    storage_usd: float
    serving_usd: Span
    hours: Span
    job: JobForecast
    serving_gpu: str | None
    way: Way
    ids: tuple[str, ...]

    @property
    def mid(self) -> float:
        return self.usd.mid or 0.0


def quote_for(case: Case, evidence: Evidence, gpu: str) -> Quote | None:
    """The reader's own price for the card at hand, else the offers."""
    if case.usd_per_gpu_hour is not None and gpu == case.gpu:
        own = case.usd_per_gpu_hour
        return Quote(id=f"price:{gpu}", gpu=gpu, usd_per_hour=Span(low=own, mid=own, high=own))
    return evidence.quote_of.get(gpu)


def training_hours(case: Case, job: JobForecast) -> Span:
    """Hours of one training of one variant, low, mid and high."""
    tokens = case.trained_tokens / 3600
    s = job.seconds_per_token
    return Span(low=tokens * (s.low or 0), mid=tokens * (s.mid or 0), high=tokens * (s.high or 0))


def cheapest_job(
    case: Case, evidence: Evidence, model: str, method: str
) -> tuple[JobForecast, Quote] | None:
    """The allowed cards on which this training is cheapest at the median price, those that it fits
    for sure before those that are tight; None if none."""
    best: tuple[float, JobForecast, Quote] | None = None
    jobs = [job for job in allowed_jobs(case, evidence, model, method) if job.fit.may_run]
    for job in [job for job in jobs if job.fit.word == "fits"] or jobs:
        quote = quote_for(case, evidence, job.gpu)
        if quote is None:
            continue
        usd = (job.seconds_per_token.mid or 0) * job.gpus * (quote.usd_per_hour.mid or 0)
        if best is None or (usd, job.gpus, job.id) < (best[0], best[1].gpus, best[1].id):
            best = (usd, job, quote)
    return None if best is None else (best[1], best[2])


def allowed_jobs(case: Case, evidence: Evidence, model: str, method: str) -> list[JobForecast]:
    """Forecasts on the cards at hand, no more of them than there are; else on any card."""
    jobs = evidence.forecasts_of.get((model, method), ())
    if case.gpu is None:
        return list(jobs)
    return [job for job in jobs if job.gpu == case.gpu and job.gpus <= case.gpus]


def choose_serving_card(case: Case, evidence: Evidence) -> Quote | None:
    """One card for all methods: the reader's, else the cheapest hour that holds one whole model.

    Where none holds it, the card with the cheapest gigabyte.
    """
    named = case.serving_gpu or case.gpu
    if named is not None:
        return quote_for(case, evidence, named)
    sizes = evidence.sizes_of.get((case.model, WHOLE))
    whole = sizes.whole_bytes if sizes else 0
    holding = [q for q in evidence.quotes if room_bytes(q.gpu) >= whole]
    if holding:
        return min(holding, key=lambda q: (q.usd_per_hour.mid or 0, q.gpu))
    return min(
        evidence.quotes,
        key=lambda q: ((q.usd_per_hour.mid or 0) / room_bytes(q.gpu), q.gpu),
        default=None,
    )


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
    job, quote = chosen
    hours = training_hours(case, job)
    count = case.variants * case.trainings_per_year * job.gpus
    training = multiply(hours, quote.usd_per_hour, count)
    card = choose_serving_card(case, evidence) if case.serving_hours_per_year else None
    if card is None and case.serving_hours_per_year:
        return None
    rate = card.usd_per_hour if card else Span(low=0.0, mid=0.0, high=0.0)
    hourly = multiply(Span(low=1.0, mid=1.0, high=1.0), rate, case.serving_hours_per_year)
    room = room_bytes(card.gpu) if card else 1

    def keep(way: Way) -> tuple[float, float]:
        """(storage in dollars, cards) of one way."""
        stored = storage_bytes(sizes, case.variants, way) / 1e9 * case.usd_per_gb_month * 12
        return stored, cards_needed(sizes, case.variants, room, way)

    kept = {way: keep(way) for way in (("whole",) if sizes.adapter_bytes is None else ways)}
    way = min(kept, key=lambda w: kept[w][0] + kept[w][1] * (hourly.mid or 0.0))
    storage, cards = kept[way]
    serving = Span(
        low=cards * (hourly.low or 0),
        mid=cards * (hourly.mid or 0),
        high=cards * (hourly.high or 0),
    )
    return YearlyCost(
        usd=add_spans(training, serving, storage),
        training_usd=training,
        storage_usd=storage,
        serving_usd=serving,
        hours=hours,
        job=job,
        serving_gpu=card.gpu if card else None,
        way=way,
        ids=tuple(dict.fromkeys([job.id, sizes.id, quote.id, *([card.id] if card else [])])),
    )


def storage_bytes(sizes: Sizes, variants: int, way: Way) -> int:
    """Each variant once; adapters with one base, in 16 bits where they are merged into it."""
    if sizes.adapter_bytes is None:
        return variants * sizes.whole_bytes
    base = sizes.base_bytes if way == "apart" else sizes.whole_bytes
    return base + variants * sizes.adapter_bytes


def multiply(one: Span, other: Span, factor: float) -> Span:
    return Span(
        low=(one.low or 0) * (other.low or 0) * factor,
        mid=(one.mid or 0) * (other.mid or 0) * factor,
        high=(one.high or 0) * (other.high or 0) * factor,
    )


def add_spans(one: Span, other: Span, constant: float) -> Span:
    return Span(
        low=(one.low or 0) + (other.low or 0) + constant,
        mid=(one.mid or 0) + (other.mid or 0) + constant,
        high=(one.high or 0) + (other.high or 0) + constant,
    )
