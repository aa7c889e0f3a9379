"""Make results/reference/forecasts.json: the article's 13B jobs, a 24 GB card, published peaks.

Takes some three minutes without any device. The report reads the file and needs no torch.

Not covered: forecasts of a profile's own runs (studylib.forecasting.prospects).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from studylib.core.places import REFERENCE
from studylib.forecasting.article_memory import CASES, MODEL, Claimed, forecast_case
from studylib.forecasting.fitting import largest_that_fits, least_bytes
from studylib.forecasting.forecast import Forecast, ForecastSettings
from studylib.forecasting.published import Published, compare_published, load_published
from studylib.metering.code_files import FORECASTING, code_sha256
from studylib.metering.environment import TRACING_PACKAGES, package_versions
from studylib.planning.alpaca_run import TOKENS
from studylib.planning.catalog import find_gpu, load_gpus, load_prices, price_range
from studylib.planning.roofline import ASSUMED
from studylib.schema.forecast_book import (
    BookedForecast,
    CardAnswer,
    ForecastBook,
    JobRow,
    PublishedRow,
    write_book,
)
from studylib.schema.methods import ARTICLE

CARD_GB = 24
ROWS_OF = 512  # tokens: what an Alpaca-style example is padded to
SHORTEST = 256
Say = Callable[[str], None]


def make_article_forecasts(
    out: Path = REFERENCE / "forecasts.json",
    cases: Iterable[Claimed] = CASES,
    published: Iterable[Published] | None = None,
    say: Say = print,
) -> Path:
    """Trace everything that the report shows without a device and write it, sealed, to `out`."""
    jobs = []
    for case in cases:
        say(f"forecast: {case.words}")
        jobs.append(book_forecast(case, forecast_case(case)))
    card = smallest_card(CARD_GB)
    answers = [ask_card(m, on, card, say) for m in ARTICLE for on in (True, False)]
    rows = []
    for known in load_published() if published is None else published:
        say(f"forecast beside published: {known.case}")
        rows.append(describe_published(known))
    gpu = jobs[0].settings["gpu"]
    book = ForecastBook(
        model=MODEL,
        gpu=gpu,
        offers=describe_offers(gpu),
        efficiency=ASSUMED * 1,
        efficiency_source=ASSUMED.source,
        jobs=tuple(jobs),
        cards=tuple(answers),
        published=tuple(rows),
        packages=package_versions(TRACING_PACKAGES),
        code_sha256=code_sha256(FORECASTING),
    )
    return write_book(out, book)


def book_forecast(case: Claimed, made: Forecast) -> BookedForecast:
    """Hours and dollars are those of the smallest card that takes the job where the usual one does
    not; of none where none does."""
    settings, priced = made.settings, made
    if not made.jobs and made.smallest_gpu:
        priced = forecast_case(case, made.smallest_gpu)
    jobs = [
        JobRow(
            form=form,  # type: ignore[arg-type]
            tokens=job.tokens,
            hours=job.hours.rounded(),
            usd=None if job.usd is None else job.usd.rounded(),
            gpu=priced.settings.gpu,
        )
        for form in TOKENS
        if (job := priced.jobs.get(form)) is not None
    ]
    return BookedForecast(
        words=case.words,
        method=settings.method,
        article_bytes=round(case.article_gb * 1e9),
        settings=settings.model_dump(mode="json"),
        cards=settings.gpus,
        peak_bytes=made.peak_bytes,
        peak_stage=made.peak_stage,
        parts={name: size for name, size in made.parts.items() if size},
        smallest_gpu=made.smallest_gpu,
        jobs=tuple(jobs),
    )


def smallest_card(gigabytes: int) -> str:
    """The card of this label whose usable memory is the least: what fits it fits the others."""
    names = [name for name in load_gpus() if f"-{gigabytes}gb" in name]
    return min(names, key=lambda name: find_gpu(name).usable_bytes)


def ask_card(method: str, checkpointing: bool, card: str, say: Say) -> CardAnswer:
    """The longest row and the most rows of a method on one card, by search."""
    say(f"what fits {card}: {method}, checkpointing {'on' if checkpointing else 'off'}")
    settings = ForecastSettings(
        model=MODEL, method=method, seq_len=ROWS_OF, checkpointing=checkpointing
    )
    found = largest_that_fits(settings, card)
    least = settings.model_copy(update={"seq_len": SHORTEST, "micro_batch": 1})
    return CardAnswer(
        method=method,
        checkpointing=checkpointing,
        gpu=card,
        usable_bytes=find_gpu(card).usable_bytes,
        least_bytes=least_bytes(least),
        seq_len=found.seq_len,
        rows_of=ROWS_OF,
        micro_batch=found.micro_batch,
        limited_by_positions=found.limited_by_positions,
    )


def describe_published(case: Published) -> PublishedRow:
    made = compare_published(case)
    return PublishedRow(
        case=case.case,
        source=case.source,
        counter=case.counter,
        published_bytes=case.published_bytes,
        forecast_bytes=made.forecast_bytes,
        not_comparable=case.not_comparable,
    )


def describe_offers(gpu: str) -> str:
    """The price of a card's hour in words."""
    prices = price_range(gpu, load_prices())
    if prices is None:
        return "no offer"
    dates = ", ".join(sorted({offer.as_of for offer in prices.offers}))
    return (
        f"{len(prices.offers)} offers of {find_gpu(gpu).label}, ${prices.cheapest:.2f} to "
        f"${prices.dearest:.2f} an hour, median ${prices.median:.2f} ({dates})"
    )
