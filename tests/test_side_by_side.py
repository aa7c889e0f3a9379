"""Answers are made once each, by whichever process is free."""

from __future__ import annotations

import os
import time
from functools import partial

from studylib.forecasting import side_by_side
from studylib.forecasting.side_by_side import make_ahead

LIMIT_SECONDS = 60


def test_the_second_process_makes_all_that_is_left_while_the_first_is_at_work(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(side_by_side, "count_cores", lambda: 2)
    monkeypatch.setattr(side_by_side, "may_fork", lambda: True)
    monkeypatch.setattr(side_by_side, "import_forecaster", lambda: None)

    def make(number):
        with (tmp_path / str(number)).open("x") as file:  # a second time would fail
            file.write(str(os.getpid()))

    def make_last():
        end = time.monotonic() + LIMIT_SECONDS
        while len(list(tmp_path.iterdir())) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        make("last")

    make_ahead([make_last, *(partial(make, number) for number in range(4))])
    by = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(by) == ["0", "1", "2", "3", "last"]
    others = {by[name] for name in "0123"}
    assert len(others) == 1 and by["last"] not in others
