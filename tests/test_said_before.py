"""A command that found nothing to do says so again, until anything that it read is another."""

from __future__ import annotations

import os
import sys

import pytest

from studylib.commands import said_before
from studylib.commands.said_before import keep_said, mark_places, say_again

LINES = ["all runs are done", "report: here"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A study's folder; its command has said LINES of it."""
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(said_before, "OWN_PLACES", ())
    monkeypatch.setattr(sys, "argv", ["study", "reproduce"])
    folder = tmp_path / "results"
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "record.json").write_text("{}")
    keep_said(LINES, [folder])
    assert say_again() == LINES
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "runs" / "record.json").write_text("{ }"),
        lambda folder: os.utime(folder / "runs" / "record.json", (1, 1)),
        lambda folder: (folder / "runs" / "record.json").unlink(),
        lambda folder: (folder / "runs" / "more.json").write_text(""),
        lambda folder: (folder / "runs").rename(folder / "moved"),
        lambda folder: folder.rename(folder.parent / "moved"),
    ],
)
def test_a_file_changed_gone_or_new_makes_the_command_look_again(place, change):
    change(place)
    assert say_again() is None


def test_other_words_another_folder_and_another_environment_are_another_command(
    place, monkeypatch, tmp_path
):
    with monkeypatch.context() as other:
        other.setattr(sys, "argv", ["study", "reproduce", "--force"])
        assert say_again() is None
    with monkeypatch.context() as other:
        other.chdir(tmp_path)
        assert say_again() is None
    with monkeypatch.context() as other:
        other.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert say_again() is None
    assert say_again() == LINES


def test_what_python_compiles_is_no_change_and_a_link_in_a_circle_ends(place):
    (place / "__pycache__").mkdir()
    (place / "__pycache__" / "x.pyc").write_text("")
    assert say_again() == LINES
    (place / "circle").symlink_to(place)
    assert mark_places([str(place)]) == mark_places([str(place)])


def test_a_kept_file_that_is_damaged_or_cannot_be_written_is_as_none(place, monkeypatch):
    said_before.kept_file().write_text("{")
    assert say_again() is None
    monkeypatch.setattr(said_before, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError))
    keep_said(LINES, [place])
    assert say_again() is None
    keep_said(LINES, [place / "gone"])
