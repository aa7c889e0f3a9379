"""The verdict on a reader's own study: what decides it, and that all places say the same."""

from __future__ import annotations

import pytest
from record_factory import Factory, make_spec
from test_measure_reports import LEARNED, MeasuredFactory

from studylib.core.item_stats import item_spread, items_to_show
from studylib.planning.sizing import round_up
from studylib.reporting.own_study import compose_own
from studylib.reporting.report import opening_of
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study
from studylib.reporting.verdict import read_figures, tell_verdict, verdicts
from studylib.schema.differences import find_changes
from studylib.schema.settings import EvaluateSettings


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Makes a study of loss in which each method learned a share of what full did."""

    def make(name="mine", seeds=(0, 1, 2), methods=("base", "full", "lora"), **learned):
        for method, share in learned.items():
            monkeypatch.setitem(LEARNED, method, share)
        factory = MeasuredFactory(tmp_path / name)
        for method in methods:
            for seed in (0,) if method == "base" else seeds:
                factory.measured(method, seed)
        return factory.folder

    return make


def judge(folder, margin=2.0):
    specs = [s.run for s in read_study(folder, planned=()).records]
    planned = [
        spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update={"margin": margin})})
        for spec in specs
    ]
    return summarise_study(read_study(folder, planned=planned))


@pytest.mark.parametrize(
    ("kept", "kind"),
    [(0.995, "enough"), (1.02, "enough"), (0.9, "not enough"), (0.9798, "open")],
)
def test_share_of_fulls_gain_decides_by_its_interval(study, kept, kind):
    [found] = verdicts(judge(study(lora=kept)))
    assert found.decision.kind == kind
    lost = f"{abs(100 * (1 - kept)):.0f}"
    assert ("more than full" in found.sentence) == (kept > 1)
    assert lost in found.sentence and "95 % interval" in found.sentence


def test_margin_is_the_readers_and_needs_no_other_runs(study):
    folder = study(lora=0.9)
    kinds = [verdicts(judge(folder, margin))[0].decision.kind for margin in (5, 20)]
    assert kinds == ["not enough", "enough"]
    assert "within the 20 % asked for" in tell_verdict(judge(folder, 20))


def test_open_verdict_names_what_would_decide_it(study):
    [found] = verdicts(judge(study(lora=0.9798)))
    assert found.decision.times_items > 1
    assert "cannot say yet" in found.sentence and "more held-out examples" in found.sentence


def test_open_verdict_names_how_many_items_show_the_margin(study):
    """Of one seed, where items alone decide; a margin that these items show is not spoken of."""
    folder = study(seeds=(0,), lora=0.9798)
    [comparison] = judge(folder).comparisons
    kept = read_figures(comparison, comparison.row("lora"))[0].kept
    spread = item_spread(kept)
    for margin in (100 * (1 - kept.value), 100 * (1 - kept.value) + 0.01):
        [found] = verdicts(judge(folder, margin))
        need = items_to_show(spread, margin / 100)
        words = f"about {round_up(need):,} held-out examples show a loss as large"
        assert found.decision.kind == "open"
        assert (words in found.sentence) == (need > kept.clusters)


@pytest.mark.parametrize(("full", "word"), [(0.0, "gained nothing"), (-0.5, "made it worse")])
def test_nothing_is_judged_where_full_gained_nothing(study, full, word):
    [found] = verdicts(judge(study(full=full, lora=0.0)))
    assert found.decision is None and "cannot be judged" in found.sentence
    assert word in found.sentence
    assert "held-out examples × 3 seeds" in found.sentence and "would have shown" in found.sentence
    assert "train for more steps" in found.sentence


def test_without_full_there_is_nothing_to_compare_with(study):
    [found] = verdicts(judge(study(methods=("base", "lora"))))
    assert found.decision is None and "nothing to be compared with" in found.sentence


def test_questions_judge_by_points_where_nothing_is_measured(tmp_path):
    folder = Factory(tmp_path / "cpu").study(models=("ladder:0.4m",))
    assert [v.decision.kind for v in verdicts(judge(folder))] == ["not enough"] * 2
    assert [v.decision.kind for v in verdicts(judge(folder, 30))] == ["enough"] * 2
    assert tell_verdict(judge(folder)).startswith("On your questions LoRA r=16 loses ")


def test_runs_that_ended_badly_are_named_and_judge_nothing(tmp_path):
    factory = Factory(tmp_path / "cpu")
    for method in ("base", "full"):
        factory.add(make_spec(method))
    factory.add(make_spec("qlora"), status="out of memory", reason="while training")
    [found] = verdicts(summarise_study(read_study(factory.folder, planned=())))
    assert found.decision is None and "out of memory" in found.sentence


def test_untuned_rates_are_the_first_thing_said(study):
    folder = study(lora=0.9)
    assert tell_verdict(judge(folder)).startswith("On your task ")
    summary = judge(folder)
    records = [r.model_copy(update={"run": r.run.model_copy(update={
        "learning_rate_source": "the method's default, not tuned"})})
        for r in summary.study.records]  # fmt: skip
    from dataclasses import replace

    plain = replace(summary, study=replace(summary.study, records=tuple(records)))
    assert tell_verdict(plain).startswith("Learning rates are not tuned")


def test_report_opens_with_the_verdict_and_leaves_the_article_out(study, tmp_path):
    summary = judge(study(lora=0.9))
    report = compose_own(summary, [])
    path = tmp_path / "REPORT.md"
    path.write_bytes(report.files["REPORT.md"])
    assert opening_of(path) == tell_verdict(summary)
    text = path.read_text(encoding="utf-8")
    assert "article" not in text.lower() and "13B" not in text
    assert len(text) < 12_000
    other = tmp_path / "OTHER.md"
    other.write_text("# PEFT or full fine-tuning?\n")
    assert opening_of(other) == ""


def test_margin_leaves_old_records_as_they_were():
    spec = make_spec("full")
    assert spec.evaluate.margin == EvaluateSettings(measures=("loss",)).margin
    other = spec.evaluate.model_copy(update={"margin": 9.0})
    assert find_changes(spec.model_copy(update={"evaluate": other}), spec) == []
