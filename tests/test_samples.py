"""A few held-out prompts, the same for every model, answered greedily within bounds."""

from __future__ import annotations

import json

import pytest
from test_held_out import ROWS, greedy_alone, make_spec, write_rows

from studylib.inputs.data import prompt_of
from studylib.modelling.models import load_model
from studylib.schema.profile import LoraSettings, ModelRef, parse_method
from studylib.scoring import score
from studylib.scoring.evaluate import build_lm
from studylib.scoring.held_out import read_held_out
from studylib.scoring.measures import item_id
from studylib.scoring.score import sample_answers, score_model


@pytest.fixture(scope="module")
def ladder():
    base = parse_method("base", LoraSettings())
    return load_model(ModelRef.parse("ladder:0.4m"), base, "fp32")


def sample(ladder, spec):
    return sample_answers(build_lm(ladder.model, ladder.tokenizer), ladder.tokenizer, spec, "w")


def test_prompts_are_those_of_the_lowest_hash_and_answers_those_of_each_alone(ladder, tmp_path):
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS), samples=4)
    found = sample(ladder, spec)
    held = {item_id(example): example for example in read_held_out(spec)}
    assert set(found["item"]) == set(sorted(held)[:4])
    tokenizer, stops = ladder.tokenizer, {ladder.tokenizer.eos_token_id}
    for row in found.itertuples():
        example = held[row.item]
        assert (row.prompt, row.answer) == (example["instruction"], example["output"])
        prompt = tokenizer(prompt_of(example, "plain")[0])["input_ids"]
        most = min(score.MOST_TOKENS, ladder.model.config.max_position_embeddings // 2)
        alone = greedy_alone(ladder.model, prompt, stops, most)
        assert row.given == tokenizer.decode(alone, skip_special_tokens=True)
        assert row.finished == (len(alone) < most)


def test_plain_text_is_continued_from_its_middle(ladder, tmp_path):
    texts = [{"text": f"The colour of thing {n} is dark red and its number is {n}."}
             for n in range(60)]  # fmt: skip
    found = sample(ladder, make_spec(write_rows(tmp_path / "texts.jsonl", texts), samples=3))
    assert len(found) == 3
    for row in found.itertuples():
        whole = row.prompt + row.answer
        assert any(whole.strip() in text["text"] for text in texts) and row.prompt and row.answer


def test_who_said_what_is_shown_of_a_conversation():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
             {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]  # fmt: skip
    assert score.show_prompt({"messages": turns}) == "user: a\nassistant: b\nuser: c"
    assert score.show_prompt({"messages": turns[:2]}) == "a"


def test_answers_are_a_table_of_the_run_and_kept_only_where_they_are_asked_for(ladder, tmp_path):
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS), samples=2)
    tables = score_model(ladder.model, ladder.tokenizer, spec, "w").tables()
    assert list(tables) == ["held_out.parquet", "answers.parquet"]
    assert len(tables["answers.parquet"]) == 2 and set(tables["answers.parquet"]["weights"]) == {
        "w"
    }
    plain = make_spec(spec.data.source)
    assert "answers.parquet" not in score_model(ladder.model, ladder.tokenizer, plain, "w").tables()
    assert json.loads(plain.evaluate.model_dump_json())["samples"] == 0
