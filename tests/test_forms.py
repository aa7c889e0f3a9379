"""Data in the forms people keep it in: recognised by keys, held out by prompts, faults by line."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from studylib.commands import cli_options
from studylib.core.errors import StudyError
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.data import prepare_data
from studylib.inputs.examples import read_example_file, read_examples
from studylib.inputs.forms import NoExample, prompt_key, read_messages
from studylib.inputs.parts import read_part, tell_parts
from studylib.inputs.tokens import IGNORED, tell_lengths, tokenise, unfold
from studylib.planning.answers import check_measures
from studylib.planning.stale import hash_data_file
from studylib.schema.differences import find_changes
from studylib.schema.profile import DataSettings, TrainSettings
from studylib.schema.records import file_sha256
from studylib.schema.settings import parse_columns

SHARED = Path(__file__).parents[1].parent / "shared"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ladder_folder("0.4m"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def messages(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


PAIR = messages(("user", "Hi"), ("assistant", "Ho"))


@pytest.mark.parametrize(
    ("row", "example", "name"),
    [
        ({"messages": TALK}, PAIR, "chat messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, "i"]},
                       {"role": "Model", "content": "Ho"}, {"role": "user", "content": "more"}]},
         PAIR, "chat messages"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
         PAIR, "ShareGPT conversations"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
          "system": "Be brief."},
         messages(("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")),
         "ShareGPT conversations"),
        ({"prompt": "Hi", "completion": "Ho"}, PAIR, "prompts with completions"),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, PAIR, "prompts with completions"),
        ({"question": "Hi", "answer": "Ho"}, PAIR, "questions with answers"),
        ({"instruction": "Hi", "output": "Ho"},
         {"instruction": "Hi", "input": "", "output": "Ho"}, "Alpaca instructions"),
        ({"text": "Once."}, {"text": "Once."}, "plain text"),
    ],
)  # fmt: skip
def test_forms_are_known_by_their_keys(tmp_path, row, example, name):
    found = read_example_file(write(tmp_path / "a.jsonl", [row]))
    assert found == [example]
    assert found.form.name == name and found.tell().startswith(f"{name}, 1 ")


def test_answers_in_a_prompt_are_not_learned_and_calls_of_tools_are_kept(tmp_path):
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    rows = [
        {"prompt": [*TALK, TALK[0]], "completion": TALK[1:]},
        {"prompt": "Add", "completion": [{"role": "assistant", "tool_calls": [call]}],
         "tools": [{"name": "add"}]},
    ]  # fmt: skip
    old, tool = read_example_file(write(tmp_path / "a.jsonl", rows))
    assert [m.get("weight") for m in old["messages"]] == [None, 0, None, None]
    made = tool["messages"][-1]["tool_calls"][0]["function"]
    assert made["arguments"] == {"a": 1} and tool["tools"] == [{"name": "add"}]


def test_rows_that_teach_nothing_are_counted_by_reason(tmp_path):
    bad = [
        {"messages": [TALK[0]]},
        {"messages": [{"role": "user"}, TALK[1]]},
        {"messages": [{"role": "judge", "content": "a"}, TALK[1]]},
        {"messages": [TALK[0], {"role": "assistant", "content": " "}]},
        {"messages": "no list"},
    ]
    found = read_example_file(write(tmp_path / "a.jsonl", [*bad, *[{"messages": TALK}] * 5]))
    assert len(found) == 5 and list(found.skipped) == [
        "no answer of the assistant",
        "a message of the user without content",
        "the role 'judge', which is none of system, user, assistant and tool",
        "an empty answer",
        "text that is no list of messages in 'messages'",
    ]
    with pytest.raises(NoExample, match="a part of a message that is no text"):
        read_messages([{"role": "user", "content": [{"type": "image"}]}], "messages")


def test_a_row_that_lacks_its_forms_key_is_left_out(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c"}, {"completion": "d"}]
    found = read_example_file(write(tmp_path / "a.jsonl", [rows[0], *rows]))
    assert len(found) == 2
    assert found.skipped == {"no text in 'completion'": 1, "no text in 'prompt'": 1}


def test_average_turns_and_unread_keys_are_said(tmp_path):
    rows = [{"messages": TALK * n, "topic": "x"} for n in (1, 2, 3, 3)]
    found = read_example_file(write(tmp_path / "a.jsonl", rows))
    assert found.tell() == ("chat messages, 4 conversations, 2.2 turns each; not read: topic")
    assert found.sample() == "user: Hi | assistant: Ho"


@pytest.mark.parametrize(
    ("rows", "place", "rule", "remedy"),
    [
        ([{"messages": TALK}, {"text": "a"}], "line 2", "another form", "file of its own"),
        ([{"title": "a", "label": "b"}], "line 1", "no form is known with the keys title, label",
         "COLUMNS='prompt=title answer=label'"),
    ],
)  # fmt: skip
def test_mixed_and_unknown_forms_are_refused(tmp_path, rows, place, rule, remedy):
    with pytest.raises(StudyError) as caught:
        read_example_file(write(tmp_path / "a.jsonl", rows))
    assert place in caught.value.value and rule in caught.value.rule
    assert remedy in caught.value.remedy


def test_tables_are_read_by_their_header(tmp_path):
    text = 'prompt,completion\n"a, b\nc",d\n\ne,"say ""f"""\n'
    expected = [messages(("user", "a, b\nc"), ("assistant", "d")),
                messages(("user", "e"), ("assistant", 'say "f"'))]  # fmt: skip
    (tmp_path / "a.csv").write_text(text)
    assert read_example_file(tmp_path / "a.csv") == expected
    text = '\ufeffprompt;completion\r\n"a, b\nc";d\r\ne;"say ""f"""'
    (tmp_path / "a.csv").write_text(text, newline="")
    found = read_example_file(tmp_path / "a.csv")
    assert found == expected and "cells are separated by semicolons" in found.tell()
    (tmp_path / "a.TSV.gz").write_bytes(gzip.compress(b"text\tmore\r\nx\ty\r\n"))
    assert read_example_file(tmp_path / "a.TSV.gz") == [{"text": "x"}]


