"""Measures on held-out examples: each against a plain computation that shares none of its code."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from itertools import pairwise

import pandas as pd
import pytest
import torch
from small_runs import small_run

from studylib.core.errors import StudyError
from studylib.inputs.data import IGNORED, prompt_of, tokenise
from studylib.modelling.models import load_model
from studylib.schema.measures import MEASURES, figures_of
from studylib.schema.profile import (
    LoraSettings,
    ModelRef,
    parse_method,
)
from studylib.scoring import held_out
from studylib.scoring.answer_loss import count_text_bytes, learned_spans, measure_losses
from studylib.scoring.evaluate import NotANumber, build_lm
from studylib.scoring.greedy import answer_all
from studylib.scoring.held_out import measure_held_out, take
from studylib.scoring.measures import MEASURED, last_number, normalise

COLOURS = ["red", "dark red", "green", "dark green", "blue"]
ROWS = [
    {"instruction": f"What colour is thing {n}?", "input": "", "output": COLOURS[n % 5]}
    for n in range(120)
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_spec(source, model="ladder:0.4m", measures=("loss",), **evaluate):
    data = {"source": source, "template": "plain", "held_out": 12}
    asked = {"measures": measures, **evaluate}
    return small_run(model, "base", 0.0, data=data, evaluate=asked, hardware={"gpus": 0},
                     steps=4, seq_len=128)  # fmt: skip


@pytest.fixture(scope="module")
def ladder():
    base = parse_method("base", LoraSettings())
    return load_model(ModelRef.parse("ladder:0.4m"), base, "fp32")


@pytest.fixture(scope="module")
def lm(ladder):
    return build_lm(ladder.model, ladder.tokenizer)


def loss_alone(model, tokens):
    """-log p of the learned tokens of one example, read alone, in one plain call."""
    ids = torch.tensor([tokens["input_ids"]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return -sum(
        float(log_probs[i - 1, tokens["input_ids"][i]])
        for i in range(1, len(tokens["labels"]))
        if tokens["labels"][i] != IGNORED
    )


def test_loss_is_that_of_each_example_alone(ladder, lm):
    examples = tokenise(ROWS[:20], "plain", ladder.tokenizer, 128)
    for tokens, loss in zip(examples, measure_losses(lm, ladder.tokenizer, examples), strict=True):
        assert loss.nats == pytest.approx(loss_alone(ladder.model, tokens), rel=1e-5)
        assert loss.tokens == sum(label != IGNORED for label in tokens["labels"])


def test_loss_of_a_real_model_on_real_instructions(shared):
    path = shared / "models" / "stories260k"
    if not path.is_dir():
        pytest.skip("needs the real model in ../shared, which is not here")
    base = parse_method("base", LoraSettings())
    loaded = load_model(ModelRef.parse(f"path:{path}"), base, "fp32")
    rows = json.loads((shared / "data" / "instruct" / "instructions_1100.json").read_text())[:12]
    examples = [t for t in tokenise(rows, "alpaca", loaded.tokenizer, 512) if t is not None]
    losses = measure_losses(build_lm(loaded.model, loaded.tokenizer), loaded.tokenizer, examples)
    assert len(losses) > 5
    for tokens, loss in zip(examples, losses, strict=True):
        assert loss.nats == pytest.approx(loss_alone(loaded.model, tokens), rel=1e-5)


def test_every_turn_of_a_conversation_counts_and_what_stands_between_does_not(ladder, lm):
    ids = tokenise(ROWS[:1], "plain", ladder.tokenizer, 128)[0]["input_ids"] * 2
    labels = [IGNORED] * len(ids)
    labels[3:5], labels[8:11] = ids[3:5], ids[8:11]
    assert learned_spans(labels) == [(3, 5), (8, 11)]
    [loss] = measure_losses(lm, ladder.tokenizer, [{"input_ids": ids, "labels": labels}])
    assert loss.tokens == 5
    whole = loss_alone(ladder.model, {"input_ids": ids, "labels": labels})
    assert loss.nats == pytest.approx(whole, rel=1e-5)


def test_first_token_of_a_text_is_given_and_not_predicted():
    assert learned_spans([7, 8, 9]) == [(1, 3)]
    assert learned_spans([7]) == [] and learned_spans([IGNORED, IGNORED]) == []


def test_bytes_are_those_of_the_text(ladder):
    from transformers import AutoTokenizer

    tokenizer = ladder.tokenizer
    assert isinstance(tokenizer, AutoTokenizer) or tokenizer.eos_token_id is not None
    ids = tokenizer("the colour of the thing is red")["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert count_text_bytes(tokenizer, ids, 0, len(ids)) == len(text.encode())
    parts = [count_text_bytes(tokenizer, ids, a, b) for a, b in pairwise(range(len(ids) + 1))]
    assert sum(parts) == len(text.encode())


def test_bytes_of_a_byte_level_vocabulary_are_exact_within_a_character():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer("Çhengey €")["input_ids"]
    assert len(ids) == len("Çhengey €".encode())
    assert [count_text_bytes(tokenizer, ids, i, i + 1) for i in range(len(ids))] == [1] * len(ids)


def test_figures_are_sums_over_sums(tmp_path, lm, ladder):
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS))
    found = measure_held_out(lm, ladder.tokenizer, spec, "fp32 weights")
    items, [loss], [bits] = found.items, found.figures["loss"], found.figures["bits_per_byte"]
    assert loss.value == pytest.approx(items["nats"].sum() / items["tokens"].sum())
    wanted = items["nats"].sum() / math.log(2) / items["bytes"].sum()
    assert bits.value == pytest.approx(wanted)
    assert loss.low < loss.value < loss.high and loss.items == len(items)
    assert (loss.of, loss.weights, loss.unit) == ("held_out", "fp32 weights", "nats/token")


def test_labels_are_chosen_as_brute_force_chooses_them(tmp_path, lm, ladder):
    """One label begins another: end of turn tells them apart."""
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS), measures=("labels",))
    found = measure_held_out(lm, ladder.tokenizer, spec, "fp32 weights")
    held = held_out.read_held_out(spec)
    assert len(found.items) == len(held) > 4
    assert found.figures["labels"][0].counts["labels"] == 5
    for example, row in zip(held, found.items.itertuples(), strict=True):
        choices = [example | {"output": colour} for colour in sorted(COLOURS)]
        scores = [
            -loss_alone(ladder.model, tokens)
            for tokens in tokenise(choices, "plain", ladder.tokenizer, 128)
        ]
        best = sorted(COLOURS)[scores.index(max(scores))]
        assert (row.given, row.answer) == (best, example["output"])
        assert row.value == float(best == example["output"])


def test_free_answers_are_no_labels(tmp_path, lm, ladder):
    rows = [row | {"output": f"{row['output']} {n}"} for n, row in enumerate(ROWS)]
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", rows), measures=("labels",))
    with pytest.raises(StudyError, match="different answers"):
        measure_held_out(lm, ladder.tokenizer, spec, "fp32 weights")


def greedy_alone(model, prompt, stops, most):
    """Token by token, no cache, no batch."""
    ids = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_answers_in_a_batch_are_those_of_each_prompt_alone(ladder):
    tokenizer = ladder.tokenizer
    prompts = [
        tokenizer(prompt_of(row, "plain")[0])["input_ids"][: 4 + 3 * n]
        for n, row in enumerate(ROWS[:6])
    ]
    stops = {tokenizer.eos_token_id}
    for prompt, answer in zip(
        prompts, answer_all(ladder.model, tokenizer, prompts, stops, 12), strict=True
    ):
        alone = greedy_alone(ladder.model, prompt, stops, 12)
        assert answer.text == tokenizer.decode(alone, skip_special_tokens=True)
        assert answer.finished == (len(alone) < 12)


def test_exact_knows_the_models_own_answer(tmp_path, lm, ladder):
    """References are what the model says: all right. Then others: all wrong."""
    tokenizer = ladder.tokenizer
    own = []
    for row in ROWS:
        prompt = tokenizer(prompt_of(row, "plain")[0])["input_ids"]
        ids = greedy_alone(ladder.model, prompt, {tokenizer.eos_token_id}, 40)
        own.append(row | {"output": tokenizer.decode(ids).strip()})
    kept = [row for row in own if row["output"]]
    assert len(kept) > 60
    for rows, wanted in ((kept, 1.0), ([r | {"output": "never 3"} for r in kept], 0.0)):
        path = tmp_path / f"{wanted}.jsonl"
        spec = make_spec(write_rows(path, rows), measures=("exact",))
        found = measure_held_out(lm, tokenizer, spec, "fp32 weights")
        assert found.figures["exact"][0].value == wanted
        assert found.figures["exact"][0].counts["max_new_tokens"] > 16


def test_a_checkpoints_penalties_are_no_part_of_greedy_search(ladder):
    from transformers import GenerationConfig

    prompts = [ladder.tokenizer(prompt_of(row, "plain")[0])["input_ids"] for row in ROWS[:3]]
    plain = answer_all(ladder.model, ladder.tokenizer, prompts, {0}, 8)
    own = ladder.model.generation_config
    ladder.model.generation_config = GenerationConfig(repetition_penalty=5.0)
    try:
        assert answer_all(ladder.model, ladder.tokenizer, prompts, {0}, 8) == plain
        assert ladder.model.generation_config.repetition_penalty == 5.0
    finally:
        ladder.model.generation_config = own


@pytest.mark.parametrize(
    ("text", "number"),
    [("so 1,234.", "1234"), ("3 + 4 = 7.50", "7.5"), ("#### -12", "-12"), ("none", None)],
)
def test_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_normalisation_keeps_case_and_punctuation():
    assert normalise("  A\tb \n c ") == "A b c" and normalise("ﬁne") == "fine"
    assert normalise("Yes.") != normalise("yes")


def test_a_limit_takes_examples_of_every_kind_in_their_order():
    rows = sorted(ROWS, key=lambda row: row["output"])
    some = take(rows, 40)
    assert len(some) == 40 and [rows.index(row) for row in some] == sorted(map(rows.index, some))
    assert len({row["output"] for row in some}) == 5
    assert take(rows, None) == rows and set(map(str, take(rows[::-1], 40))) == set(map(str, some))


def test_a_broken_models_loss_is_no_number(tmp_path, ladder):
    import copy

    model = copy.deepcopy(ladder.model)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(NotANumber):
        measure_held_out(build_lm(model, ladder.tokenizer), ladder.tokenizer, spec, "w")


def test_retention_is_measured_on_another_source(tmp_path, lm, ladder):
    other = write_rows(tmp_path / "other.jsonl", [r | {"input": "please"} for r in ROWS[:30]])
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS), retention_data=other)
    found = measure_held_out(lm, ladder.tokenizer, spec, "w")
    assert [figure.of for figure in found.figures["loss"]] == ["held_out", "retention"]
    assert found.figures["loss"][1].items == 30
    both = found + found
    assert isinstance(both.items, pd.DataFrame) and len(both.items) == 2 * len(found.items)


def test_an_example_that_stands_twice_is_measured_twice_and_not_left_out(tmp_path, lm, ladder):
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS), measures=("loss", "exact"))
    test = write_rows(tmp_path / "test.jsonl", [ROWS[0], ROWS[0], ROWS[1]])
    data = spec.data.model_copy(update={"test": test, "held_out": None})
    found = measure_held_out(lm, ladder.tokenizer, spec.model_copy(update={"data": data}), "w")
    for key in ("loss", "exact"):
        [figure] = found.figures[key]
        assert (figure.items, figure.groups) == (3, 2) and "left_out" not in figure.counts


def test_a_prompt_too_long_and_an_answer_without_a_number_are_told_apart(tmp_path, lm, ladder):
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS), measures=("loss", "number"))
    long = ROWS[0] | {"instruction": "Add 1 and 2. " * 2000, "output": "3"}
    rows = [
        long,
        ROWS[1] | {"output": "none"},
        ROWS[2] | {"output": "5"},
        ROWS[3] | {"output": "7"},
    ]
    test = write_rows(tmp_path / "test.jsonl", rows)
    data = spec.data.model_copy(update={"test": test, "held_out": None})
    found = measure_held_out(lm, ladder.tokenizer, spec.model_copy(update={"data": data}), "w")
    counts = {key: found.figures[key][0].counts for key in ("loss", "number")}
    assert counts["loss"] == {"too_long": 1}
    assert (counts["number"]["too_long"], counts["number"]["left_out"]) == (1, 1)


def test_every_measure_that_can_be_asked_has_figures():
    from typing import get_args

    from studylib.schema.settings import Asked

    assert all(figures_of(name) for name in get_args(Asked))
    assert set(get_args(Asked)) == set(MEASURED)
    assert {m.asked for m in MEASURES.values()} == set(get_args(Asked))


def test_a_label_is_spelled_as_after_its_own_prompt(tmp_path, lm, ladder):
    """Prompts that end alike share the cuts; the tokens are those of each label spelled anew."""
    from studylib.scoring.measures import Asked, spell_labels, with_answer

    spec = make_spec(write_rows(tmp_path / "rows.jsonl", ROWS), measures=("labels",))
    asked = Asked(lm, ladder.tokenizer, spec, ROWS)
    found = list(spell_labels(asked, COLOURS))
    assert len(found) == len(ROWS)
    for one, choices in found:
        whole = tokenise(
            [with_answer(one.example, colour) for colour in COLOURS], "plain", ladder.tokenizer, 256
        )
        assert [a + b for a, b in choices] == [tokens["input_ids"] for tokens in whole]


def test_chats_in_a_template_are_labelled_and_answered(tmp_path, ladder):
    import copy

    from studylib.scoring.measures import Asked, spell_labels, with_answer

    tokenizer = copy.deepcopy(ladder.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rows = [
        {"messages": [{"role": "user", "content": row["instruction"]},
                      {"role": "assistant", "content": row["output"]}]}
        for row in ROWS
    ]  # fmt: skip
    spec = make_spec(write_rows(tmp_path / "rows.jsonl", rows), measures=("labels", "exact"))
    data = spec.data.model_copy(update={"template": "chat"})
    spec = spec.model_copy(update={"data": data})
    lm = build_lm(ladder.model, tokenizer)
    found = measure_held_out(lm, tokenizer, spec, "w")
    assert set(found.items["given"][found.items["measure"] == "labels"]) <= set(COLOURS)
    assert len(found.figures["exact"]) == 1
    for one, choices in spell_labels(Asked(lm, tokenizer, spec, rows[:20]), COLOURS):
        whole = tokenise([with_answer(one.example, c) for c in COLOURS], "chat", tokenizer, 256)
        assert [a + b for a, b in choices] == [tokens["input_ids"] for tokens in whole]
        assert one.prompt.endswith("assistant: ")
        assert all(b[-1] == tokenizer.eos_token_id for _, b in choices)
