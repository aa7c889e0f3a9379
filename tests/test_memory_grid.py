"""A study of one recipe in several shapes of a pass: one table, and what stays below 24 GB."""

from pathlib import Path

import pytest
from record_factory import GPU, Factory, make_spec

from studylib.reporting.blocks import Table, Text
from studylib.reporting.capacity import is_capacity
from studylib.reporting.compose import build_report
from studylib.reporting.memory_grid import grid_table, is_grid, tell_grid
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study
from studylib.schema.profile import read_profile

PEAKS = {("lora", 1): 30, ("lora", 4): 36, ("lora", 16): 60,
         ("qlora", 1): 9, ("qlora", 4): 14, ("qlora", 16): 31}  # fmt: skip


def write_grid(folder: Path, device: str = GPU, **changes) -> None:
    """LoRA and QLoRA at 1, 4 and 16 rows of 2,048 tokens, with peaks in GB by NVML."""
    factory = Factory(folder, device=device)
    make_block = factory.train

    def train(spec):
        block = make_block(spec)
        peak = PEAKS[spec.method.name, spec.train.micro_batch] * 10**9
        seen = {"nvml_peak_bytes": peak} if device == GPU else {}
        return block.model_copy(update={"measure": block.measure.model_copy(update=seen)})

    factory.train = train
    for (method, rows), _ in PEAKS.items():
        spec = make_spec(method, "shape:Llama-2-13B", track=f"{rows}x2048", profile="grid", gpus=1)
        shape = {"micro_batch": rows, "seq_len": 2048} | changes.get(spec.track, {})
        factory.add(spec.model_copy(update={"train": spec.train.model_copy(update=shape)}))


@pytest.fixture
def summary(tmp_path):
    write_grid(tmp_path / "grid")
    return summarise_study(read_study(tmp_path / "grid", planned=()))


def test_shapes_of_a_pass_stand_in_one_table_in_their_order(summary):
    assert is_grid(summary)
    assert not is_capacity(summary)
    rows = grid_table(summary).rows
    assert [row[1:4] for row in rows] == [
        ("LoRA r=16", "1 × 2,048", "30.0 GB"), ("LoRA r=16", "4 × 2,048", "36.0 GB"),
        ("LoRA r=16", "16 × 2,048", "60.0 GB"), ("QLoRA r=16", "1 × 2,048", "9.00 GB"),
        ("QLoRA r=16", "4 × 2,048", "14.0 GB"), ("QLoRA r=16", "16 × 2,048", "31.0 GB"),
    ]  # fmt: skip


def test_what_stays_below_24_gb_is_said_for_each_method(summary):
    text = tell_grid(summary)
    assert "LoRA r=16 of shape:Llama-2-13B at none" in text
    assert "QLoRA r=16 of shape:Llama-2-13B at 1 × 2,048 (9.00 GB) and 4 × 2,048 (14.0 GB)" in text


def test_the_report_has_one_table_for_the_grid_and_its_sentence(summary):
    report = build_report([summary], [], None, own_folder="")
    assert [b for b in report.parts["results"] if isinstance(b, Table)] == [grid_table(summary)]
    assert Text(tell_grid(summary)) in report.parts["results"]


def test_tracks_that_differ_in_more_than_their_rows_are_no_grid(tmp_path):
    write_grid(tmp_path / "grid", **{"4x2048": {"optimizer": "adamw-8bit"}})
    assert not is_grid(summarise_study(read_study(tmp_path / "grid", planned=())))


def test_without_a_card_nothing_is_said_of_24_gb(tmp_path):
    write_grid(tmp_path / "grid", device="CPU AMD EPYC")
    text = tell_grid(summarise_study(read_study(tmp_path / "grid", planned=())))
    assert text.endswith("is not measured.")


def test_the_shipped_profile_asks_for_such_a_grid_and_for_no_untrained_run():
    runs = read_profile("article-memory").runs()
    assert {run.method.name for run in runs} == {"lora", "qlora"}
    shapes = {(run.train.micro_batch, run.train.seq_len) for run in runs}
    assert shapes == {(rows, length) for rows in (1, 4, 16) for length in (512, 2048)}
    assert {run.method.targets for run in runs} == {("q_proj", "k_proj", "v_proj", "o_proj")}
