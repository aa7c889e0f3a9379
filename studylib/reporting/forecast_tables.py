"""What was forecast for the article's 13B model, as tables, sentences and figures for the claims.

Not covered: tracing (studylib.forecasting.article_forecasts), the file
(studylib.schema.forecast_book), verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from studylib.core.metrics import byte_size, decimals, plain_number, points
from studylib.reporting.blocks import (
    Block,
    Heading,
    Number,
    Table,
    Text,
    figures,
    named,
    paragraph,
    titled,
    words,
)
from studylib.reporting.claim_sources import ClaimForecast
from studylib.reporting.claims import read_claims
from studylib.reporting.glossary import say
from studylib.reporting.passes import PassSettings
from studylib.schema.forecast_book import BookedForecast, CardAnswer, ForecastBook
from studylib.schema.methods import ARTICLE, METHODS, QUANTIZED
from studylib.schema.ranges import Range

NEAR = 0.05  # of the article's figure: near enough to say that it comes true
# Kinds of job in words: the mark of such a published case in its name, and whether a job is one.
KINDS: dict[str, tuple[str, Callable[[BookedForecast], bool]]] = {
    METHODS[QUANTIZED].label: (METHODS[QUANTIZED].label, lambda job: METHODS[job.method].quantized),
    "several cards": (" cards", lambda job: job.cards > 1),
}


def forecast_claims(book: ForecastBook | None) -> dict[str, list[ClaimForecast]]:
    """Figures for C2, C3 and C7's card by CLAIM.PART; none without a book."""
    if book is None:
        return {}
    found: dict[str, list[ClaimForecast]] = {}
    for method in ARTICLE:
        plain = [job for job in book.jobs if job.method == method and job.plain]
        beside = come_true(book, method)  # once, beside the first
        found[f"C2.{method}"] = [
            memory_forecast(book, job, "" if number else beside) for number, job in enumerate(plain)
        ]
        found[f"C3.{method}"] = cost_forecasts(plain)
    found[f"C3.{QUANTIZED}-on-top"] = found[f"C3.{QUANTIZED}"]
    fits = [describe_answer(a) for a in book.cards if a.method == QUANTIZED and a.checkpointing]
    found["C7.fits-24gb"] = [
        replace(f, more=fits[0] if fits else "") for f in found[f"C2.{QUANTIZED}"][:1]
    ]
    return {key: value for key, value in found.items() if value}


def memory_forecast(book: ForecastBook, job: BookedForecast, beside: str = "") -> ClaimForecast:
    """The peak of all cards in GB, give or take the worst error against published peaks. beside:
    what else belongs to it."""
    value, worst = job.total_bytes / 1e9, book.worst_error
    low, high = value / (1 + worst), value / (1 - worst)
    more = "; ".join(filter(None, (untested(book, job), beside)))
    return ClaimForecast(value, low, high, f"traced, {job_words(job)}", more, job_of_forecast(job))


def job_of_forecast(job: BookedForecast) -> PassSettings:
    """What a forecast is of, for any card, to tell whether the same was measured."""
    asked = job.settings
    return PassSettings(
        job.method, asked["micro_batch"], asked["seq_len"], asked.get("weights"),
        asked.get("optimizer"), asked.get("checkpointing"), job.cards,
    )  # fmt: skip


def job_words(job: BookedForecast) -> str:
    rows, length = job.settings["micro_batch"], job.settings["seq_len"]
    size = f"{rows} × {length:,}"
    return job.words if f"{rows} × {length}" in job.words else f"{job.words}, {size} tokens"


def come_true(book: ForecastBook, method: str) -> str:
    """The other jobs at which the article's figure comes true, if any do."""
    near = [
        f"{job_words(job)} ({gigabytes(job.total_bytes)})"
        for job in book.jobs
        if job.method == method and not job.plain and abs(job.off) <= NEAR
    ]
    return f"the article's figure comes true at: {'; '.join(near)}" if near else ""


