"""Shipped records keep the code that made them; today's code still gives their answers.

Two short runs are made again: costly records need not be, as long as these agree. Another processor
adds in another order, and a training lets such differences grow: what is held is the first loss,
which has had no time to, and the share of right answers within 3 points.
"""

from __future__ import annotations

import pandas as pd
import pytest

from studylib.core.places import REFERENCE
from studylib.schema.records import read_record
from studylib.training.run import open_run

MOST_POINTS_APART = 0.03


@pytest.mark.parametrize("run_id", ["ladder-0.4m--full--s0", "ladder-0.4m--qlora-r16--s0"])
def test_todays_code_gives_the_answers_of_a_shipped_record(run_id, tmp_path):
    folder = REFERENCE / "cpu" / "runs" / run_id
    shipped = read_record(folder / "record.json")
    items, steps = (pd.read_parquet(folder / f"{name}.parquet") for name in ("items", "steps"))
    run = open_run("cpu", run_id, str(tmp_path))
    try:
        run.load()
        run.train()
        run.evaluate()
    finally:
        run.meter.__exit__(None, None, None)
    assert run.ok and run.spec.learning_rate == shipped.run.learning_rate
    assert run.load_block.model_sha256 == shipped.load.model_sha256
    assert run.load_block.four_bit_share == shipped.load.four_bit_share
    assert run.data.order_sha256 == shipped.fingerprint["data.order_sha256"]
    assert run.log.rows[0]["loss"] == pytest.approx(steps["loss"].iloc[0], rel=1e-4)
    same = ["task", "weights", "item", "answer"]
    assert run.items[same].equals(items[same])
    for task in ("questions", "retention"):
        ours, theirs = (
            frame[frame["task"] == task]["correct"].mean() for frame in (run.items, items)
        )
        assert ours == pytest.approx(theirs, abs=MOST_POINTS_APART), task
