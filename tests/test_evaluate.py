"""Every item is kept, by its content; scores are counts of items; any task with choices will do."""

from __future__ import annotations

import contextlib
import json
import math

import pandas as pd
import pytest
import torch

from studylib.core.errors import StudyError
from studylib.modelling.methods import attach
from studylib.modelling.models import load_model
from studylib.schema.settings import (
    EvaluateSettings,
    LoraSettings,
    MethodSettings,
    ModelRef,
    parse_method,
)
from studylib.scoring.compare_lm import compare_wrappers
from studylib.scoring.evaluate import (
    NotANumber,
    ask_questions,
    build_lm,
    choose_all,
    evaluate_model,
    hash_column,
    score_items,
)
from studylib.scoring.tasks import build_tasks

ALMANAC = EvaluateSettings(
    questions="almanac:new", retention="almanac:old", scoring="text", shots=0, limit=2
)


@pytest.fixture(scope="module")
def ladder():
    return load_model(ModelRef.parse("ladder:0.4m"), MethodSettings(name="base"), "fp32")


def test_scores_count_the_items_that_are_kept(ladder):
    answers = evaluate_model(ladder.model, ladder.tokenizer, ALMANAC, "fp32 weights")
    scores, items = answers.scores, answers.items
    assert (answers.engine, answers.prompts_cut) == ("shared prefixes", 0)
    assert [score.task for score in scores] == ["questions", "retention"]
    for score in scores:
        rows = items[items["task"] == score.task]
        assert score.questions == len(rows) == 32
        assert score.correct == rows["correct"].sum()
        assert sum(n for n, _ in score.by_subject.values()) == score.questions
        assert score.chance == 0.25
    assert (items["correct"] == (items["chosen"] == items["answer"])).all()
    assert scores[1].accuracy > 0.9, "the base knows the old half by heart"


def test_lm_evals_own_path_gives_the_same_items(ladder):
    frames = [
        ask_questions(
            build_lm(ladder.model, ladder.tokenizer, stock=stock),
            "questions",
            "almanac:new",
            ALMANAC,
        )
        for stock in (True, False)
    ]
    assert (frames[0]["chosen"] == frames[1]["chosen"]).all()
    assert (frames[0]["item"] == frames[1]["item"]).all()
    assert hash_column(frames[0], ["item"]) == hash_column(frames[1], ["item"])


def test_trained_embeddings_are_scored_by_both_paths_alike():
    method = parse_method("lora-embed", LoraSettings(rank=4))
    loaded = load_model(ModelRef.parse("ladder:0.4m"), method, "fp32")
    model = attach(loaded.model, method)
    frames = [
        ask_questions(
            build_lm(model, loaded.tokenizer, stock=stock), "questions", "almanac:new", ALMANAC
        )
        for stock in (True, False)
    ]
    assert (frames[0]["chosen"] == frames[1]["chosen"]).all()


def test_any_lm_eval_task_with_choices_is_asked(ladder, tmp_path):
    docs = [
        {"q": "The colour is", "opts": ["red", "blue", "green"], "gold": i % 3} for i in range(6)
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps(d) for d in docs))
    (tmp_path / "mine.yaml").write_text(
        "task: my_colours\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'docs.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\n"
        "doc_to_choice: '{{opts}}'\ndoc_to_target: gold\n"
    )
    source = f"tasks:my_colours@{tmp_path}"
    settings = EvaluateSettings(questions=source, shots=0)
    items = ask_questions(build_lm(ladder.model, ladder.tokenizer), "questions", source, settings)
    assert len(items) == 6
    assert items["choices"].map(len).tolist() == [3] * 6
    assert score_items(items.assign(weights="w")).chance == pytest.approx(1 / 3)
    with pytest.raises(StudyError, match="my_colours"):
        ask_questions(None, "questions", f"tasks:my_color@{tmp_path}", settings)


def test_item_hash_depends_on_content_and_order():
    items = pd.DataFrame({"item": ["a", "b"], "task": ["t", "t"]})
    assert hash_column(items, ["item"]) != hash_column(items[::-1], ["item"])


# What is not a number --------------------------------------------------------------------------


def load_tiny(folder):
    return load_model(ModelRef.parse(f"path:{folder}"), MethodSettings(name="base"), "fp32")


def plant(model, fault):
    """Break a model: one weight is NaN, all logits are alike, or one token is impossible."""
    if fault == "one weight":
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[3, 5] = math.nan
    if fault == "equal":
        with torch.no_grad():
            model.model.norm.weight.zero_()
    if fault == "impossible":
        model.lm_head.register_forward_hook(
            lambda module, given, logits: logits.index_fill(-1, torch.arange(30, 1000), -math.inf)
        )


