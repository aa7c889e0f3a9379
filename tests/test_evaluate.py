"""Every item is kept, by its content; scores are counts of items; any task with choices will do."""

from __future__ import annotations

import json

import pandas as pd
import pytest

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
from studylib.scoring.evaluate import ask, build_lm, evaluate_model, hash_column, score_items

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
        ask(
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
        ask(build_lm(model, loaded.tokenizer, stock=stock), "questions", "almanac:new", ALMANAC)
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
    items = ask(build_lm(ladder.model, ladder.tokenizer), "questions", source, settings)
    assert len(items) == 6
    assert items["choices"].map(len).tolist() == [3] * 6
    assert score_items(items.assign(weights="w")).chance == pytest.approx(1 / 3)
    with pytest.raises(StudyError, match="my_colours"):
        ask(None, "questions", f"tasks:my_color@{tmp_path}", settings)


def test_item_hash_depends_on_content_and_order():
    items = pd.DataFrame({"item": ["a", "b"], "task": ["t", "t"]})
    assert hash_column(items, ["item"]) != hash_column(items[::-1], ["item"])
