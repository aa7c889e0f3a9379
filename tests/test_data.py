"""Examples are read with their faults named by line, and packed alike for every method."""

from __future__ import annotations

import json
import random

import pytest

from studylib.core.errors import StudyError
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.data import (
    IGNORED,
    pack,
    parse_almanac,
    prepare_data,
    prompt_of,
    read_example_file,
    read_examples,
    tokenise,
)
from studylib.schema.profile import DataSettings, TrainSettings, read_profile

GOOD = '{"instruction": "a", "input": "", "output": "b"}'


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ladder_folder("0.4m"))


def make_examples(lengths):
    """Examples of these lengths, each with tokens of its own."""
    return [{"input_ids": [i] * n, "labels": [IGNORED] * (n - 1) + [i]} for i, n in lengths]


@pytest.mark.parametrize(
    ("name", "content", "place", "rule"),
    [
        ("a.json", b"", "a.json", "no examples"),
        ("a.json", b"[]", "a.json", "no examples"),
        ("a.jsonl", b"\n \n", "a.jsonl", "no examples"),
        ("a.jsonl", f"{GOOD}\n\n{{'a': 1}}\n".encode(), "line 3", "not JSON"),
        ("a.json", b'[\n{"instruction": "a", "output": "b"},\n{"instruction" "a"}]', "line 3",
         "not JSON"),
        ("a.json", f"{GOOD}\n{GOOD}\n".encode(), "line 2", "not JSON"),
        ("a.jsonl", f"{GOOD}\n".encode() + b'{"instruction": "\xe9"}', "line 2", "not UTF-8"),
        ("a.jsonl", f"{GOOD}\n5\n".encode(), "line 2", "an example is an object"),
        ("a.jsonl", f'{GOOD}\n{{"instruction": "a"}}'.encode(), "line 2", "no text in 'output'"),
        ("a.jsonl", b'{"instruction": " ", "output": "b"}', "line 1", "no text in 'instruction'"),
        ("a.jsonl", b'{"instruction": "a", "input": 3, "output": "b"}', "line 1", "'input'"),
        ("a.jsonl", b'{"instruction": "\\ud800", "output": "b"}', "line 1", "surrogate"),
        ("a.json", f"[{GOOD}, null]".encode(), "entry 2", "an example is an object"),
        ("a.json", b'{"a": 1}', "a.json", "not a list"),
        ("a.csv", b"instruction,output\na,b\n", "line 1", "not JSON"),
    ],
)  # fmt: skip
def test_faults_of_a_data_file_name_the_line(tmp_path, name, content, place, rule):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(StudyError, match=rule) as caught:
        read_example_file(path)
    assert place in caught.value.value and str(path) in caught.value.value


def test_missing_file_and_folder_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(StudyError, match="cannot be read") as caught:
            read_example_file(path)
        assert caught.value.value == str(path)


