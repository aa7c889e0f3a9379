"""The file of forecasts that a report shows: its schema, how it is sealed and read, its errors.

results/reference/forecasts.json holds what was traced without a device for the article's 13B model.
It is written once (studylib.forecasting.article_forecasts) and read without torch. The same code
and packages give the same bytes: no clock is in it.

Not covered: tracing (studylib.forecasting.forecast).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from studylib.core.sealed import read_sealed, write_sealed
from studylib.schema.ranges import Range
from studylib.schema.settings import Frozen

FORECASTS = "forecasts.json"
BOOK_VERSION = 1


class JobRow(Frozen):
    """The Alpaca-style run on a card that takes it. usd: fastest at the cheapest offer, expected at
    the median, slowest at the dearest."""

    form: Literal["packed", "padded"]
    tokens: int
    hours: Range
    usd: Range | None
    gpu: str


class BookedForecast(Frozen):
    """One training job traced without its device. peak_bytes: of one card; article_bytes: claimed.

    settings: those of studylib.forecasting.forecast.ForecastSettings.
    """

    words: str
    method: str
    article_bytes: int
    settings: dict[str, Any]
    cards: int
    peak_bytes: int
    peak_stage: str
    parts: dict[str, int]
    smallest_gpu: str | None
    jobs: tuple[JobRow, ...]

    @property
    def total_bytes(self) -> int:
        """The peaks of all cards, which is how the article seems to count."""
        return self.cards * self.peak_bytes

    @property
    def plain(self) -> bool:
        """Whether this is the job that one would try first: rows of 2,048 tokens, one a step."""
        return (self.settings["micro_batch"], self.settings["seq_len"]) == (1, 2048)

    @property
    def off(self) -> float:
        """How far the forecast is from the article's figure, as a share of it."""
        return self.total_bytes / self.article_bytes - 1

    def job(self, form: str) -> JobRow:
        return next(job for job in self.jobs if job.form == form)


class CardAnswer(Frozen):
    """What of a method fits one card: the longest row alone, and the most rows of `rows_of` tokens.

    least_bytes: the peak of the smallest job tried. limited_by_positions: memory would allow more.
    """

    method: str
    checkpointing: bool
    gpu: str
    usable_bytes: int
    least_bytes: int
    seq_len: int | None
    rows_of: int
    micro_batch: int | None
    limited_by_positions: bool


class PublishedRow(Frozen):
    """A peak that others measured and published beside its forecast by the same counter."""

    case: str
    source: str
    counter: str
    published_bytes: int
    forecast_bytes: int
    not_comparable: str | None

    @property
    def error(self) -> float:
        return self.forecast_bytes / self.published_bytes - 1


class ForecastBook(Frozen):
    """Every forecast that the report shows, with what it was made with."""

    schema_version: int = BOOK_VERSION
    model: str
    gpu: str
    offers: str
    efficiency: Range
    efficiency_source: str
    jobs: tuple[BookedForecast, ...]
    cards: tuple[CardAnswer, ...]
    published: tuple[PublishedRow, ...]
    packages: dict[str, str]
    code_sha256: str
    digest: str = ""

    @property
    def errors(self) -> list[float]:
        """Relative errors of the published cases that can be compared."""
        return [row.error for row in self.published if row.not_comparable is None]

    @property
    def mean_error(self) -> float:
        return sum(map(abs, self.errors)) / len(self.errors)

    @property
    def worst_error(self) -> float:
        return max(map(abs, self.errors))


def write_book(path: Path, book: ForecastBook) -> Path:
    """Seal the book with its digest and write it over an earlier one."""
    return write_sealed(path, book, over=True)


def read_book(path: Path) -> ForecastBook | None:
    """The book in a file; None where there is none. StudyError: it cannot be trusted."""
    if not path.is_file():
        return None
    remedy = "Restore it, or make it again: make forecasts."
    return read_sealed(path, ForecastBook, BOOK_VERSION, "the book of forecasts", remedy)
