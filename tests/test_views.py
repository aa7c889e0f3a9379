"""What the run notebook shows is what the run has: sample, losses, memory, changed answers."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd

from studylib.inputs.data import IGNORED, TrainingData
from studylib.notebook_views import views


class Words:
    """A tokenizer whose tokens are its numbers."""

    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids)


def test_sample_marks_what_is_learned_and_counts_it():
    example = {"input_ids": [1, 2, 3], "labels": [IGNORED, IGNORED, 3]}
    data = TrainingData(rows=[[example, example]], examples=4, sha256="", order_sha256="", drawn=2)
    text = views.show_sample(data, Words())
    assert 'w1 w2 <span style="color:#0072b2">**w3**</span>' in text
    assert "0.50 epochs" in text and "6 tokens" in text and "2 of them learned" in text
    assert "does not train" in views.show_sample(None, None)


def test_text_of_the_data_is_not_taken_for_markdown():
    assert views.quote("*a* #b <c>") == r"\*a\* \#b \<c\>"


def test_loss_title_names_first_and_last(monkeypatch):
    steps = [{"step": i, "loss": 3.0 - i / 10} for i in range(1, 21)]
    title = views.plot_loss(steps).axes[0].get_title(loc="left")
    assert "from 2.90 to 1.00 in 20 steps" in title
    assert "does not train" in views.plot_loss([]).axes[0].texts[0].get_text()
    assert not plt.get_fignums(), "left open, a figure would be shown twice"


def test_memory_of_a_resumed_run_follows_on_from_its_first_process():
    samples = pd.DataFrame({
        "t_seconds": [0.0, 1.0, 0.0, 2.0], "stage": ["load", "train", "load", "train"],
        "host_bytes": [1e9, 2e9, 1e9, 3e9], "nvml_used_bytes": [None] * 4, "session": [1, 1, 2, 2],
    })  # fmt: skip
    axes = views.plot_memory(samples).axes[0]
    assert max(line.get_xdata().max() for line in axes.lines) == 3.0
    assert any("3.00 GB" in text.get_text() for text in axes.texts)
    assert "host memory" in axes.get_title(loc="left").lower()


def item(name: str, chosen: int, task="questions", weights="own"):
    return {"task": task, "item": name, "question": name, "choices": ["a", "b", "c", "d"],
            "answer": 1, "chosen": chosen, "correct": chosen == 1, "subject": "s",
            "weights": weights}  # fmt: skip


def test_changed_answers_come_first_before_and_after():
    before = pd.DataFrame([item("same", 2), item("learned", 0)])
    after = pd.DataFrame([item("same", 2), item("learned", 1)])
    shown = views.compare_items(before, after)
    assert shown.iloc[0].to_dict() == {
        "question": "learned",
        "right": "b",
        "before": "a",
        "after": "b",
    }
    undecided = after.assign(chosen=-1)
    assert set(views.compare_items(before, undecided)["after"]) == {"undecided"}
    assert isinstance(views.compare_items(None, after), str)
    assert isinstance(views.compare_items(before, None), str)


def test_subject_table_counts_by_task():
    merged = item("x", 0, weights="merged")
    table = views.tabulate_subjects(pd.DataFrame([item("x", 1), item("y", 0), merged]))
    assert table.loc[("questions", "s"), "right (%)"] == 50.0
    assert table.loc[("questions", "s"), "questions"] == 2
