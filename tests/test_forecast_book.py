"""The forecasts' file: sealed, read without torch, shown with its error; forecasts marked so."""

import json
from pathlib import Path

import pytest

from studylib.core.errors import StudyError
from studylib.core.places import REFERENCE
from studylib.forecasting.article_forecasts import (
    CASES,
    book_forecast,
    describe_published,
    forecast_case,
    load_published,
    smallest_card,
)
from studylib.metering.code_files import FORECASTING, code_sha256
from studylib.reporting import forecast_tables
from studylib.reporting.blocks import to_markdown
from studylib.reporting.claims import evaluate_claims
from studylib.schema.forecast_book import (
    BookedForecast,
    CardAnswer,
    ForecastBook,
    JobRow,
    PublishedRow,
    read_book,
    write_book,
)
from studylib.schema.ranges import Range

GB = 10**9


def make_job(method: str, words: str, peak: int, article: int, **settings: int) -> BookedForecast:
    rows = {"micro_batch": 1, "seq_len": 2048} | settings
    span = Range(low=1.0, mid=2.0, high=4.0)
    jobs = [JobRow(form=form, tokens=20_000_000, hours=span,  # type: ignore[arg-type]
                   usd=Range(low=20.0, mid=28.0, high=40.0), gpu="a100-80gb")
            for form in ("packed", "padded")]  # fmt: skip
    return BookedForecast(
        words=words, method=method, article_bytes=article * GB, settings=rows,  # type: ignore
        cards=8 if "FSDP" in words else 1, peak_bytes=peak, peak_stage="backward",
        parts={"weights": peak}, smallest_gpu="a100-80gb", jobs=tuple(jobs),
    )  # fmt: skip


def make_book(peak_bytes: int = 20 * GB) -> ForecastBook:
    def answer(method: str, seq_len: int | None) -> CardAnswer:
        return CardAnswer(
            method=method, checkpointing=True, gpu="a10-24gb", usable_bytes=23 * GB,  # type: ignore
            least_bytes=9 * GB if seq_len else 28 * GB, seq_len=seq_len, rows_of=512,
            micro_batch=4 if seq_len else None, limited_by_positions=False,
        )  # fmt: skip

    def published(case: str, forecast: float, why: str | None = None) -> PublishedRow:
        return PublishedRow(case=case, source="a paper", counter="allocated",
                            published_bytes=10 * GB, forecast_bytes=int(forecast * GB),
                            not_comparable=why)  # fmt: skip

    return ForecastBook(
        model="shape:llama-2-13b", gpu="a100-80gb", offers="8 offers",
        efficiency=Range(low=0.5, mid=0.75, high=1.0), efficiency_source="an assumption",
        jobs=(
            make_job("full", "full, 8 cards with FSDP", peak_bytes, 240),
            make_job("lora", "LoRA, checkpointing", 29 * GB, 56),
            make_job("lora", "LoRA, no checkpointing, 5 × 512", 55 * GB, 56, micro_batch=5,
                     seq_len=512),
            make_job("qlora", "QLoRA, checkpointing", 10 * GB, 18),
        ),
        cards=(answer("full", None), answer("lora", None), answer("qlora", 3072)),
        published=(published("one", 10.2), published("two", 9.6), published("old", 20, "compiled")),
        packages={"torch": "2.13.0"}, code_sha256="c" * 64,
    )  # fmt: skip


