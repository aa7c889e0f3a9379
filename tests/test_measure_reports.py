"""What a report says of measures on held-out examples: known answers from records made here."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from record_factory import Factory, make_spec

from studylib.core.errors import StudyError
from studylib.core.sealed import write_sealed
from studylib.reporting.claims import evaluate_claims
from studylib.reporting.compose import build_report
from studylib.reporting.kept import read_kept
from studylib.reporting.measure_tables import (
    SHARE_HEADER,
    held_out_table,
    measured_headline,
    tell_finding,
)
from studylib.reporting.prose import answer_track
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study
from studylib.reporting.tables import headline_table
from studylib.schema.measures import MEASURES, MeasureFigure, figures_of
from studylib.schema.records import EvaluateBlock, file_sha256
from studylib.schema.settings import EvaluateSettings
from studylib.schema.tuning import TunePoint

ITEMS = 200
# What each method's loss is beside the base's, a token: LoRA keeps 90 % of full's gain.
LEARNED = {"base": 0.0, "full": 1.0, "lora": 0.9}


class MeasuredFactory(Factory):
    """Records whose runs were measured on held-out examples and asked nothing."""

    shift = 0

    def measured(self, method, seed=0, asked=("loss",)):
        spec = make_spec(method, seed=seed, retention=False)
        settings = EvaluateSettings(measures=asked)
        self.add(spec.model_copy(update={"evaluate": settings}))

    def answer(self, spec, task, share, weights):
        rng = np.random.default_rng(1)
        tokens = rng.integers(5, 40, ITEMS)
        level = rng.normal(3, 0.4, ITEMS) - LEARNED[spec.method.name]
        own = np.random.default_rng([spec.seed, *spec.method.name.encode()])
        level = level + 0.01 * own.standard_normal(ITEMS)
        ids = [f"item {i + self.shift}" for i in range(ITEMS)]
        return pd.DataFrame({
            "of": "held_out", "measure": "loss", "weights": weights, "item": ids, "group": ids,
            "value": level, "nats": level * tokens, "tokens": tokens, "bytes": 4 * tokens,
            "prompt": None, "answer": None, "given": None,
        })  # fmt: skip

    def add(self, spec, **words):
        record = super().add(spec, **words)
        folder = self.folder / "runs" / spec.run_id
        (folder / "items.parquet").rename(folder / "held_out.parquet")
        files = {**record.files, "held_out.parquet": file_sha256(folder / "held_out.parquet")}
        files.pop("items.parquet")
        marks = {k: v for k, v in record.fingerprint.items() if not k.startswith("evaluate.items")}
        marks |= {"held_out.items_sha256": "same", "held_out.part": "test"}
        whole = record.model_copy(update={"files": files, "fingerprint": marks})
        write_sealed(folder / "record.json", whole, over=True)
        return whole

    def evaluate(self, frames):
        frame = frames[0]
        figures = {
            m.key: (MeasureFigure(of="held_out", weights=frame["weights"].iloc[0], value=1.0,
                                  low=0.9, high=1.1, unit=m.unit, items=ITEMS, groups=ITEMS,
                                  counts={"left_out": 3}),)
            for m in figures_of("loss")
        }  # fmt: skip
        return EvaluateBlock(measure=self.measure(5.0, 10**9), scores=(), measures=figures)


@pytest.fixture
def made(tmp_path):
    factory = MeasuredFactory(tmp_path / "mine")
    factory.measured("base")
    for method in ("full", "lora"):
        for seed in (0, 1):
            factory.measured(method, seed)
    return factory


@pytest.fixture
def summary(made):
    return summarise_study(read_study(made.folder, planned=()))


def test_differences_and_shares_are_those_put_in(summary):
    [comparison] = summary.comparisons
    rows = {(f.measure.key, f.method): f for f in comparison.measured}
    assert list(dict.fromkeys(key for key, _ in rows)) == ["loss", "bits_per_byte"]
    full, lora = rows["loss", "full"], rows["loss", "lora"]
    assert full.gain.value == pytest.approx(-1.0, abs=0.01)
    assert lora.gap.value == pytest.approx(0.1, abs=0.01)
    assert lora.gap.low > 0.09 and lora.gap.high < 0.11  # paired: the items' spread is 0.4
    assert lora.estimate.high - lora.estimate.low > 0.05
    assert lora.share.value == pytest.approx(0.9, abs=0.01)
    assert lora.share.low < 0.9 < lora.share.high
    assert 0 < lora.detectable < 0.02
    assert full.gap is None and full.share is None
    bits = rows["bits_per_byte", "lora"]
    assert bits.gap.value == pytest.approx(lora.gap.value / np.log(2) / 4)


def test_report_opens_with_the_measure_and_explains_it(summary):
    report = build_report([summary], [], None, own_folder="")
    text = report.files["REPORT.md"].decode()
    assert (
        measured_headline(summary.comparisons[0]) in text
        and tell_finding(summary.comparisons[0]) in text
    )
    details = report.files["docs/report/details.md"].decode()
    assert "On held-out examples" in details and MEASURES["loss"].meaning in text
    assert (
        "95 % over examples and seeds" in text and "over subjects" not in text.split("## Words")[0]
    )
    assert "**Accuracy**" not in details and "tables/measures.csv" in report.files
    table = headline_table(summary.comparisons)
    assert MEASURES["loss"].header in table.header and "Accuracy (%) ↑" not in table.header
    assert [row[1] for row in table.rows] == ["base", "full", "LoRA r=16"]
    assert table.column(SHARE_HEADER)[2].startswith("89.9 ± ")
    assert MEASURES["exact"].meaning not in text
    table = held_out_table(summary.comparisons)
    assert len(table.rows) == 6 and all(len(row) == len(table.header) for row in table.rows)
    lines = report.files["tables/measures.csv"].decode().splitlines()
    assert len(lines) == 1 + 2 * (1 + 2 + 4)


class BothFactory(MeasuredFactory):
    """Runs that were measured on held-out examples and asked questions, all of them guessed."""

    def add(self, spec, **words):
        record = Factory.add(self, spec, knows=0.26, keeps=0.9)
        folder = self.folder / "runs" / spec.run_id
        weights = record.evaluate.scores[0].weights
        MeasuredFactory.answer(self, spec, "", 0, weights).to_parquet(folder / "held_out.parquet")
        files = {**record.files, "held_out.parquet": file_sha256(folder / "held_out.parquet")}
        write_sealed(folder / "record.json", record.model_copy(update={"files": files}), over=True)

    def answer(self, spec, task, share, weights):
        return Factory.answer(self, spec, task, share, weights)

    def evaluate(self, frames):
        [figure] = MeasuredFactory.evaluate(self, frames).measures["loss"]
        block = Factory.evaluate(self, frames)
        return block.model_copy(update={"measures": {m.key: (figure,) for m in figures_of("loss")}})


def test_the_measure_that_chose_the_rates_judges_and_guessed_questions_do_not(tmp_path):
    factory = BothFactory(tmp_path / "both")
    for method in ("base", "full", "lora"):
        factory.measured(method)
    summary = summarise_study(read_study(factory.folder, planned=()))
    [comparison] = summary.comparisons
    text = answer_track(summary, "main")[0]
    assert text.startswith("**Full fine-tuning did better than LoRA r=16 (held-out loss).**")
    assert "No clear difference" not in text and "Guessing gives 25.0 %" in text
    table = headline_table([comparison])
    heads = (MEASURES["loss"].header, "Accuracy (%) ↑")
    assert [table.header.index(head) for head in heads] == sorted(map(table.header.index, heads))
    [kept] = [k for k in read_kept(comparison) if not k.is_full]
    assert kept.share == pytest.approx(0.9, abs=0.01)
    share = next(f for f in evaluate_claims([summary]) if (f.claim, f.part) == ("C8", "small"))
    assert share.measured.value == pytest.approx(90, abs=1)
    gap = next(f for f in evaluate_claims([summary]) if (f.claim, f.part) == ("C4", "lora"))
    assert gap.measured.unit == "pp", "a claim on right answers is judged by them"


def test_report_without_measures_speaks_of_none(tmp_path):
    folder = Factory(tmp_path / "cpu").study(models=("ladder:0.4m",))
    report = build_report(
        [summarise_study(read_study(folder, planned=()))], [], None, own_folder=""
    )
    text = report.files["REPORT.md"].decode()
    assert "held-out" not in text.lower() and "tables/measures.csv" not in report.files


def test_a_full_fine_tuning_that_learned_nothing_bears_no_comparison(made, monkeypatch):
    monkeypatch.setitem(LEARNED, "full", 0.0)
    monkeypatch.setitem(LEARNED, "lora", 0.0)
    other = MeasuredFactory(made.folder.parent / "other")
    for method in ("base", "full", "lora"):
        other.measured(method)
    [comparison] = summarise_study(read_study(other.folder, planned=())).comparisons
    assert "cannot say" in measured_headline(comparison)
    assert all(found.share is None for found in comparison.measured)


def test_no_share_is_taken_of_a_loss_that_full_fine_tuning_made_worse(made, monkeypatch):
    monkeypatch.setitem(LEARNED, "full", -0.5)
    monkeypatch.setitem(LEARNED, "lora", -0.2)
    other = MeasuredFactory(made.folder.parent / "worse")
    for method in ("base", "full", "lora"):
        other.measured(method)
    [comparison] = summarise_study(read_study(other.folder, planned=())).comparisons
    assert all(found.share is None for found in comparison.measured)
    text = tell_finding(comparison)
    assert "worsened" in text and "ended better" in text and "of its gain" not in text
    assert "full shows no gain" in held_out_table([comparison]).column(SHARE_HEADER)


def test_seeds_on_other_examples_are_not_averaged(made):
    made.shift = 5
    made.measured("lora", 2)
    [comparison] = summarise_study(read_study(made.folder, planned=())).comparisons
    with pytest.raises(StudyError, match="other examples"):
        _ = comparison.measured


@pytest.mark.parametrize(("key", "best"), [("loss", 1e-3), ("labels", 1e-2)])
def test_best_rate_of_a_sweep_follows_the_measures_direction(key, best):
    values = {1e-4: 0.6, 1e-3: 0.2, 1e-2: 0.9}
    points = [
        TunePoint(learning_rate=rate, questions=50, correct=None, last_loss=1.0, seconds=1.0,
                  measure=key, value=value)
        for rate, value in values.items()
    ]  # fmt: skip
    assert max(points, key=lambda point: point.merit).learning_rate == best
    assert not any(point.is_out for point in points)
    broken = TunePoint(learning_rate=1.0, questions=0, correct=None, last_loss=None, seconds=1.0)
    assert broken.is_out and broken.text() == "diverged"
