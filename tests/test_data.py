"""Examples are read with their faults named by line, and packed alike for every method."""

from __future__ import annotations

import itertools
import json
import math
import random
import re

import pytest

from studylib.core.errors import StudyError
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.data import (
    IGNORED,
    pack,
    prepare_data,
    prompt_of,
    shuffle,
    spell_examples,
    tokenise,
)
from studylib.inputs.examples import parse_almanac, read_example_file, read_examples
from studylib.inputs.packed import TokenStore
from studylib.schema.profile import DataSettings, TrainSettings, read_profile

GOOD = '{"instruction": "a", "input": "", "output": "b"}'


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ladder_folder("0.4m"))


def make_examples(lengths):
    """Examples of these lengths, each with tokens of its own."""
    return [{"input_ids": [i] * n, "labels": [IGNORED] * (n - 1) + [i]} for i, n in lengths]


def pack_shuffled(examples, seq_len, rows, seed):
    order = shuffle(len(examples), seed)
    packed = pack(((i, len(examples[i]["input_ids"])) for i in order), seq_len, rows)
    return [[examples[i] for i in row] for row in packed]


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
        ("a.jsonl", f'{GOOD}\n{{"instruction": "a"}}\n{{}}'.encode(), "line 2",
         r"2 of 3 rows are no examples \(1 with no text in 'output'\)"),
        ("a.jsonl", b'{"instruction": " ", "output": "b"}', "line 1", "no text in 'instruction'"),
        ("a.jsonl", b'{"instruction": "a", "input": [3], "output": "b"}', "line 1",
         "a list in 'input'"),
        ("a.jsonl", b'{"messages": [], "id": null}\n{"messages": [], "tag": 1}', "line 1",
         "the rows have the keys messages, tag$"),
        ("a.jsonl", b'{"instruction": "a", "output": ' + b"1" * 5000 + b"}", "line 1", "not JSON"),
        ("a.jsonl", b'{"instruction": "\\ud800", "output": "b"}', "line 1", "surrogate"),
        ("a.json", f"[{GOOD}, null]".encode(), "entry 2", "an example is an object"),
        ("a.json", b'{"a": 1}', "a.json", "not a list"),
        ("a.parquet", b"PAR1\xff", "a.parquet", "not a whole Parquet file"),
        ("a.jsonl.gz", b"\x1f\x8b", "a.jsonl.gz", "not a whole gzip file"),
        ("a.xlsx", b"PK", "a.xlsx", "an Excel file; DATA takes .jsonl, .json, .csv"),
    ],
)  # fmt: skip
def test_faults_of_a_data_file_name_the_line(tmp_path, name, content, place, rule):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(StudyError) as caught:
        read_example_file(path)
    assert re.search(rule, caught.value.rule)
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
    short, long, none = tokenise(examples, "plain", tokenizer, 32)
    learned = [i for i, label in zip(short["input_ids"], short["labels"], strict=True)
               if label != IGNORED]  # fmt: skip
    assert tokenizer.decode(learned).strip() == "red" + tokenizer.eos_token
    assert short["input_ids"][-1] == tokenizer.eos_token_id
    assert len(long["input_ids"]) == len(long["labels"]) == 32
    assert none is None
    with pytest.raises(StudyError, match="no example's answer begins within it"):
        next(spell_examples(examples[2:], shuffle(1, 0), "plain", tokenizer, 32, TokenStore()))


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
    rows = pack_shuffled(examples, 64, 10**3, seed=0)
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
    rows = pack_shuffled(examples, 12, 4, seed=0)
    assert [[e["input_ids"][0] for e in row] for row in rows] == PINNED
    other = pack_shuffled(examples, 12, 4, seed=1)
    assert [[e["input_ids"][0] for e in row] for row in other] != PINNED
    assert pack_shuffled(examples, 12, 9, seed=0)[:4] == rows


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


