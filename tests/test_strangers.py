"""Files and texts of strangers are bounded and shown, never obeyed; tried on what is harmless."""

from __future__ import annotations

import gzip
import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from studylib.commands.cli_options import parse_value
from studylib.core.errors import StudyError, show_plainly, without_colours
from studylib.core.files import read_mapping
from studylib.inputs import template_trial
from studylib.inputs.gguf_header import BadHeader, check_gguf_header
from studylib.inputs.rows import read_rows
from studylib.inputs.sources import weight_files
from studylib.inputs.template_trial import try_template


def test_messages_show_escape_codes_and_keep_other_letters():
    error = StudyError("\x1b]0;mine\x07", "a\u202eb \x9b1m", "Žluťoučký 文 — ±\n\tok.")
    assert str(error) == "\\x1b]0;mine\\x07: a\\u202eb \\x9b1m. Žluťoučký 文 — ±\n\tok."
    assert show_plainly("half \ud800 of a pair").isprintable()
    assert without_colours("\x1b[31mred\x1b[0m \x1b[2J") == "red \\x1b[2J"


# Ten of ten of ten of ten of ten of ten.
GROWS = "a0: &a0 [0]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(6)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GROWS, "line 1: it means more than 100,000 values"),
        ("a: &x [1, *x]\n", "line 1: it holds itself"),
        ("a: 2024-99-99\n", "cannot be read"),
        ("a: " + "[" * 5000 + "\n", "nested too deep"),
        ("a: '" + "x" * 1_000_001 + "'\n", "more than 1,000,000 characters"),
    ],
)
def test_yaml_that_would_grow_or_break_is_one_message(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(StudyError, match=said):
        read_mapping(tmp_path / "p.yaml", "the profile")


def test_yaml_may_name_what_stands_elsewhere(tmp_path):
    (tmp_path / "p.yaml").write_text("a: &x {b: 1}\nc: {<<: *x, d: 2}\n")
    assert read_mapping(tmp_path / "p.yaml", "it") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


@pytest.mark.parametrize("value", ["*x", "[" * 5000, "2024-99-99", "x" * 1_000_001])
def test_value_of_set_is_bounded_too(value):
    with pytest.raises(StudyError, match="the value"):
        parse_value(value, f"a={value}")


def test_what_unpacks_to_too_much_is_refused_before_it_is_there(tmp_path, monkeypatch):
    rows = [json.dumps({"text": "a" * 1000}) for _ in range(1000)]
    packed, table = tmp_path / "a.jsonl.gz", tmp_path / "a.parquet"
    packed.write_bytes(gzip.compress("\n".join(rows).encode()))
    pq.write_table(pa.table({"text": [f"{i:01000d}" for i in range(1000)]}), table)
    assert len(list(read_rows(packed)[0])) == len(list(read_rows(table)[0])) == 1000
    monkeypatch.setattr("studylib.inputs.rows.most_bytes", lambda: 500_000)
    for path in (packed, table):
        with pytest.raises(StudyError, match="unpacked it has more than"):
            list(read_rows(path)[0])


def test_column_whose_name_is_no_text_is_one_message(tmp_path):
    """Found by fuzzing: pyarrow reads the name only where it is asked for its columns' paths."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), path)
    path.write_bytes(path.read_bytes().replace(b"prompt", b"pro\x80pt"))
    with pytest.raises(StudyError, match="not a whole Parquet file"):
        read_rows(path)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_lines_of_a_table_may_end_in_any_way(tmp_path, end):
    """Found by fuzzing: the search for the separator met a carriage return within its line."""
    (tmp_path / "a.csv").write_bytes(f"prompt;completion{end}a;b{end}".encode())
    assert read_rows(tmp_path / "a.csv")[0][0][1] == {"prompt": "a", "completion": "b"}


def test_gzip_of_several_parts_and_with_filling_is_whole(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}') + bytes(9))
    assert [row["text"] for _, row in read_rows(path)[0]] == ["a", "b"]
    path.write_bytes(gzip.compress(b'{"text": "a"}\n')[:-3])
    with pytest.raises(StudyError, match="not a whole gzip file"):
        list(read_rows(path)[0])


def test_weights_outside_of_the_models_folder_are_not_looked_at(tmp_path):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StudyError, match="outside of its folder"):
        weight_files(tmp_path)


def header(*values: bytes, tensors=0, keys=None, version=3) -> bytes:
    """A GGUF's: values as key and type and content; keys: how many it says it has."""
    count = len(values) if keys is None else keys
    start = b"GGUF" + struct.pack("<IQQ", version, tensors, count)
    return start + b"".join(struct.pack("<Q", 1) + b"k" + value for value in values)


STRING, LIST = struct.pack("<I", 8), struct.pack("<I", 9)
HUGE = 2**62


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(keys=HUGE), "keys"),
        (header(tensors=HUGE), "tensors"),
        (header(version=9), "version is 9"),
        (header(STRING + struct.pack("<Q", HUGE)), "are announced where 0 are left"),
        (header(LIST + struct.pack("<IQ", 4, HUGE)), "are announced"),
        (header(LIST + struct.pack("<IQ", 8, HUGE)), "are announced"),
        (header(LIST + struct.pack("<IQ", 9, 1)), "a list holds values of type 9"),
        (header(struct.pack("<I", 77)), "a value is of type 77"),
        (header(keys=1), "are announced"),
    ],
)  # fmt: skip
def test_gguf_header_that_its_file_has_no_room_for_is_refused(tmp_path, content, said):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(BadHeader, match=said):
        check_gguf_header(path)
    path.write_bytes(header(STRING + struct.pack("<Q", 2) + b"ok"))
    check_gguf_header(path)


def test_template_that_takes_too_long_or_too_much_is_refused_once(monkeypatch):
    monkeypatch.setattr(template_trial, "MOST_SECONDS", 1)
    monkeypatch.setattr(template_trial, "MOST_BYTES", 64 << 20)

    def wait():
        while True:
            pass

    with pytest.raises(StudyError, match="more than 1 seconds"):
        try_template("waits", wait)
    with pytest.raises(StudyError, match=r"more than 0\.1 GB"):
        try_template("grows", lambda: bytearray(256 << 20))
    done = []
    try_template("writes", lambda: done.append(1))
    assert done == [], "what is tried is tried in a fork"
    try_template("writes", lambda: pytest.fail("it was tried twice"))


def test_templates_are_sandboxed(tiny_folder):
    """transformers' own sandbox: a template reaches no Python object's insides."""
    from transformers import AutoTokenizer

    from studylib.inputs.templates import TemplateRefuses, render

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    talk = [{"role": "user", "content": "a"}]
    tokenizer.chat_template = "{{ messages[0].content.__class__.__mro__ }}"
    with pytest.raises(TemplateRefuses):
        render(talk, tokenizer, None)
    tokenizer.chat_template = "{% include 'x' %}"
    with pytest.raises(TemplateRefuses):
        render(talk, tokenizer, None)
