"""Packed values and rows: what went in comes out, and the hashes are those of the whole list."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from studylib.core.errors import StudyError
from studylib.core.sealed import canonical
from studylib.inputs import spool
from studylib.inputs.data import hash_list, prepare_data
from studylib.inputs.examples import Examples
from studylib.inputs.packed import PackedRows, TokenStore
from studylib.inputs.spool import Spool
from studylib.inputs.tokens import IGNORED, Tokenised
from studylib.schema.profile import DataSettings, TrainSettings

VALUES = [{"text": "é" * i, "tools": [{"z": None, "a": 1.5}]} for i in range(40)]


@pytest.mark.parametrize("in_memory", [10**6, 500], ids=["memory", "file"])
def test_values_come_out_as_they_went_in(monkeypatch, in_memory):
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", in_memory)
    kept = Spool(VALUES)
    assert (kept._store._file is None) == (in_memory == 10**6)
    assert kept == VALUES and kept[3:5] == VALUES[3:5] and kept[-1] == VALUES[-1]
    assert list(kept[2]["tools"][0]) == ["z", "a"]  # templates write keys in their order
    assert kept != VALUES[:-1] and kept != VALUES[::-1]
    with pytest.raises(IndexError):
        kept[40]
    some = Examples(VALUES, {"no answer": 2}).part([7, 3], {"no answer": 1})
    assert some == [VALUES[7], VALUES[3]] and some.skipped == {"no answer": 3}
    some.append(VALUES[0])
    assert some == [VALUES[7], VALUES[3], VALUES[0]]


def test_a_full_disk_is_one_message(monkeypatch):
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(spool, "TemporaryFile", lambda: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(StudyError, match="the disk is full"):
        Spool(VALUES)


def test_a_hash_made_value_by_value_is_that_of_the_list():
    for values in ([], VALUES[:1], VALUES):
        made = hash_list(map(canonical, values))
        assert made == hashlib.sha256(canonical(values)).hexdigest()


@pytest.mark.parametrize("largest", [65_535, 65_536, 200_000])
def test_rows_of_any_vocabulary_are_the_tokens_that_were_put_in(largest):
    made = [
        Tokenised.of([1, 2, 3], [(1, 3)]),
        Tokenised.of([5, largest, 7, 8], [(1, 2), (3, 4)], cut=True),
        Tokenised.of([9, 9], [(0, 2)]),
    ]
    assert made[1] == {"input_ids": [5, largest, 7, 8], "labels": [IGNORED, largest, IGNORED, 8]}
    store = TokenStore()
    assert [store.add(tokens) for tokens in made] == [0, 1, 2]
    rows = PackedRows(store, [[1, 0], [2], [1]])
    assert list(rows) == [[made[1], made[0]], [made[2]], [made[1]]]
    assert [*rows.as_json()] == [*map(canonical, rows)]
    assert [store.length(i) for i in range(3)] == [3, 4, 2]
    assert rows[0][0].cut and not rows[0][1].cut


def test_conversations_beyond_memory_give_the_same_rows(monkeypatch, tmp_path):
    """The hashes are those of the code that kept all of it as lists."""
    from test_chat_template import DEFAULT_SYSTEM, SYSTEM, conversation, make_tokenizer, unmarked

    turns = [[(role, f"{i} {text}") for role, text in SYSTEM[: 3 + 2 * (i % 2)]] for i in range(90)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(conversation(t)) for t in turns))
    data = DataSettings(source=str(path), template="auto", held_out=9)
    for in_memory in (10**6, 300):
        monkeypatch.setattr(spool, "IN_MEMORY_BYTES", in_memory)
        made = prepare_data(data, TrainSettings(steps=40, seq_len=256),
                            make_tokenizer(unmarked(DEFAULT_SYSTEM)), 3)  # fmt: skip
        assert made.epochs > 1
        assert (made.sha256[:16], made.order_sha256[:16]) == (
            "87201a7a9340ae05",
            "86c6a322010c8ed8",
        )