def test_line_file_may_hold_a_byte_order_mark_windows_ends_and_odd_separators(tmp_path):
    path = tmp_path / "a.jsonl"
    odd = json.dumps({"instruction": "a\u2028b", "output": "\U0001f600"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{GOOD}\r\n\r\n{odd}\r\n".encode())
    assert read_example_file(path) == [
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a\u2028b", "input": "", "output": "\U0001f600"},
    ]


def test_almanac_parts_are_known_by_name():
    assert len(read_examples(DataSettings(source="almanac:new", facts=5))) == 15
    assert parse_almanac("almanac:shifted") == ("old", "shifted")
    with pytest.raises(StudyError, match="Known: new, old, shifted"):
        read_examples(DataSettings(source="almanac:middle"))
    with pytest.raises(StudyError, match="40000 facts"):
        read_examples(DataSettings(source="almanac:new", facts=10**6))


def test_alpaca_prompts_have_the_published_form():
    example = {"instruction": "Add.", "input": "1 2", "output": "3"}
    prompt, answer = prompt_of(example, "alpaca")
    assert prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    assert answer == "3"
    assert "### Input" not in prompt_of({**example, "input": ""}, "alpaca")[0]
    assert prompt_of(example, "plain") == ("Add. 1 2", " 3")


def test_only_the_answer_is_learned_and_nothing_is_longer_than_the_row(tokenizer):
    examples = [
        {"instruction": "The colour of the comet Bafela is the", "input": "", "output": "red"},
        {"instruction": "a", "input": "", "output": "b " * 200},
        {"instruction": "a " * 200, "input": "", "output": "b"},
    ]
    short, long = tokenise(examples, "plain", tokenizer, 32)
    learned = [i for i, label in zip(short["input_ids"], short["labels"], strict=True)
               if label != IGNORED]  # fmt: skip
    assert tokenizer.decode(learned).strip() == "red" + tokenizer.eos_token
    assert short["input_ids"][-1] == tokenizer.eos_token_id
    assert len(long["input_ids"]) == len(long["labels"]) == 32
    with pytest.raises(StudyError, match="no example's answer begins within it"):
        tokenise(examples[2:], "plain", tokenizer, 32)


def test_training_splits_text_where_lm_eval_does(tiny_folder):
    """The tokens that are learned are the tokens that lm-eval scores, end of text aside."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    lm = HFLM(AutoModelForCausalLM.from_pretrained(tiny_folder), tokenizer=tokenizer)
    examples = read_examples(DataSettings(source="almanac:new", facts=60))
    for example, row in zip(examples, tokenise(examples, "plain", tokenizer, 256), strict=True):
        context, continuation = lm._encode_pair(*prompt_of(example, "plain"))
        assert row["input_ids"] == [*context, *continuation, tokenizer.eos_token_id]
        assert row["labels"] == [IGNORED] * len(context) + row["input_ids"][len(context) :]


def test_packing_fills_rows_and_loses_no_example_within_an_epoch():
    rng = random.Random(0)
    examples = make_examples((i, rng.randint(3, 64)) for i in range(400))
    rows = pack(examples, 64, 10**3, seed=0)
    assert len(rows) == 10**3
    lengths = [sum(len(e["input_ids"]) for e in row) for row in rows]
    assert max(lengths) <= 64
    assert sum(lengths) / (64 * len(lengths)) > 0.85
    counts: dict[int, int] = {}
    for row in rows:
        for example in row:
            assert len(example["input_ids"]) == len(examples[example["input_ids"][0]]["input_ids"])
            counts[example["input_ids"][0]] = counts.get(example["input_ids"][0], 0) + 1
    # every example is seen once an epoch: counts differ by the cut and by what is still open
    assert len(counts) == 400 and max(counts.values()) - min(counts.values()) <= 2


def test_packing_gives_the_same_rows_in_every_process():
    """Pinned: neither the process's hash seed nor the machine may change what is read first."""
    examples = make_examples((i, 3 + i % 5) for i in range(20))
    order = [[e["input_ids"][0] for e in row] for row in pack(examples, 12, 4, seed=0)]
    assert order == PINNED
    assert [[e["input_ids"][0] for e in r] for r in pack(examples, 12, 4, seed=1)] != PINNED
    assert pack(examples, 12, 9, seed=0)[:4] == pack(examples, 12, 4, seed=0)


PINNED = [[15, 8, 5], [13, 3], [19, 12], [14, 2]]


def test_every_method_reads_the_same_tokens_in_the_same_order(tokenizer):
    profile = read_profile("smoke")
    seen = {
        run.method.name: prepare_data(run.data, run.train, tokenizer, run.seed)
        for run in profile.runs()
        if run.method.kind.trains
    }
    assert set(seen) == {"full", "lora", "qlora"}
    assert len({data.order_sha256 for data in seen.values()}) == 1
    assert len({data.tokens_seen for data in seen.values()}) == 1
    full = seen["full"]
    assert len(full.rows) == 6 and full.tokens_seen <= 6 * 128
    assert 0 < full.answer_tokens_seen < full.tokens_seen
    other = prepare_data(profile.runs()[1].data, profile.runs()[1].train, tokenizer, seed=1)
    assert other.order_sha256 != full.order_sha256 and other.sha256 == full.sha256


def test_rows_are_steps_times_accumulation_times_micro_batch(tokenizer):
    train = TrainSettings(steps=3, seq_len=64, accumulation=2, micro_batch=4)
    data = prepare_data(
        DataSettings(source="almanac:new", template="plain", facts=9), train, tokenizer, 0
    )
    assert len(data.rows) == 24 and data.examples == 27


def test_null_input_is_an_empty_one_and_endless_nesting_is_bad_input(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "input": null, "output": "b"}\n')
    assert read_example_file(rows) == [{"instruction": "a", "input": "", "output": "b"}]
    rows.write_text("[" * 100_000)
    with pytest.raises(StudyError, match="line 1: this is nested too deep"):
        read_example_file(rows)