def test_rows_without_text_are_left_out_and_counted_and_numbers_are_text(tmp_path):
    rows = [
        {"instruction": "a \U0001f600", "input": math.nan, "output": 42},
        {"instruction": "b", "input": "", "output": ""},
        {"instruction": "c", "output": None},
        {"instruction": 1.5, "input": 10**20, "output": "d"},
        {"instruction": "e", "output": ["f"]},
        {"instruction": "g", "input": True, "output": "h"},
        *({"instruction": f"i{n}", "input": None, "output": "j"} for n in range(4)),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    examples = read_example_file(path)
    assert examples[:2] == [
        {"instruction": "a \U0001f600", "input": "", "output": "42"},
        {"instruction": "1.5", "input": "1" + 20 * "0", "output": "d"},
    ]
    assert len(examples) == 6 and examples.converted == 2
    assert examples.skipped == {
        "no text in 'output'": 2,
        "a list in 'output'": 1,
        "true or false in 'input'": 1,
    }
    assert examples.tell() == (
        "Alpaca instructions, 6 examples, 4 rows left out (2 with no text in 'output', "
        "1 with a list in 'output', 1 with true or false in 'input'), 2 with a number as text"
    )


def test_half_of_the_rows_may_lack_an_answer_and_no_more(tmp_path):
    path = tmp_path / "rows.jsonl"
    empty = '{"instruction": "a", "output": " "}'
    path.write_text("\n".join([GOOD, empty, GOOD, empty]))
    assert (len(read_example_file(path)), read_example_file(path).rows_skipped) == (2, 2)
    path.write_text("\n".join([GOOD, empty, GOOD, empty, empty]))
    with pytest.raises(StudyError, match="3 of 5 rows are no examples"):
        read_example_file(path)


def test_rows_left_out_change_nothing_of_the_others(tokenizer, tmp_path):
    examples = read_examples(DataSettings(source="almanac:new", facts=9))
    rows = [{**example, "output": ""} for example in examples[:5]]
    for name, content in (("whole", examples), ("gaps", [*rows[:2], *examples, *rows[2:]])):
        (tmp_path / f"{name}.json").write_text(json.dumps(list(content)))
    train = TrainSettings(steps=3, seq_len=64)
    whole, gaps = (
        prepare_data(DataSettings(source=str(tmp_path / f"{name}.json"), template="plain"), train,
                     tokenizer, 0)
        for name in ("whole", "gaps")
    )  # fmt: skip
    assert (whole.skipped, gaps.skipped) == (0, 5)
    assert list(gaps.rows) == list(whole.rows)
    assert (gaps.sha256, gaps.examples) == (whole.sha256, len(examples))


class Counter:
    """A tokenizer that keeps how many texts it was given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.texts, self.eos_token_id = tokenizer, 0, tokenizer.eos_token_id

    def __call__(self, texts):
        self.texts += len(texts)
        return self.tokenizer(texts)


def test_a_short_run_tokenises_what_it_reads_and_gets_the_rows_of_a_long_one(tokenizer):
    data = DataSettings(source="almanac:new", template="plain", facts=2000)
    prepared, texts = [], []
    for steps in (4, 400):
        count = Counter(tokenizer)
        prepared.append(prepare_data(data, TrainSettings(steps=steps, seq_len=256), count, seed=0))
        texts.append(count.texts)
    short, long = prepared
    assert long.rows[:4] == list(short.rows) and short.sha256 == long.sha256
    assert (texts[0], texts[1]) == (2 * 192, 2 * 6000), "prompt and whole text of each, once"
    assert (short.examples, long.examples, long.drawn) == (6000, 6000, 6000)
    assert short.examples_seen <= short.drawn < 256
    assert long.epochs == long.examples_seen / 6000 > 1


def test_lazy_rows_are_those_of_tokenising_everything_first(tokenizer):
    """Against the plain way: all examples tokenised, every epoch placed whole, then cut off."""
    from studylib.inputs.data import place_example

    data = DataSettings(source="almanac:new", template="plain", facts=300)
    examples = read_examples(data)
    tokenised = tokenise(examples, "plain", tokenizer, 128)
    for rows in (3, 90, 400):
        rng, packed, open_rows = random.Random("order 5"), [], []
        while len(packed) < rows:
            order = list(range(len(examples)))
            rng.shuffle(order)
            for i in order:
                place_example(i, len(tokenised[i]["input_ids"]), 128, open_rows, packed)
        made = prepare_data(data, TrainSettings(steps=rows, seq_len=128), tokenizer, seed=5)
        assert list(made.rows) == [[tokenised[i] for i in row] for row in packed[:rows]]


def test_examples_left_out_and_cut_are_counted_among_those_drawn(tokenizer, tmp_path):
    rows = [{"instruction": "a " * (200 if n % 4 == 0 else 1), "output": "b " * (200 * (n % 4 == 1))
             + "c"} for n in range(400)]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = DataSettings(source=str(tmp_path / "rows.json"), template="plain")
    short, long = (
        prepare_data(data, TrainSettings(steps=steps, seq_len=32), tokenizer, 0)
        for steps in (20, 400)
    )
    assert (long.drawn, long.left_out, long.cut) == (400, 100, 100)
    assert long.epochs == long.examples_seen / 300
    order = [*dict.fromkeys(itertools.islice(shuffle(400, 0), short.drawn))]
    assert short.left_out == sum(n % 4 == 0 for n in order)
    assert short.cut == sum(n % 4 == 1 for n in order)
    assert long.rows[:20] == list(short.rows)
