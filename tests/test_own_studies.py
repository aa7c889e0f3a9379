"""A reader's own study, of the forms that people have, from its options to the verdict."""

from __future__ import annotations

import csv
import json

import pytest

from studylib.commands.cli_options import resolve_profile
from studylib.planning.sweeps import sweep_id_of, sweeps_first
from studylib.reporting.report import compose_report, own_sources, write_report
from studylib.running.runner import write_profile
from studylib.schema.tuning import write_sweep
from studylib.training.run import Run
from studylib.training.tune import run_sweep

LABELS = ("card_arrival", "pin_blocked", "exchange_rate")
SMALL = ["train.seq_len=128", "train.accumulation=1", "data.held_out=6", "evaluate.samples=2",
         "evaluate.held_out_limit=6", "hardware.gpus=0"]  # fmt: skip


@pytest.fixture
def stories(shared):
    folder = shared / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip("needs the real model in ../shared, which is not here")
    return f"path:{folder}"


def bank(shared, folder):
    """Three intents of the real Banking77, as its folder has them."""
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        with (shared / "data" / "banking77" / name).open(encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row[1] in (*LABELS, "category")]
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return str(folder)


def chats(folder):
    rows = [{"messages": [{"role": "system", "content": "Be brief."},
                          {"role": "user", "content": f"Who is the friend of {n}? <b>|"},
                          {"role": "assistant", "content": f"Lily is {n}."}]}
            for n in range(60)]  # fmt: skip
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_all(profile, folder):
    """What `reproduce` does, in this process; the report's text."""
    folder.mkdir(parents=True, exist_ok=True)
    write_profile(profile, folder)
    for spec in profile.runs():
        run = Run(spec, folder / "runs" / spec.run_id)
        for stage in (run.load, run.train, run.evaluate, run.serve):
            stage()
        run.finish()
    sources = own_sources(folder)
    return write_report(sources, compose_report(sources)).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "words", "measures", "what"),
    [
        ("banking77", {"columns": "prompt=text answer=category"}, "labels,loss", "right label"),
        ("gsm8k", {}, "loss,number", "held-out loss"),
        ("manx", {}, "loss", "held-out loss"),
    ],
)
def test_each_form_of_data_ends_with_the_verdict(
    shared, stories, tmp_path, name, words, measures, what
):
    source = {
        "banking77": lambda: bank(shared, tmp_path / "bank"),
        "gsm8k": lambda: str(shared / "data" / "instruct" / "gsm8k_train.json"),
        "manx": lambda: str(shared / "data" / "manx"),
    }[name]()
    asked = [*SMALL, "tune=null", f"evaluate.measures=[{measures}]", "train.seq_len=256"]
    profile = resolve_profile(
        None, tmp_path / "r", model=stories, data=source, methods="full,lora", steps=2,
        changes=asked, **words,
    )  # fmt: skip
    text = run_all(profile, tmp_path / "r" / profile.name)
    first = text.partition("\n")[0]
    assert first.startswith("**Learning rates are not tuned")
    assert "LoRA r=16" in first and what in first
    assert ("suffice" in first) or ("cannot be judged" in first)
    table = text.partition("## Held-out prompts, answered")[2].partition("\n## ")[0]
    assert table.count("\n| ") == 2 + 2 and "| base | full | LoRA r=16 |" in table


def test_a_chat_file_is_tuned_run_and_judged_and_its_margin_is_asked_again(stories, tmp_path):
    words = {"model": stories, "data": chats(tmp_path), "methods": "full,lora", "steps": 8}
    results = tmp_path / "r"

    def resolve(*changes):
        return resolve_profile(None, results, changes=[*SMALL, *changes], **words)

    profile = resolve()
    folder = results / profile.name
    waiting, lines = sweeps_first(profile, folder)
    assert len(waiting) == 2 and lines == []
    for spec, rates in waiting:
        record = run_sweep(spec, [rates[0], 16 * rates[-1], 1.0], limit=2, stop_early=True)
        assert record.sweep_id == sweep_id_of(spec) and record.points[-1].is_out
        write_sweep(folder / "tune", record)
    profile = resolve()
    trained = [run for run in profile.runs() if run.method.kind.trains]
    assert all(run.learning_rate_source.startswith("tuned: best of 3") for run in trained)
    text = run_all(profile, folder)
    first = text.partition("\n")[0]
    assert first.startswith("**On your task LoRA r=16") and "not tuned" not in text
    assert r"\<b\>\|" in text.partition("## Held-out prompts")[2], "shown, not obeyed"
    assert "What was left out of the data" in text
    assert "tensors alive were counted" in text and "memory by stage" not in text
    assert "claims" not in compose_report(own_sources(folder)).appendices
    wide = resolve("evaluate.margin=100", "article=true")
    assert wide.name == profile.name
    write_profile(wide, folder)
    sources = own_sources(folder)
    again = compose_report(sources)
    assert "within the 100 %" in again.files["REPORT.md"].decode()
    assert "claims" in again.appendices
    assert sources.inputs != own_sources(folder, planned=profile.runs()).inputs