@pytest.mark.parametrize(
    ("text", "place", "rule"),
    [
        ("text,b\nx,y\nx,y,z\n", "line 3", "3 cells where the header has 2"),
        ('text,b\nx,y\n"x" y,z\nx,y\n', "from line 3", "double quote"),
        ('text,b\nx,y\n"x,z\nx,y\n', "from line 3", "double quote is not closed"),
        ("text,text\nx,y\n", "line 1", "'text' stands twice in the header"),
        ("text\n", "a.csv", "there are no examples in it"),
    ],
)
def test_faults_of_a_table_name_the_line(tmp_path, text, place, rule):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(StudyError) as caught:
        read_example_file(tmp_path / "a.csv")
    assert place in caught.value.value and rule in caught.value.rule


def test_parquet_and_gzipped_files_give_what_json_lines_give(tmp_path):
    import pandas as pd

    rows = [{"messages": TALK, "n": n} for n in range(3)]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "d.parquet")
    files = ("a.jsonl", "b.jsonl.gz", "c.json", "d.parquet")
    assert [read_example_file(tmp_path / name) for name in files] == [[PAIR] * 3] * 4
    (tmp_path / "e").write_text("{}")
    with pytest.raises(StudyError, match="its name does not say what it is"):
        read_example_file(tmp_path / "e")


def test_columns_are_named_and_a_missing_one_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("the text,category,note\nx,y,z\n")
    path = str(tmp_path / "a.csv")
    data = DataSettings(source=path, columns="prompt='the text' answer=category system=note")
    assert read_examples(data) == [messages(("system", "z"), ("user", "x"), ("assistant", "y"))]
    assert read_examples(DataSettings(source=path, columns="text=note")) == [{"text": "z"}]
    with pytest.raises(StudyError, match="no row has the column label; the rows have the keys the"):
        read_examples(DataSettings(source=path, columns="prompt=note answer=label"))
    for wrong in ("prompt=a", "a=b", "prompt", "prompt=a prompt=b answer=c", "text='a"):
        with pytest.raises(ValueError, match="write prompt=COLUMN answer=COLUMN"):
            parse_columns(wrong)
    with pytest.raises(ValueError, match="is no part of columns"):
        DataSettings(source=path, columns="a=b")


def test_a_folder_gives_its_parts(tmp_path):
    write(tmp_path / "train.jsonl", [{"text": f"t{i}"} for i in range(4)])
    write(tmp_path / "dev.jsonl", [{"text": "v"}, {"text": "t1"}])
    (tmp_path / "test.csv").write_text("text\nt2\n t3 \n")
    (tmp_path / "README.md").write_text("x")
    data = DataSettings(source=str(tmp_path))
    assert read_part(data, "validation") == [{"text": "v"}, {"text": "t1"}]
    assert read_part(data, "test") == [{"text": "t2"}, {"text": " t3 "}]
    train = read_part(data, "train")
    assert train == [{"text": "t0"}] and train.skipped == {
        "a prompt that the validation part asks too": 1,
        "a prompt that the test part asks too": 2,
    }
    told = tell_parts(data)
    assert told[0].startswith(f"{tmp_path.name}: plain text, 1 documents, 3 rows left out")
    assert told[1:] == [
        "  first: t0",
        "  test part (test.csv): plain text, 2 documents",
        "  validation part (dev.jsonl): plain text, 2 documents",
    ]
    before = hash_data_file(data)
    write(tmp_path / "valid.json", [])
    with pytest.raises(StudyError, match="two files are the validation part"):
        read_part(data, "validation")
    assert before == hash_data_file(data)
    (tmp_path / "none").mkdir()
    with pytest.raises(StudyError, match="no file of the train part"):
        read_part(DataSettings(source=str(tmp_path / "none")), "train")