def cost_forecasts(jobs: Sequence[BookedForecast]) -> list[ClaimForecast]:
    """Dollars of the Alpaca-style run, packed and padded, by the job on several cards if there is
    one."""
    if not jobs:
        return []
    job = next((j for j in jobs if j.cards > 1), jobs[0])
    cards = f"{job.cards} cards" if job.cards > 1 else "one card"
    return [
        ClaimForecast(
            row.usd.mid, row.usd.low, row.usd.high,
            f"{row.form} ({row.tokens / 1e6:.1f}M tokens), {job_words(job)}",
            f"{range_cell(row.hours)} h on {cards}",
            job_of_forecast(job)._replace(gpu=row.gpu) if row.form == "packed" else None,
        )
        for row in job.jobs
        if row.usd
    ]  # fmt: skip


def gigabytes(count: float) -> Number:
    return Number(f"{plain_number(count / 1e9, 3)} GB", count)


def range_cell(values: Range, unit: str = "") -> Number:
    """Expected, with the best and the worst case."""
    mid, low, high = (f"{unit}{plain_number(v, 3)}" for v in (values.mid, values.low, values.high))
    return Number(f"{mid} ({low} to {high})", values.mid)


# Tables -------------------------------------------------------------------------------------------


def forecast_memory_table(book: ForecastBook) -> Table:
    """Each job's peak beside the article's figure."""
    header = (named("Job (forecast)"), *figures("Cards", "Peak of a card ↓", "All cards ↓",
              "Article", "Off"), *words("Smallest card"))  # fmt: skip
    rows = [
        (
            job_words(job), str(job.cards), gigabytes(job.peak_bytes), gigabytes(job.total_bytes),
            Number(f"{job.article_bytes / 1e9:g} GB", job.article_bytes), near_text(job.off),
            job.smallest_gpu or "none",
        )
        for job in book.jobs
    ]  # fmt: skip
    return Table(header, tuple(rows))


def near_text(share: float) -> str:
    text = f"{decimals(100 * share, 0, signed=True)} %"
    return Number(f"**{text}**" if abs(share) <= NEAR else text, share)


def cost_table(book: ForecastBook) -> Table:
    """Hours and dollars of the Alpaca-style run for the jobs that one would try first."""
    header = (named("Job (forecast)"), *words("Cards", "Examples"),
              *figures("Tokens", "Hours ↓", "Dollars ↓"), *words("Article"))  # fmt: skip
    article = {part["key"]: part["article"] for part in read_claims()["C3"]["parts"]}
    rows = [
        (job_words(job), f"{job.cards} × {row.gpu}", row.form,
         Number(f"{row.tokens / 1e6:.1f}M", row.tokens), range_cell(row.hours),
         "no offer" if row.usd is None else range_cell(row.usd, "$"), article[job.method])
        for job in book.jobs if job.plain
        for row in job.jobs
    ]  # fmt: skip
    return Table(header, tuple(rows))


def card_table(book: ForecastBook) -> Table:
    """Which job fits the card, and how far it can grow."""
    header = (named("Method"), *words("Checkpointing", "Fits (forecast)"),
              *figures("Longest row ↑", "Most rows a step ↑"))  # fmt: skip
    rows = [
        (METHODS[a.method].label, "on" if a.checkpointing else "off",
         "yes" if a.seq_len else f"no: at least {gigabytes(a.least_bytes)}",
         longest(a) if a.seq_len else "—",
         Number(f"{a.micro_batch} of {a.rows_of} tokens", a.micro_batch) if a.micro_batch else "—")
        for a in book.cards
    ]  # fmt: skip
    return Table(header, tuple(rows))


def longest(a: CardAnswer) -> str:
    text = f"{a.seq_len:,} tokens"
    text += " (all that the model can read)" if a.limited_by_positions else ""
    return Number(text, a.seq_len or 0)


def describe_answer(a: CardAnswer) -> str:
    if a.seq_len is None:
        return f"no row fits {a.gpu}: at least {gigabytes(a.least_bytes)}"
    rows = f", {a.micro_batch} rows of {a.rows_of} tokens at once" if a.micro_batch else ""
    return f"on {a.gpu} rows of up to {longest(a)}{rows}"