def test_what_was_written_is_read_and_a_changed_file_is_named(tmp_path: Path) -> None:
    path = write_book(tmp_path / "forecasts.json", make_book())
    before = path.read_bytes()
    found = read_book(path)
    assert found is not None
    assert found.jobs == make_book().jobs
    assert write_book(path, make_book()).read_bytes() == before
    content = json.loads(before)
    content["jobs"][0]["peak_bytes"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(StudyError, match="changed after it was written"):
        read_book(path)
    path.write_text("{")
    with pytest.raises(StudyError, match="truncated"):
        read_book(path)
    assert read_book(tmp_path / "none.json") is None


def test_errors_leave_out_what_cannot_be_compared() -> None:
    book = make_book()
    assert book.mean_error == pytest.approx(0.03)
    assert book.worst_error == pytest.approx(0.04)
    assert "2 published peaks" in forecast_tables.published_sentence(book)
    errors = forecast_tables.published_table(book).column("Error")
    assert [error for error in errors if error.endswith("(left out: compiled)")]


def test_forecast_claims_carry_the_worst_error_and_where_the_article_comes_true() -> None:
    findings = evaluate_claims([], forecast_tables.forecast_claims(make_book()))
    found = {f"{f.claim}.{f.part}": f for f in findings}
    lora = found["C2.lora"]
    assert lora.verdict == "differs"
    assert lora.how == "forecast: traced, LoRA, checkpointing, 1 × 2,048 tokens"
    assert "comes true at: LoRA, no checkpointing, 5 × 512 (55.0 GB)" in lora.ours
    assert "range 27.88 to 30.21" in lora.decided_by
    assert "(154 to 167)" in found["C2.full"].ours  # eight cards together
    assert found["C3.lora"].verdict == "inconclusive"
    assert found["C7.fits-24gb"].verdict == "reproduced"
    assert "rows of up to 3,072 tokens" in found["C7.fits-24gb"].ours
    assert all("forecast" in found[key].how for key in ("C3.full", "C3.qlora-on-top"))


def test_kinds_of_job_that_no_published_peak_bears_out_are_named() -> None:
    book = make_book()
    sentence = forecast_tables.published_sentence(book)
    assert "1 more are left out" in sentence
    assert "+100.0 to +100.0 %" in sentence
    assert "No case of QLoRA or of several cards is among those that count" in sentence
    more = [forecast_tables.memory_forecast(book, job).more for job in book.jobs]
    assert more[0] == "no published peak of several cards bears the range out"
    assert more[1:] == ["", "", "no published peak of QLoRA bears the range out"]
    case = book.published[0].model_copy(update={"case": "a 7B QLoRA, 2 cards"})
    tested = book.model_copy(update={"published": (case, *book.published[1:])})
    assert "No case of" not in forecast_tables.published_sentence(tested)
    assert not any(forecast_tables.memory_forecast(tested, job).more for job in book.jobs)


def test_without_a_book_claims_stay_open_and_the_report_says_what_to_run() -> None:
    assert forecast_tables.forecast_claims(None) == {}
    assert "make forecasts" in to_markdown(forecast_tables.book_section(None, []))


def test_what_fits_a_card_is_said_in_words() -> None:
    book = make_book()
    assert "QLoRA with checkpointing on up to 3,072 tokens" in forecast_tables.card_sentence(book)
    assert forecast_tables.card_table(book).rows[1][2] == "no: at least 28.0 GB"


def test_a_traced_case_goes_into_the_book_whole() -> None:
    case = next(c for c in CASES if c.changes["method"] == "qlora")
    made = forecast_case(case)
    job = book_forecast(case, made)
    assert job.total_bytes == made.peak_bytes
    assert sum(job.parts.values()) == job.peak_bytes
    assert job.job("padded").tokens > 4 * job.job("packed").tokens
    assert job.plain


def test_a_published_case_goes_into_the_book_with_its_error() -> None:
    case = next(c for c in load_published() if c.not_comparable is None)
    assert abs(describe_published(case).error) < 0.1


def test_the_smallest_24_gb_card_is_known() -> None:
    assert smallest_card(24).endswith("-24gb")


def test_shipped_forecasts_were_made_by_the_code_as_it_is():
    """`make forecasts` makes them again in half a minute; `make report` then shows them."""
    assert read_book(REFERENCE / "forecasts.json").code_sha256 == code_sha256(FORECASTING)
