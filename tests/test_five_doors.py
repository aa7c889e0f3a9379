"""Whether a job fits is said in three words, and by every door alike: word, bytes and rows.

Twelve jobs of three methods, two models and two cards are asked of the forecast, a plan, advice, a
rented machine and the notebook that chooses.
"""

from __future__ import annotations

import json
from functools import cache

import pytest
from taught import add_run, keep_plans
from typer.testing import CliRunner

from studylib.commands import gather
from studylib.commands.cli import app
from studylib.core.places import REFERENCE
from studylib.forecasting import card_forecasts, job_forecast
from studylib.forecasting.article_forecasts import load_published
from studylib.forecasting.calibration import learn_from
from studylib.forecasting.card_forecasts import foresee_jobs
from studylib.notebook_views.choose_views import fit_words
from studylib.planning.case import build_case
from studylib.planning.catalog import find_gpu
from studylib.planning.fit import ERROR_ONE_CARD, ERROR_SEVERAL_CARDS, judge_fit
from studylib.planning.plan import plan_study
from studylib.running import rental
from studylib.schema.forecast_book import read_book

MODELS = ("shape:llama-3.1-8b", "shape:smollm2-135m")
METHODS = ("full", "lora", "qlora")
CARDS = {"rtx4090-24gb": "RTX4090:1", "a100-80gb": "A100-80GB:1"}
GB = 10**9


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    rows = [{"prompt": f"{n}?", "completion": "yes"} for n in range(500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@cache
def ask(*words):
    """What a command says, as JSON."""
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout[result.stdout.index("{") :])


def from_plan(model, card, data):
    study = ["--profile", "custom", "--model", model, "--data", str(data), "--results",
             str(data.parent / "results"), "--gpu", CARDS[card]]  # fmt: skip
    runs = ask("plan", *study)["runs"]
    found = {}
    for run in runs:
        made = run["forecast"]
        if made:
            method = run["run_id"].split("--")[1].partition("-r")[0]
            found[method] = (made["fit"], made["peak_bytes"], made["least_bytes"])
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("card", CARDS)
def test_all_doors_say_the_same_of_a_job(model, card, data, monkeypatch):
    planned = from_plan(model, card, data)
    jobs, _, failed = foresee_jobs([model], METHODS, [find_gpu(card)], 1)
    assert not failed
    advised = {job.method: job for job in jobs}
    rented = rent_estimate(model, card, data)
    for method in METHODS:
        words = ["--model", model, "--method", method, "--gpu", card]
        made = ask("forecast", *words)
        fit = made["fits"][card]
        rows = (made["settings"]["micro_batch"], made["settings"]["seq_len"])
        assert rows == (1, 2048)
        said = (fit["word"], fit["shown_bytes"], fit["least_bytes"])
        assert planned[method] == said
        adviser = advised[method].fit
        assert (adviser.word, adviser.shown_bytes, adviser.least_bytes) == said
        assert fit_words(advised[method]).startswith(fit["word"])
        misfit = any(f"--{method}" in run_id for run_id in rented.misfits)
        assert misfit == (fit["word"] == "does not fit")
        assert bool(made["jobs"]) == bool(made["usd"]) == (fit["word"] != "does not fit")


def rent_estimate(model, card, data):
    """What `study rent` reckons with."""
    from studylib.commands.study_options import StudyOptions

    study = StudyOptions(profile="custom", model=model, data=str(data),
                         results=data.parent / "results")  # fmt: skip
    chosen = study.open(find_machine=lambda: job_forecast.rented_machine(card, 1))
    home = study.folder(chosen)
    assert plan_study(chosen, home).left
    return rental.estimate(chosen, home, find_gpu(card), 1)


def test_a_run_that_was_measured_on_a_card_teaches_every_door_and_each_says_so(
    data, tmp_path, monkeypatch
):
    results, card, model = tmp_path / "results", "a100-80gb", MODELS[1]
    add_run(results / "mine")
    keep_plans(results / "mine", {}, roofline=0.04)
    mine = tmp_path / data.name
    mine.write_text(data.read_text())
    taught = "by 1 run on NVIDIA A100 80GB SXM"
    asked = ["--model", model, "--method", "lora", "--gpu", card]
    made = ask("forecast", *asked, "--results", str(results))
    assert (made["efficiency"]["source"], made["context_source"]) == (taught, taught)
    study = ["--profile", "custom", "--model", model, "--data", str(mine), "--methods", "full,lora"]
    planned = ask("plan", *study, "--results", str(results), "--gpu", CARDS[card])["estimate"]
    assert planned["training"]["source"] == taught
    rented = rent_estimate(model, card, mine)
    assert rented.training.source == taught and taught in rented.assumptions
    monkeypatch.setattr(card_forecasts, "load_gpus", lambda: {card: find_gpu(card)})
    case = {"model": model, "change": "task", "tokens": 10**6, "methods": ("lora",)}
    for gpu in (card, None):
        found = gather.gather_evidence(build_case(**case, gpu=gpu), results)
        sources = {job.speed_source for job in found.forecasts if job.gpu == card}
        assert sources == {taught}
    unlike = ask("forecast", *asked, "--results", str(tmp_path / "nothing"))
    assert unlike["efficiency"]["source"] != taught
    learn_from(None)


@pytest.mark.parametrize(
    ("least", "gpus", "word"),
    [
        (94, 1, "fits"), (96, 1, "tight"), (104, 1, "tight"), (106, 1, "does not fit"),
        (86, 2, "fits"), (88, 2, "tight"), (112, 8, "tight"), (114, 8, "does not fit"),
    ],
)  # fmt: skip
def test_the_word_is_tight_within_the_stated_error(least, gpus, word):
    fit = judge_fit(2 * least * GB, least * GB, 100 * GB, gpus)
    assert (fit.word, fit.may_run) == (word, word != "does not fit")
    assert fit.headroom_bytes == (100 - least) * GB
    assert fit.shown_bytes == (least * GB if least > 100 else 100 * GB)


def test_the_stated_error_is_no_smaller_than_what_published_runs_show():
    book = read_book(REFERENCE / "forecasts.json")
    assert book.worst_error <= ERROR_ONE_CARD < ERROR_SEVERAL_CARDS
    assert len(load_published()) >= len(book.errors) > 5


def test_a_job_that_does_not_fit_has_no_hours_and_no_dollars_and_ones_own_is_priced():
    words = ["forecast", "--model", MODELS[1], "--gpu", "rtx4090-24gb", "--seq-len", "512"]
    text = CliRunner().invoke(app, [*words, "--tokens", "1000000", "--epochs", "2"]).stdout
    assert "Your training: 2.0M tokens" in text and "Alpaca" not in text
    assert text.splitlines()[2].startswith("rtx4090-24gb") and "loss in pieces" in text
    large = ["forecast", "--model", MODELS[0], "--method", "full", "--gpu", "rtx4090-24gb"]
    text = CliRunner().invoke(app, large).stdout
    assert "no hours and no dollars" in text and "$" not in text
