"""One serving run: its record holds what the claims need, through papermill as in production."""

from __future__ import annotations

import json

import nbformat
import pandas as pd
import pytest

from studylib.commands.cli_serve import serve_one
from studylib.core.errors import StudyError
from studylib.core.stats import compare_timings
from studylib.notebook_views.serve_views import (
    list_skipped,
    tabulate_checks,
    tabulate_latency,
    tabulate_swap,
)
from studylib.reporting.serve_tables import mixed_table, tell_skipped
from studylib.running.runner import NOTEBOOKS
from studylib.schema.profile import read_profile
from studylib.schema.serve_records import SERVE_RECORD, read_serve_record, read_serve_records
from studylib.schema.serving import ServeSettings, find_spec, serve_specs
from studylib.scoring.evaluate import NotANumber
from studylib.serving.latency import time_case
from studylib.serving.pair_timings import CASE, TIMINGS
from studylib.serving.serve_run import CPU_NOTE, ServeRun

FAST = ServeSettings(
    batch_sizes=(1, 2), prompt_tokens=(16, 1024), new_tokens=4, rounds=3, budget_seconds=0.01,
    adapters=2, switches=4, mixed_batch=2, mixed_prompt_tokens=8, mixed_new_tokens=2,
)  # fmt: skip
STAGES = ("load", "footprint", "latency", "mix", "swap")


def serve(folder, method, **changes):
    profile = read_profile("smoke")
    spec = find_spec(profile, f"ladder-0.4m--{method}", FAST.model_copy(update=changes))
    run = ServeRun(spec, folder / spec.serve_id)
    for stage in STAGES:
        getattr(run, stage)()
    return run


def test_a_profile_is_served_once_for_each_model_and_method():
    profile = read_profile("cpu", {"methods": ["full", "lora", "lora-embed", "qlora"]})
    ids = [spec.serve_id for spec in serve_specs(profile)]
    methods = ("base", "full", "lora-r16", "qlora-r16")  # several embeddings on one base: no
    assert ids == [f"ladder-{size}--{m}" for size in ("0.4m", "1.4m") for m in methods]
    with pytest.raises(StudyError, match="lora-r16"):
        find_spec(read_profile("cpu"), "ladder-0.4m--lora-r17")


@pytest.mark.parametrize("method", ["base", "full"])
def test_without_an_adapter_there_is_one_pair_and_no_swap(tmp_path, method):
    run = serve(tmp_path, method)
    name = "full" if method == "full" else "again"
    assert {row.variant for row in run.measures.latency} == {"base", name}
    assert run.measures.swap is None and run.measures.mixed == ()
    assert run.measures.load_model_seconds is not None
    record = read_serve_record(run.finish())
    assert record.status == "complete" and not run.work.exists()


def test_qlora_record_holds_every_variant_and_says_what_it_is_not(tmp_path):
    run = serve(tmp_path, "qlora-r16")
    measures = run.measures
    pairs = {(row.variant, row.against) for row in measures.latency if row.against}
    assert pairs == {("dynamic", "base"), ("merged", "base"), ("dynamic", "4-bit base")}
    assert [row.batch for row in measures.overheads("merged")] == [1, 2]
    assert {row.what for row in measures.footprint} == {
        "checkpoint", "4-bit base", "adapter", "merged model"
    }  # fmt: skip
    assert measures.swap is not None and measures.swap.proven and measures.swap.sooner
    assert [s.what for s in measures.skipped] == ["prompt of 1024 tokens"]
    assert CPU_NOTE in measures.notes
    note = next(n for n in measures.notes if "loaded on one base" in n)
    told = [word.strip(";.") for word in note.split() if "," in word]
    assert told[0] == told[1]  # tensors in memory and the table's arithmetic
    path = run.finish()
    record = read_serve_record(path)
    assert record.measures == measures
    assert set(record.stages) == {"load", "footprint", "latency", "mixed batch", "swap"}
    assert all(stage.host_peak_bytes for stage in record.stages.values())
    assert read_serve_records(path.parent.parent) == [record]
    assert_ratios_follow_from_timings(record, path.parent / TIMINGS)
    with pytest.raises(StudyError, match="finished"):
        ServeRun(run.spec, path.parent)