def published_table(book: ForecastBook) -> Table:
    """Forecast against published, every case; those that cannot be compared say why."""
    header = (named("Published case"), *words("Counter"),
              *figures("Published", "Forecast", "Error"), *words("Source"))  # fmt: skip
    rows = []
    for row in book.published:
        error = f"{points(row.error)} %"
        left_out = f" (left out: {row.not_comparable})" if row.not_comparable else ""
        rows.append((row.case, row.counter, gigabytes(row.published_bytes),
                     gigabytes(row.forecast_bytes), Number(error + left_out, row.error),
                     row.source))  # fmt: skip
    return Table(header, tuple(rows))


# Sentences ----------------------------------------------------------------------------------------


def card_sentence(book: ForecastBook) -> str:
    """Which 13B job fits a 24 GB card."""
    if not book.cards:
        return ""
    gpu, usable = book.cards[0].gpu, book.cards[0].usable_bytes
    parts = [
        f"{METHODS[a.method].label} with checkpointing {'on' if a.checkpointing else 'off'} "
        f"up to {longest(a)} in a row, or {a.micro_batch or 'no'} rows of {a.rows_of} a step"
        for a in book.cards
        if a.seq_len
    ]
    found = "; ".join(parts) or "none"
    return say("forecast_card", gpu=gpu, usable=byte_size(usable), found=found)


def published_sentence(book: ForecastBook) -> str:
    """How far forecasts are off, and what that does not speak of: cases that were left out, kinds
    of job with none."""
    errors = book.errors
    if not errors:
        return "No published peak was forecast."
    mean, worst = (f"{100 * error:.1f}" for error in (book.mean_error, book.worst_error))
    text = say("published_error", count=len(errors), mean=mean, worst=worst)
    out = [row.error for row in book.published if row.not_comparable is not None]
    if not out:
        return text
    low, high = points(min(out)), points(max(out))
    text += " " + say("published_left_out", count=len(out), low=low, high=high)
    if bare := untested_kinds(book):
        text += " " + say("published_none", kinds=" or of ".join(bare))
    return text


def untested_kinds(book: ForecastBook) -> list[str]:
    """Kinds of job of which no published case counts."""
    counted = [row.case for row in book.published if row.not_comparable is None]
    return [words for words, (mark, _) in KINDS.items() if not any(mark in c for c in counted)]


def untested(book: ForecastBook, job: BookedForecast) -> str:
    """In words, what of this job no published peak that counts has; empty where all is tested."""
    bare = [words for words in untested_kinds(book) if KINDS[words][1](job)]
    return f"no published peak of {' or of '.join(bare)} bears the range out" if bare else ""


def forecast_limits(book: ForecastBook) -> str:
    low, high = (plain_number(end, 2) for end in (book.efficiency.low, book.efficiency.high))
    packages = ", ".join(f"{name} {version}" for name, version in sorted(book.packages.items()))
    return say("forecast_limits", low=low, high=high, source=book.efficiency_source,
               offers=book.offers, packages=packages, code=book.code_sha256[:12])  # fmt: skip


def book_section(book: ForecastBook | None, errors: list[Block]) -> list[Block]:
    """The report's part on forecasts; without a book it says what to run. errors: what is said of
    this study's own runs (studylib.reporting.forecast_errors)."""
    title = Heading(2, "Forecasts")
    if book is None:
        missing = "A 13B model is not forecast yet: `make forecasts` does it without a card."
        return [title, *errors, Text(missing)]
    told = say("forecast_opening", model=book.model)
    return [title, Text(told), forecast_memory_table(book), *paragraph(card_sentence(book)),
            Text(published_sentence(book)), *errors]  # fmt: skip


def forecast_details(book: ForecastBook) -> list[Block]:
    """The appendix: hours and dollars, which 13B job fits the card, published peaks, what is not
    covered."""
    return [
        *titled("Hours and dollars of the article's run", cost_table(book)),
        *titled("A 13B model and a 24 GB card", card_table(book)),
        *titled("Forecast against published peaks", published_table(book)),
        Text(forecast_limits(book)),
    ]