FAULTS = {
    "one weight": r"fp32 weights: (\d+) of \1 questions have log-likelihoods that are not finite",
    "impossible": r"\d+ of 32 questions have log-likelihoods that are not finite",
    "equal": "all choices are equally likely in all of 32 questions",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_model_has_no_accuracy(tiny_folder, fault):
    loaded = load_tiny(tiny_folder)
    whole = evaluate_model(loaded.model, loaded.tokenizer, ALMANAC, "fp32 weights")
    assert whole.scores[0].questions == 32 and whole.undecided == 0, "the control"
    plant(loaded.model, fault)
    with pytest.raises(NotANumber, match=FAULTS[fault]):
        evaluate_model(loaded.model, loaded.tokenizer, ALMANAC, "fp32 weights")


@pytest.mark.parametrize("fault", FAULTS)
def test_both_ways_of_scoring_refuse_a_broken_model_before_they_compare(tiny_folder, fault):
    loaded = load_tiny(tiny_folder)
    plant(loaded.model, fault)
    tasks = build_tasks("almanac:new", ALMANAC)

    def build(stock):
        return lambda: build_lm(loaded.model, loaded.tokenizer, stock=stock)

    with pytest.raises(NotANumber, match=FAULTS[fault].rpartition("weights: ")[2]):
        compare_wrappers(build(True), build(False), tasks, limit=2)


@pytest.mark.parametrize("words", [(), ("--stock",), ("--compare",)])
def test_evaluate_prints_no_accuracy_of_a_broken_model(study, tiny_folder, tmp_path, words):
    docs = [{"subject": f"sums {n % 2}", "question": f"{n} + 1 =", "answer": n % 4,
             "choices": ["1", "2", "3", "4"]} for n in range(4)]  # fmt: skip
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, docs)))
    asked = ("--mmlu", tmp_path, "--shots", 0, *words)
    if not words:
        code, out, err = study("evaluate", "--model", f"path:{tiny_folder}", *asked)
        assert code == 0 and "accuracy: " in out and "undecided: 0" in out, err
    loaded = load_tiny(tiny_folder)
    plant(loaded.model, "one weight")
    loaded.model.save_pretrained(tmp_path / "broken")
    loaded.tokenizer.save_pretrained(tmp_path / "broken")
    code, out, err = study("evaluate", "--model", f"path:{tmp_path / 'broken'}", *asked)
    assert (code, out) == (2, "")
    assert "4 of 4 questions have log-likelihoods that are not finite" in err
    assert "Traceback" not in err


def test_an_item_without_a_likeliest_choice_is_wrong_and_counted(tiny_folder, monkeypatch):
    """A maximum over equal values would take the first choice, and be right by chance."""
    loaded = load_tiny(tiny_folder)
    lm = build_lm(loaded.model, loaded.tokenizer)
    score = lm.loglikelihood
    asked = []

    def score_some_alike(requests, **more):
        asked.extend(requests)
        return [(-1.0, False) if n < 40 else answer
                for n, answer in enumerate(score(requests, **more))]  # fmt: skip

    monkeypatch.setattr(lm, "loglikelihood", score_some_alike)
    items = ask_questions(lm, "questions", "almanac:new", ALMANAC).assign(weights="w")
    assert len(asked) == 4 * len(items)
    assert (items["chosen"] == -1).sum() == 10
    assert not items[items["chosen"] == -1]["correct"].any()
    decided = items[items["chosen"] >= 0]
    assert (decided["correct"] == (decided["chosen"] == decided["answer"])).all()
    assert score_items(items).questions == len(items) == 32


@pytest.mark.parametrize(
    ("items", "result"),
    [
        ([[-2.0, -1.0, -1.0]], [1]),  # the first of the best, as lm-eval takes it
        ([[-1.0, -1.0], [-2.0, -1.0]], [-1, 1]),
        ([[-3.0]], [0]),
        ([[-1.0, -2.0], [math.nan, -1.0]], "1 of 2 questions"),
        ([[-1.0, math.nan], [-1.0, -2.0]], "1 of 2 questions"),
        ([[-1.0, -math.inf]], "not finite"),
        ([[-1.0, -1.0], [-2.0, -2.0]], "equally likely in all of 2"),
        ([], []),
    ],
)
def test_choices_are_the_likeliest_or_none(items, result):
    refused = isinstance(result, str)
    with pytest.raises(NotANumber, match=result) if refused else contextlib.nullcontext():
        assert choose_all(items) == result