def assert_ratios_follow_from_timings(record, path):
    """Whoever has the folder can work out each ratio and its interval again."""
    table = pd.read_parquet(path)
    assert {row for row, _ in table.groupby(list(CASE))} == {
        tuple(getattr(row, name) for name in CASE)
        for row in record.measures.latency if row.against
    }  # fmt: skip
    for row in record.measures.latency:
        if row.against:
            case = (table[list(CASE)] == [getattr(row, name) for name in CASE]).all(axis=1)
            told = {
                "first token": row.first_token_ratio,
                "between tokens": row.between_tokens_ratio,
            }
            for what, ratio in told.items():
                pairs = table[case & (table.what == what)].sort_values("pair")
                again = compare_timings(pairs.base_seconds, pairs.variant_seconds)
                assert (ratio.value, ratio.low, ratio.high) == pytest.approx(tuple(again))
                assert ratio.pairs == len(pairs)


def test_changed_record_is_refused(tmp_path):
    path = serve(tmp_path, "base").finish()
    content = json.loads(path.read_text())
    content["measures"]["footprint"][0]["disk_bytes"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(StudyError, match="changed"):
        read_serve_record(path)
    path.write_text("{")
    with pytest.raises(StudyError, match="not JSON"):
        read_serve_record(path)


def test_running_out_of_memory_in_one_case_is_a_reason_and_the_others_go_on(tmp_path, monkeypatch):
    def fail_for_two(pairs, prompt, *rest):
        if len(prompt) == 2:
            raise MemoryError
        return time_case(pairs, prompt, *rest)

    monkeypatch.setattr("studylib.serving.serve_run.time_case", fail_for_two)
    run = serve(tmp_path, "base", prompt_tokens=(16,))
    assert {row.batch for row in run.measures.latency} == {1}
    assert [(s.what, s.reason) for s in run.measures.skipped] == [
        ("batch of 2, prompt of 16 tokens", "out of memory")
    ]
    run.finish()


def test_running_out_of_memory_in_a_stage_is_a_result(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr("studylib.serving.serve_run.load_model", fail)
    run = serve(tmp_path, "base")
    record = read_serve_record(run.finish())
    assert (record.status, record.reason) == ("out of memory", "load: no room")


def test_answers_that_are_not_numbers_are_a_result(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NotANumber("8 of 64 logits are not finite")

    monkeypatch.setattr("studylib.serving.serve_run.measure_swap", fail)
    run = serve(tmp_path, "lora-r16", prompt_tokens=(16,))
    record = read_serve_record(run.finish())
    assert record.status == "not a number"
    assert record.reason == "swap: 8 of 64 logits are not finite"
    assert record.measures.swap is None and record.measures.latency
    assert any("not a number: swap" in line for line in tell_skipped([record]))


def test_notebook_serves_through_papermill_and_keeps_what_is_finished(tmp_path):
    path = serve_one("ladder-0.4m--base", "smoke", "smoke", tmp_path)
    record = read_serve_record(path)
    assert record.status == "complete"
    assert {row.batch for row in record.measures.latency} == {1, 8, 32}
    assert (path.parent / "executed.ipynb").is_file()
    before = path.stat().st_mtime_ns
    assert serve_one("ladder-0.4m--base", "smoke", "smoke", tmp_path) == path
    assert path.stat().st_mtime_ns == before


def test_views_say_a_word_where_there_is_no_figure(tmp_path):
    run = serve(tmp_path, "base")
    assert isinstance(tabulate_swap(run.measures.swap), str)
    assert not mixed_table([run]).rows
    assert isinstance(tabulate_checks(run.measures), str)
    assert "512 positions" in list_skipped(run.measures)
    assert len(tabulate_latency(run.measures)) == 4
    run.finish()


def test_notebook_is_kept_clean():
    notebook = nbformat.read(NOTEBOOKS / "20_serve.ipynb", as_version=4)
    cells = notebook.cells
    assert cells[0].source.splitlines()[0].startswith("# ")
    assert cells[0].source.splitlines()[0].endswith("?")
    assert all(f"\n{word}: " in cells[0].source for word in ("Needs", "Makes", "Takes"))
    assert len(cells) <= 15
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(len(cell.source.splitlines()) <= 12 for cell in code)
    assert not any(
        line.startswith(("def ", "class ")) for c in code for line in c.source.split("\n")
    )
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = [line.split(" = ")[0] for line in tagged[0].source.splitlines()]
    assert names == ["PROFILE", "RUN_ID", "RESULTS", "CONCURRENT_RUNS"]
    assert SERVE_RECORD == "serve.json"
