"""Files that are cut, changed, read-only or shared, and a clock that is set back."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scene import write_profile
from waiting import LONG_SECONDS, wait_for

from studylib.core.errors import StudyError
from studylib.inputs.converted import made_once
from studylib.inputs.rows import read_rows

ROWS = [
    {"instruction": f"what is {i}", "input": "", "output": f"it is {i} " * 9} for i in range(40)
]


def contents():
    """The same rows as each kind of file."""
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    cells = "\n".join(",".join(row.values()) for row in ROWS).encode()
    return {"a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines),
            "a.json": json.dumps(ROWS).encode(), "a.csv": b"instruction,input,output\n" + cells,
            "a.parquet": table.getvalue().to_pybytes()}  # fmt: skip


def test_data_file_that_is_cut_short_is_read_or_named(tmp_path, record_property):
    seen = {}
    for name, content in contents().items():
        path, refused = tmp_path / name, 0
        for tenth in range(1, 10):
            path.write_bytes(content[: len(content) * tenth // 10])
            try:
                rows = [row for _, row in read_rows(path)[0]]
            except StudyError as error:
                assert name in str(error)
                refused += 1
            else:
                *whole, last = rows
                assert whole == ROWS[: len(whole)] and last.keys() == ROWS[0].keys()
        path.write_bytes(content)
        assert [row for _, row in read_rows(path)[0]] == ROWS
        seen[name] = refused
    assert seen["a.jsonl.gz"] == seen["a.json"] == seen["a.parquet"] == 9
    record_property("seen", "refused, of nine: " + ", ".join(f"{k} {v}" for k, v in seen.items()))


def rewrite(path, stop):
    """Two writings in turn, in place, as an editor or a job that makes data does it."""
    both = [b"\n".join(json.dumps({"text": f"{who} {i}"}).encode() for i in range(3000))
            for who in ("old", "newer")]  # fmt: skip
    while not stop.is_set():
        for content in both:
            path.write_bytes(content)


def test_data_file_that_changes_gives_one_writing_or_a_message(tmp_path, record_property):
    """A file that is being written is short, never a mixture that nobody wrote."""
    path, fork = tmp_path / "a.jsonl", multiprocessing.get_context("fork")
    stop = fork.Event()
    writer = fork.Process(target=rewrite, args=(path, stop))
    writer.start()
    try:
        wait_for(path.is_file)
        whole = short = refused = 0
        for _ in range(60):
            try:
                rows = [row["text"].split() for _, row in read_rows(path)[0]]
            except StudyError as error:
                assert "a.jsonl" in str(error)
                refused += 1
                continue
            assert [int(number) for _, number in rows] == list(range(len(rows)))
            whole += len(rows) == 3000
            short += len(rows) < 3000
    finally:
        stop.set()
        writer.join(LONG_SECONDS)
    assert whole + short + refused == 60
    record_property("seen", f"60 readings: {whole} whole, {short} short, {refused} refused by name")


@contextmanager
def read_only(folder):
    """A file system in which nobody writes, root neither."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_results_that_are_read_only_are_one_message_before_any_work(
    study, tmp_path, record_property
):
    profile = write_profile(tmp_path, methods=["base"])
    with read_only(tmp_path / "r") as results:
        code, _, err = study("reproduce", "--profile", profile, "--results", results)
    assert code == 2 and "Read-only file system" in err and err.count("\n") == 1
    record_property("seen", "exit 2: cannot be written (Read-only file system)")


def test_cache_that_is_read_only_is_one_message(tmp_path, record_property):
    refused = pytest.raises(StudyError, match="Read-only")
    with read_only(tmp_path / "cache") as cache, refused as caught, made_once(cache / "model"):
        pass
    assert "STUDY_CACHE" in caught.value.remedy
    record_property("seen", f"exit 2: {caught.value.rule}")


def fill(folder, entered, wait):
    with made_once(folder) as (_, unfinished):
        if unfinished is None:
            return
        (unfinished / "first").write_text(str(os.getpid()))
        entered.set()
        while wait:
            time.sleep(0.1)
        (unfinished / "second").touch()


def test_cache_of_two_users_survives_the_kill_of_one(tmp_path, record_property):
    fork, folder = multiprocessing.get_context("fork"), tmp_path / "model"
    entered = [fork.Event(), fork.Event()]
    first = fork.Process(target=fill, args=(folder, entered[0], True))
    first.start()
    assert entered[0].wait(LONG_SECONDS)
    second = fork.Process(target=fill, args=(folder, entered[1], False))
    second.start()
    assert not entered[1].wait(0.5) and not folder.exists()
    os.kill(first.pid, signal.SIGKILL)
    second.join(LONG_SECONDS)
    assert second.exitcode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["first", "second"]
    assert (folder / "first").read_text() == str(second.pid)
    record_property("seen", "the second one waited, then made the folder anew")


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=1, hours=1)])
def test_clock_that_is_set_back_changes_no_duration(
    tiny_folder, tmp_path, monkeypatch, record_property, back
):
    """By the study's own clock, for dates; durations come from one that nobody sets."""
    from test_run import make_spec

    from studylib.schema.records import read_record
    from studylib.training import run as run_module

    clock = [datetime(2026, 3, 1, 0, 30, tzinfo=UTC)]
    monkeypatch.setattr(run_module, "now", lambda: clock[0].isoformat(timespec="seconds"))
    run = run_module.Run(make_spec(f"path:{tiny_folder}"), tmp_path)
    run.load()
    clock[0] -= back
    run.train()
    run.evaluate()
    run.serve()
    record = read_record(run.finish())
    said = record.environment
    assert said.started_at > said.finished_at, "it was not set back"
    seconds = [block.measure.wall_seconds for block in (record.load, record.train, record.evaluate)]
    assert all(0 < value < LONG_SECONDS for value in seconds)
    assert 0 < record.train.tokens_per_second < 1e9
    record_property("seen", f"back by {back}: every stage has its own positive seconds")
