"""Make results/reference/forecasts.json: the article's 13B jobs, a 24 GB card, published peaks.

The article states 240, 56 and 18 GB without settings. Of the jobs below, found by search, some meet
a figure to within 5 %; those that one would try first stand beside them. Published peaks are
forecast with the settings that their sources state; where something else ran than a step of today's
eager PyTorch, the reason stands in `not_comparable`.

Takes some three minutes without any device. The report reads the file and needs no torch.

Not covered: whether the article meant these settings, it does not say; published rows whose length,
optimizer or batch is not stated; a profile's own runs (studylib.forecasting.prospects).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from studylib.core.places import PACKAGE, REFERENCE
from studylib.forecasting.fitting import largest_that_fits, least_bytes
from studylib.forecasting.forecast import Forecast, ForecastSettings, forecast
from studylib.metering.code_files import FORECASTING, code_sha256
from studylib.metering.environment import TRACING_PACKAGES, package_versions
from studylib.planning.alpaca_run import TOKENS
from studylib.planning.catalog import find_gpu, load_gpus, load_prices, price_range
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import ASSUMED
from studylib.schema.forecast_book import (
    BookedForecast,
    CardAnswer,
    ForecastBook,
    JobRow,
    PublishedRow,
    write_book,
)
from studylib.schema.methods import ADAPTER, ARTICLE, QUANTIZED, WHOLE
from studylib.schema.settings import Frozen

CARD_GB = 24
ROWS_OF = 512  # tokens: what an Alpaca-style example is padded to
SHORTEST = 256
MODEL = "shape:llama-2-13b"
ROWS = {"micro_batch": 1, "seq_len": 2048}
MIXED = {"weights": "fp32", "master_weights": True}
EIGHT = {"gpus": 8, "sharding": "fsdp"}
PUBLISHED_FILE = PACKAGE / "published_memory.json"


@dataclass(frozen=True)
class Claimed:
    """A job in words, the article's figure in GB, and the settings that differ from defaults."""

    words: str
    article_gb: float
    changes: dict[str, Any]


CASES = (
    Claimed("full, bf16 throughout, checkpointing", 240, {"method": WHOLE, **ROWS}),
    Claimed("full, fp32 weights under autocast, checkpointing", 240,
         {"method": WHOLE, **ROWS, **MIXED}),
    Claimed("full, fp32 weights under autocast, no checkpointing, 8 × 512", 240,
         {"method": WHOLE, "micro_batch": 8, "seq_len": 512, "checkpointing": False, **MIXED}),
    Claimed("full, bf16 throughout, 8 cards with FSDP", 240, {"method": WHOLE, **ROWS, **EIGHT}),
    Claimed("full, fp32 shards, 8 cards with FSDP", 240,
         {"method": WHOLE, **ROWS, **MIXED, **EIGHT}),
    Claimed("LoRA, bf16 weights, checkpointing", 56, {"method": ADAPTER, **ROWS}),
    Claimed("LoRA, fp32 weights under autocast, checkpointing, 1 × 512", 56,
         {"method": ADAPTER, "seq_len": 512, **MIXED}),
    Claimed("LoRA, bf16 weights, no checkpointing, 5 × 512", 56,
         {"method": ADAPTER, "micro_batch": 5, "seq_len": 512, "checkpointing": False}),
    Claimed("QLoRA, checkpointing", 18, {"method": QUANTIZED, **ROWS}),
    Claimed("QLoRA, no checkpointing, 2 × 512", 18,
         {"method": QUANTIZED, "micro_batch": 2, "seq_len": 512, "checkpointing": False}),
    Claimed("QLoRA, checkpointing, 4 × 2048", 18,
         {"method": QUANTIZED, "micro_batch": 4, "seq_len": 2048}),
)  # fmt: skip


def make_article_forecasts(out: Path = REFERENCE / "forecasts.json") -> Path:
    """Trace everything that the report shows without a device and write it, sealed, to `out`."""
    jobs = []
    for case in CASES:
        print(f"forecast: {case.words}")
        jobs.append(book_forecast(case, forecast_case(case)))
    card = smallest_card(CARD_GB)
    answers = [ask_card(m, on, card) for m in ARTICLE for on in (True, False)]
    rows = []
    for known in load_published():
        print(f"forecast beside published: {known.case}")
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


def ask_card(method: str, checkpointing: bool, card: str) -> CardAnswer:
    """The longest row and the most rows of a method on one card, by search."""
    print(f"what fits {card}: {method}, checkpointing {'on' if checkpointing else 'off'}")
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


def forecast_case(case: Claimed, gpu: str | None = None) -> Forecast:
    """The forecast of one case; its peak times the number of cards is the article's kind of sum.

    gpu: on another card than the usual one.
    """
    changes = case.changes if gpu is None else {**case.changes, "gpu": gpu}
    settings = ForecastSettings(model=MODEL, **changes)
    return forecast(settings, efficiency=ASSUMED, cuda=CudaTerms())


class Published(Frozen):
    """A published peak. counter: what torch counted as allocated, or as reserved."""

    case: str
    source: str
    model: str | None = None
    config: dict[str, Any] | None = None
    settings: dict[str, Any]
    published_bytes: int
    counter: Literal["allocated", "reserved"]
    not_comparable: str | None = None


class PublishedError(Frozen):
    """A forecast of a published case; error is relative, above 0 where the forecast is higher."""

    published: Published
    forecast_bytes: int

    @property
    def error(self) -> float:
        return self.forecast_bytes / self.published.published_bytes - 1


@lru_cache(maxsize=1)
def load_published() -> tuple[Published, ...]:
    rows = json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))
    return tuple(Published.model_validate(row) for row in rows)


def compare_published(published: Published) -> PublishedError:
    """Forecast a published case by the counter that its source used (2 to 4 seconds)."""
    from transformers import CONFIG_MAPPING

    config = None
    if published.config is not None:
        numbers = dict(published.config)
        config = CONFIG_MAPPING[numbers.pop("model_type")](**numbers)
    settings = ForecastSettings.model_validate(
        {**published.settings, "model": published.model or f"path:{published.case}"}
    )
    made = forecast(settings, efficiency=ASSUMED, cuda=CudaTerms(), config=config)
    reserved = made.peak_bytes - made.parts["cuda_context"]
    counted = reserved if published.counter == "reserved" else made.peak_allocated_bytes
    return PublishedError(published=published, forecast_bytes=counted)
