"""A study under way in a notebook: the losses that were seen, the time left, the weights left."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from record_factory import Factory, make_spec

from studylib.notebook_views import live, my_data
from studylib.planning.plan import Plan, PlannedRun
from studylib.running.executor import Failure
from studylib.schema.profile import read_profile
from studylib.schema.ranges import Range


@pytest.fixture
def shown(monkeypatch):
    """What was put into the notebook, the last of each place."""
    places = []

    class Place:
        def update(self, one, raw=False):
            self.holds = one

    def display(one, display_id=True, raw=False):
        place = Place()
        place.update(one)
        places.append(place)
        return place

    monkeypatch.setattr("IPython.display.display", display)
    return places


def plan(*names):
    runs = [PlannedRun(run_id=name, state="to do", seconds=90.0, seconds_source="", usd=0.5)
            for name in names]  # fmt: skip
    return Plan(profile="mine", results="r", jobs=1, runs=tuple(runs))


def test_losses_and_time_left_stand_in_two_places_until_the_end(shown, monkeypatch, tmp_path):
    clock = iter(float(second) for second in range(0, 1000, 2))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = live.LiveProgress()
    progress.begin(plan("a", "b"))
    progress.started("a")
    for step in (1, 2, 2, 5):
        figures = {"doing": "training", "step": step, "steps": 10, "loss": 4.0 - step / 10,
                   "tokens_per_second": 9.0}  # fmt: skip
        progress.update("a", figures)
    assert progress.losses == {"a": [(1, 3.9), (2, 3.8), (5, 3.5)]}
    text = shown[0].holds["text/plain"]
    assert "step 5/10, loss 3.500" in text and "to go" in text
    assert "its training ends in about" in text
    steps = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "tokens": [1, 1, 1]})
    steps.to_parquet(tmp_path / "steps.parquet")
    progress.finished("a", tmp_path)
    progress.end(["a"], [])
    assert progress.losses["a"] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert len(shown) == 2 and "1 runs finished" in shown[0].holds["text/plain"]
    line = shown[1].holds.axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3] and list(line.get_ydata()) == [3.0, 2.0, 1.0]


def test_study_without_a_training_has_an_empty_picture():
    assert live.plot_losses({"base": []}).axes[0].get_title(loc="left") == "No run trains yet"


def test_what_runs_take_is_a_row_a_run_and_unknown_where_it_is(shown):
    table = my_data.tabulate_takes(plan("a", "b"), None, {})
    assert table.loc["a", "minutes"] == "1.5" and table.loc["b", "dollars"] == "0.5000"
    unknown = PlannedRun(run_id="c", state="to do", seconds=None, seconds_source="", usd=None)
    made = plan().model_copy(update={"runs": (unknown,)})
    assert my_data.tabulate_takes(made, None, {}).loc["c", "minutes"] == "unknown"
    by_forecast = my_data.tabulate_takes(made, None, {}, {"c": Range(low=30, mid=90, high=99)})
    assert by_forecast.loc["c", "minutes"] == "1.5"


def test_weights_that_were_kept_are_listed_and_their_absence_is_said(tmp_path):
    factory = Factory(tmp_path / "cpu", items=32)
    factory.add(make_spec("full"))
    assert my_data.tabulate_kept(factory.folder) == "No weights were kept."


def test_failures_show_their_message_or_their_log():
    failed = {"a": Failure("log.txt", "the <disk> is full"), "b": Failure("log.txt", None)}
    assert my_data.tell_failures(failed).splitlines() == [
        r"- **a failed**: the \<disk\> is full",
        "- **b failed**: log.txt",
    ]
    assert my_data.name_failures(failed) == {"a": "the <disk> is full", "b": "log.txt"}
    assert my_data.tell_failures({}) == ""


def test_what_is_learned_of_ones_own_data_is_in_colour_and_its_html_is_not_obeyed(tmp_path):
    row = {"messages": [{"role": "user", "content": "one?"},
                        {"role": "assistant", "content": "<i>two"}]}  # fmt: skip
    (tmp_path / "mine.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    profile = read_profile("smoke", {"data": {"source": str(tmp_path / "mine.jsonl"),
                                              "template": "auto"}})  # fmt: skip
    shown = my_data.show_data(profile, ["a *line*"])
    assert "color:#0072b2" in shown and "<i>" not in shown and r"a \*line\*" in shown