def test_a_text_with_another_column_is_told_how_it_becomes_an_answer(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{i},l{i % 2}\n" for i in range(40)))
    data = DataSettings(source=str(tmp_path / "a.csv"), held_out=5)
    told = tell_parts(data)
    assert "not read: label (COLUMNS='prompt=text answer=label' learns" in told[0]
    assert told[2:] == [f"  {part} part (split off by a hash of the prompt): 5 documents"
                        for part in ("test", "validation")]  # fmt: skip
    with pytest.raises(StudyError) as caught:
        check_measures(["labels"], data, "main")
    assert "COLUMNS='prompt=text answer=label'" in caught.value.remedy
    named = data.model_copy(update={"columns": "prompt=text answer=label"})
    assert check_measures(["labels"], named, "main") == ["  2 labels"]


def test_held_out_parts_are_the_same_in_any_order_and_keep_duplicates_together(tmp_path):
    rows = [{"question": f"q{i // 2}" + " " * (i % 2), "answer": f"a{i}"} for i in range(200)]
    parts = []
    for name in ("a", "b"):
        data = DataSettings(source=str(write(tmp_path / f"{name}.jsonl", rows)), held_out=15)
        parts.append({part: read_part(data, part) for part in ("train", "validation", "test")})
        random.Random(0).shuffle(rows)
    first, second = (
        {part: sorted(map(str, examples)) for part, examples in found.items()} for found in parts
    )
    assert first == second
    assert [len(part) for part in parts[0].values()] == [168, 16, 16]
    keys = [{prompt_key(e) for e in part} for part in parts[0].values()]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    more = read_part(data.model_copy(update={"held_out": 30}), "test")
    assert set(first["test"]) < set(map(str, more))
    with pytest.raises(StudyError, match=r"at most half of them.*Hold out at most 50") as caught:
        read_part(data.model_copy(update={"held_out": 51}), "train")
    assert caught.value.value == "data.held_out = 51"
    with pytest.raises(StudyError, match="there is no test part"):
        read_part(data.model_copy(update={"held_out": None}), "test")


def test_fewer_examples_are_some_of_the_more_and_the_held_out_parts_stay(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(60)]
    data = DataSettings(source=str(write(tmp_path / "a.jsonl", rows)), held_out=5)
    asked = {n: data.model_copy(update={"examples": n}) for n in (10, 20, 50, 51)}
    ten, twenty, all_of_them = (list(map(str, read_part(asked[n], "train"))) for n in (10, 20, 50))
    assert [len(ten), len(twenty)] == [10, 20] and set(ten) < set(twenty)
    assert all_of_them == list(map(str, read_part(data, "train")))
    assert sorted(twenty, key=all_of_them.index) == twenty
    assert read_part(asked[10], "test") == read_part(data, "test")
    with pytest.raises(StudyError, match="has 50 examples") as caught:
        read_part(asked[51], "train")
    assert caught.value.value == "data.examples = 51"


def test_a_named_test_part_takes_its_prompts_out_of_training(tmp_path):
    train = write(
        tmp_path / "train.jsonl", [{"question": f"q{i}", "answer": "a"} for i in range(9)]
    )
    test = write(
        tmp_path / "new.jsonl", [{"messages": [{"role": "user", "content": "q4"}, TALK[1]]}]
    )
    data = DataSettings(source=str(train), test=str(test), held_out=2)
    assert [len(read_part(data, part)) for part in ("train", "validation", "test")] == [6, 2, 1]
    assert read_part(data, "train").skipped == {"a prompt that the test part asks too": 1}
    same = DataSettings(source=str(train), test=str(train))
    with pytest.raises(StudyError, match="nothing is left to train on"):
        read_part(same, "train")


def test_examples_order_and_tokens_of_earlier_sources_are_what_they_were(tokenizer, tmp_path):
    """By the code before other forms were read."""
    rows = [{"instruction": f"Add {i} and {i + 1}.", "input": "" if i % 2 else f"case {i}",
             "output": str(2 * i + 1)} for i in range(40)]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    file = str(tmp_path / "a.json")
    known = {
        ("almanac:new", "plain", 40): ("e5e905a77ff90d47", "bcd6514d4bc8ef47"),
        (file, "alpaca", None): ("d2ff2a9c6b17d459", "c02575fbd974006a"),
        (file, "auto", None): ("d2ff2a9c6b17d459", "c02575fbd974006a"),
        (file, "plain", None): ("d2ff2a9c6b17d459", "391086836a5b3ada"),
    }
    for (source, template, facts), hashes in known.items():
        made = prepare_data(DataSettings(source=source, template=template, facts=facts),
                            TrainSettings(steps=12, seq_len=200), tokenizer, 3)  # fmt: skip
        assert (made.sha256[:16], made.order_sha256[:16]) == hashes
        assert made.template == ("plain" if template == "plain" else "alpaca")


def test_every_token_of_a_text_but_the_first_is_learned_once(tokenizer):
    text = " ".join(f"word{i} is here." for i in range(300))
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    for seq_len in (8, 33, len(whole) - 1, len(whole), len(whole) + 1):
        unfolded = unfold([{"text": "a"}, {"text": text}], "alpaca", tokenizer, seq_len)
        made = tokenise(unfolded.pieces, "alpaca", tokenizer, seq_len)
        mine = [tokens for tokens, of in zip(made, unfolded.of, strict=True) if of == 1]
        assert [label for t in mine for label in t["labels"] if label != IGNORED] == whole[1:]
        assert all(t["labels"][0] == IGNORED for t in mine)
        assert max(len(t["input_ids"]) for t in mine) <= seq_len
    short = tokenise([{"text": text}], "plain", tokenizer, 33)
    assert short == [mine[0] for mine in [unfold([{"text": text}], "plain", tokenizer, 33).pieces]]


def test_text_trains_on_windows_in_an_order_of_their_own(tokenizer, tmp_path):
    write(tmp_path / "a.jsonl", [{"text": f"{n} " * 900} for n in range(3)])
    data = DataSettings(source=str(tmp_path / "a.jsonl"), template="auto")
    made = prepare_data(data, TrainSettings(steps=9, seq_len=64), tokenizer, 0)
    assert made.template == "plain" and made.examples > 60
    first = [row[0]["input_ids"][5] for row in made.rows]
    assert len(set(first)) > 1


def test_old_records_are_not_changed_by_the_new_settings():
    from studylib.schema.profile import read_profile

    run = read_profile("smoke").runs()[1]
    old = run.model_dump(mode="json")
    for key in ("columns", "held_out", "test", "validation"):
        del old["data"][key]
    assert find_changes(run, type(run).model_validate(old)) == []


def test_own_data_or_model_without_a_profile_is_a_custom_study(tmp_path):
    data = write(tmp_path / "a.jsonl", [{"text": "a"}])
    assert cli_options.pick_profile(None, own=True)[0] == "custom"
    made = cli_options.resolve_profile(
        None, tmp_path, model="ladder:0.4m", data=str(data), mmlu="almanac:new",
        changes=["data.held_out=1"], columns="text=text",
    )  # fmt: skip
    assert made.origin == "custom"
    assert made.tracks[0].data == DataSettings(
        source=str(data), template="auto", held_out=1, columns="text=text"
    )
    assert not cli_options.is_own("ladder:0.4m,shape:Pythia-70M", None)
    assert cli_options.is_own("path:x", None) and cli_options.is_own(None, "x.csv")
    with pytest.raises(StudyError, match="it needs DATA"):
        cli_options.resolve_profile(None, tmp_path, model="path:x")


def test_lengths_are_told_before_a_run(tokenizer):
    examples = [{"instruction": "a " * 200, "input": "", "output": "b"},
                {"instruction": "a", "input": "", "output": "b " * 200},
                {"instruction": "a", "input": "", "output": "b"}]  # fmt: skip
    told = tell_lengths(examples, "plain", tokenizer, 32)
    assert told.startswith("template plain, ")
    assert "1 answers cut by train.seq_len = 32, 1 whose prompt alone fills it" in told


def test_real_data_is_read_in_its_own_form():
    if not (SHARED / "data" / "manx").is_dir():
        pytest.skip("needs ../shared/data")
    bank = SHARED / "data" / "banking77"
    data = DataSettings(source=str(bank), columns="prompt=text answer=category", held_out=500)
    assert len(read_examples(data)) == 10_003
    parts = [len(read_part(data, part)) for part in ("train", "validation", "test")]
    assert parts == [10_003 - 500 - 7, 500, 3_080]
    assert read_part(data, "train").skipped == {"a prompt that the test part asks too": 7}
    manx = DataSettings(source=str(SHARED / "data" / "manx"))
    assert [len(read_part(manx, part)) for part in ("train", "validation", "test")] == [78, 9, 16]
    assert len(file_sha256(bank / "train.csv")) == 64
    cases = SHARED / "cases" / "data-files"
    for name, count in (("messages.jsonl", 60), ("sharegpt.json", 60), ("a.csv", 60),
                        ("nan-input.json", 60), ("empty-output.json", 60),
                        ("number-output.jsonl", 60)):  # fmt: skip
        assert len(read_example_file(cases / name)) == count
