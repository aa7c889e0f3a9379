"""What was forecast for the article's 13B model, as tables, sentences and figures for the claims.

Not covered: tracing (studylib.forecasting.article_forecasts), the file
(studylib.schema.forecast_book), verdicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from studylib.core.metrics import byte_size, plain_number, points
from studylib.reporting.blocks import (
    Block,
    Heading,
    Number,
    Table,
    Text,
    figures,
    named,
    paragraph,
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
        found[f"C2.{method}"] = [memory_forecast(book, job) for job in plain]
        if found[f"C2.{method}"]:
            first = found[f"C2.{method}"][0]
            more = "; ".join(filter(None, (first.more, come_true(book, method))))
            found[f"C2.{method}"][0] = replace(first, more=more)
        found[f"C3.{method}"] = cost_forecasts(book, method)
    found[f"C3.{QUANTIZED}-on-top"] = found[f"C3.{QUANTIZED}"]
    card = next((a for a in book.cards if a.method == QUANTIZED and a.checkpointing), None)
    found["C7.fits-24gb"] = [
        replace(f, more=describe_answer(card) if card else "") for f in found[f"C2.{QUANTIZED}"][:1]
    ]
    return {key: value for key, value in found.items() if value}


def memory_forecast(book: ForecastBook, job: BookedForecast) -> ClaimForecast:
    """The peak of all cards in GB, give or take the worst error against published peaks."""
    value, worst = job.total_bytes / 1e9, book.worst_error
    low, high = value / (1 + worst), value / (1 - worst)
    return ClaimForecast(
        value, low, high, f"traced, {job_words(job)}", untested(book, job), job_of_forecast(job)
    )


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


def cost_forecasts(book: ForecastBook, method: str) -> list[ClaimForecast]:
    """Dollars of the Alpaca-style run, packed and padded; full fine-tuning on several cards."""
    jobs = [job for job in book.jobs if job.method == method and job.plain]
    job = next((j for j in jobs if j.cards > 1), jobs[0] if jobs else None)
    if job is None:
        return []
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
            claimed(job), near_text(job.off), job.smallest_gpu or "none",
        )
        for job in book.jobs
    ]  # fmt: skip
    return Table(header, tuple(rows))


def claimed(job: BookedForecast) -> str:
    return Number(f"{job.article_bytes / 1e9:g} GB", job.article_bytes)


def near_text(share: float) -> str:
    text = f"{100 * share:+.0f} %".replace("-", "−")
    text = "0 %" if text in ("+0 %", "−0 %") else text
    return Number(f"**{text}**" if abs(share) <= NEAR else text, share)


def cost_table(book: ForecastBook) -> Table:
    """Hours and dollars of the Alpaca-style run for the jobs that one would try first."""
    header = (named("Job (forecast)"), *words("Cards", "Examples"),
              *figures("Tokens", "Hours ↓", "Dollars ↓"), *words("Article"))  # fmt: skip
    rows = []
    for job in (job for job in book.jobs if job.plain):
        for row in job.jobs:
            usd = "no offer" if row.usd is None else range_cell(row.usd, "$")
            rows.append((job_words(job), f"{job.cards} × {row.gpu}", row.form,
                         Number(f"{row.tokens / 1e6:.1f}M", row.tokens), range_cell(row.hours), usd,
                         article_cost(job.method)))  # fmt: skip
    return Table(header, tuple(rows))


def article_cost(method: str) -> str:
    """What the article says a run costs."""
    parts = read_claims()["C3"]["parts"]
    return next(part["article"] for part in parts if part["key"] == method)


def card_table(book: ForecastBook) -> Table:
    """Which job fits the card, and how far it can grow."""
    header = (named("Method"), *words("Checkpointing", "Fits (forecast)"),
              *figures("Longest row ↑", "Most rows a step ↑"))  # fmt: skip
    rows = []
    for a in book.cards:
        fits = "yes" if a.seq_len else f"no: at least {gigabytes(a.least_bytes)}"
        rows.append((
            METHODS[a.method].label, "on" if a.checkpointing else "off", fits,
            longest(a) if a.seq_len else "—",
            Number(f"{a.micro_batch} of {a.rows_of} tokens", a.micro_batch)
            if a.micro_batch else "—",
        ))  # fmt: skip
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
    fitting = [a for a in book.cards if a.seq_len]
    parts = [
        f"{METHODS[a.method].label} with checkpointing {'on' if a.checkpointing else 'off'} "
        f"up to {longest(a)} in a row, or {a.micro_batch or 'no'} rows of {a.rows_of} a step"
        for a in fitting
    ]
    found = "; ".join(parts) or "none"
    return say("forecast_card", gpu=gpu, usable=byte_size(usable), found=found)


def published_sentence(book: ForecastBook) -> str:
    errors = book.errors
    if not errors:
        return "No published peak was forecast."
    mean, worst = (f"{100 * error:.1f}" for error in (book.mean_error, book.worst_error))
    text = say("published_error", count=len(errors), mean=mean, worst=worst)
    return text + left_out_sentence(book)


def left_out_sentence(book: ForecastBook) -> str:
    """What the error does not speak of: cases that were left out, kinds of job with none."""
    out = [row.error for row in book.published if row.not_comparable is not None]
    if not out:
        return ""
    low, high = points(min(out)), points(max(out))
    text = " " + say("published_left_out", count=len(out), low=low, high=high)
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
    """The report's part on forecasts; without a book it says what to run.

    errors: what is said of this study's own runs (studylib.reporting.forecast_errors).
    """
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
        *(Heading(3, "Hours and dollars of the article's run"), cost_table(book)),
        *(Heading(3, "A 13B model and a 24 GB card"), card_table(book)),
        *(Heading(3, "Forecast against published peaks"), published_table(book)),
        Text(forecast_limits(book)),
    ]
