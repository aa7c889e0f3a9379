"""A sweep trains every rate from the same start and asks only what no result asks."""

from __future__ import annotations

import json
import weakref

import pytest

from studylib.commands.cli_tune import begun
from studylib.core.errors import StudyError
from studylib.inputs.almanac import build_almanac, questions
from studylib.inputs.questions import count_overlap, question_id, read_validation
from studylib.planning.stale import refuse_stale_sweep
from studylib.schema.profile import build_profile
from studylib.schema.tuning import write_sweep
from studylib.scoring.evaluate import NotANumber
from studylib.training import tune
from studylib.training.tune import run_sweep

TRACK = {
    "name": "t", "question": "?", "models": ["ladder:0.4m"], "methods": ["lora"], "seeds": [0],
    "data": {"source": "almanac:new", "template": "plain", "facts": 80},
    "evaluate": {"questions": "almanac:new", "facts": 80, "scoring": "text", "shots": 0},
    "train": {"steps": 8, "seq_len": 128},
    "tune": {"learning_rates": {"lora": [1e-4, 1e-3, 5e-3]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def curve():
    """(a sweep's record, for each of its rates whether earlier rates' models were still there)."""
    models, alive, bring_in = [], [], tune.bring_in

    def watch(*args):
        alive.append([model() is not None for model in models])
        loaded, model = bring_in(*args)
        models.append(weakref.ref(model))
        return loaded, model

    [(spec, rates)] = build_profile(TRACK, "test").sweeps()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "bring_in", watch)
        return run_sweep(spec, rates, limit=2, extend=1), alive


def test_sweep_keeps_the_whole_curve_and_extends_at_an_edge(curve):
    [(spec, rates)] = build_profile(TRACK, "test").sweeps()
    record = curve[0]
    tried = [point.learning_rate for point in record.points]
    assert set(rates) <= set(tried) and tried == sorted(tried)
    assert len(tried) == 3 + record.extended
    again = run_sweep(spec, rates, limit=2, earlier=record)
    assert again.points == record.points and again.fingerprint == record.fingerprint


def test_a_rates_model_is_gone_when_the_next_one_is_loaded(curve):
    """With its optimizer's states it would lie on the card beside the next one and its training."""
    alive = curve[1]
    assert [len(models) for models in alive] == list(range(len(curve[0].points)))
    assert not any(map(any, alive))


def test_sweep_that_was_ended_goes_on_after_its_last_rate_and_has_the_same_points(curve, tmp_path):
    class Ended(Exception):
        pass

    def end_at(rate):
        if rate == rates[2]:
            raise Ended

    [(spec, rates)] = build_profile(TRACK, "test").sweeps()
    path, work = tmp_path / "test" / "tune" / "a.json", tmp_path / "work"
    with pytest.raises(Ended):
        run_sweep(spec, rates, 2, on_point=end_at, keep=lambda so_far: write_sweep(work, so_far))
    path = path.with_name(next(work.glob("*.json")).name)
    left = begun(spec, 2, work, path)
    assert [point.learning_rate for point in left.points] == list(rates[:2])
    tried = []
    whole = run_sweep(spec, rates, 2, earlier=left, on_point=tried.append)
    assert tried == [rates[2]] and [p.learning_rate for p in whole.points] == list(rates)
    unbroken = {point.learning_rate: point for point in curve[0].points}
    for point in whole.points:
        same = unbroken[point.learning_rate]
        assert (point.correct, point.last_loss) == (same.correct, same.last_loss)
    assert begun(spec, 1, work, path) is None
    longer = spec.model_copy(update={"train": spec.train.model_copy(update={"steps": 9})})
    assert begun(longer, 2, work, path) is None
    assert begun(spec, 2, tmp_path, path) is None
    write_sweep(work, left.model_copy(update={"validation": "loss on the validation part"}))
    assert begun(spec, 2, work, path) is None


def test_sweep_of_other_weights_or_examples_is_not_gone_on_with(tmp_path):
    place = tmp_path / "test" / "tune" / "sweep.json"
    file = tmp_path / "examples.jsonl"
    row = {"instruction": "One and one?", "output": "two"}
    file.write_text("".join(json.dumps(row | {"input": str(n)}) + "\n" for n in range(40)))
    track = TRACK | {"data": {"source": str(file)}, "train": {"steps": 2, "seq_len": 256}}
    [(spec, rates)] = build_profile(track, "test").sweeps()
    record = run_sweep(spec, rates[:2], limit=1)
    refuse_stale_sweep(spec, record, place)
    other = record.fingerprint | {"model.sha256": "0" * 64}
    with pytest.raises(StudyError, match="other weights"):
        refuse_stale_sweep(spec, record.model_copy(update={"fingerprint": other}), place)
    other = record.fingerprint | {"data.sha256": "0" * 64}
    with pytest.raises(StudyError, match="other examples"):
        refuse_stale_sweep(spec, record.model_copy(update={"fingerprint": other}), place)


def test_a_rate_whose_answers_are_not_numbers_is_out(monkeypatch):
    def score(*asked, evaluate=tune.evaluate_model):
        if len(scored) == 1:
            scored.append(None)
            raise NotANumber("2 of 32 questions")
        scored.append(evaluate(*asked))
        return scored[-1]

    scored = []
    monkeypatch.setattr(tune, "evaluate_model", score)
    [(spec, _)] = build_profile(TRACK, "test").sweeps()
    record = run_sweep(spec, [1e-3, 2e-3], limit=2)
    assert [point.correct is None for point in record.points] == [False, True]
    assert record.points[1].accuracy is None and record.points[1].last_loss is None
    assert record.best.learning_rate == 1e-3


def test_validation_asks_nothing_that_the_test_asks():
    almanac = build_almanac()
    for half, language in (("new", "native"), ("old", "shifted")):
        parts = [
            {question_id(q) for q in questions(almanac, half, language=language, part=part)}
            for part in ("test", "validation")
        ]
        assert parts[0] and parts[1] and not parts[0] & parts[1]


def test_validation_settings_change_the_part_and_nothing_that_scores():
    spec = build_profile(TRACK, "test").runs()[0]
    asked = spec.evaluate.for_validation(3)
    assert (asked.part, asked.limit, asked.retention) == ("validation", 3, None)
    assert (asked.scoring, asked.shots) == (spec.evaluate.scoring, spec.evaluate.shots)


def test_question_in_both_splits_is_dropped_and_counted(tmp_path):
    doc = {"subject": "s", "question": "What?", "choices": ["a", "b", "c", "d"], "answer": 1}
    other = {**doc, "question": "Which?"}
    for name, docs in (("test", [doc]), ("val", [doc, other])):
        lines = "\n".join(json.dumps(d) for d in docs)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    kept, dropped = read_validation(tmp_path, [doc])
    assert (kept, dropped) == ([other], 1)
    assert count_overlap(str(tmp_path)) == 1


def test_real_mmlu_has_validation_questions_that_its_test_asks(shared):
    assert count_overlap(str(shared / "data" / "mmlu")) > 0
