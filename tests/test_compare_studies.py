"""Two results folders: noise is not news, a real shift is, and what may not be paired is not."""

from __future__ import annotations

import json

import pytest
import typer
from record_factory import GPU, Factory, make_spec
from typer.testing import CliRunner

from studylib.commands import cli_advise
from studylib.core.errors import StudyError
from studylib.core.measure import StageMeasure
from studylib.reporting.compare_studies import compare_folders, compare_ratios, judge_spread
from studylib.reporting.move_words import format_moves
from studylib.reporting.resources import Spread
from studylib.schema.serve_records import ServeRecord, write_serve_record
from studylib.schema.serving import (
    FootprintRow,
    LatencyRow,
    PairedRatio,
    ServeMeasures,
    ServeSettings,
    ServeSpec,
    summarise_seconds,
)

WHAT = "ladder:0.4m full"


def make_study(folder, knows=None, device="CPU AMD EPYC", items=320, methods=("base", "full")):
    factory = Factory(folder, items=items, device=device)
    for method in methods:
        for seed in (0, 1, 2) if method != "base" else (0,):
            factory.add(make_spec(method, seed=seed), knows=knows if method == "full" else None)
    return folder


def find(compared, method, figure):
    return next(m for m in compared.moves if m.what.endswith(method) and m.figure == figure)


def test_the_same_records_twice_move_nothing(tmp_path):
    a, b = make_study(tmp_path / "a"), make_study(tmp_path / "b")
    compared = compare_folders(a, b)
    assert compared.moved == [] and compared.settings == {}
    assert find(compared, "full", "accuracy").difference == 0
    assert "0 of" in format_moves(compared)


def test_a_fall_of_ten_points_on_the_same_items_is_found_and_paired(tmp_path):
    a, b = make_study(tmp_path / "a", 0.72), make_study(tmp_path / "b", 0.62)
    compared = compare_folders(a, b)
    move = find(compared, "full", "accuracy")
    assert move.rule == "paired" and move.moved
    assert move.difference == pytest.approx(-0.10, abs=0.03)
    assert move.low < move.difference < move.high < 0
    assert [m.what for m in compared.moved] == ["ladder:0.4m full"]
    assert "paired on the same items" in format_moves(compared)


def test_other_items_are_compared_as_independent_samples(tmp_path):
    a, b = make_study(tmp_path / "a", 0.72), make_study(tmp_path / "b", 0.71, items=160)
    move = find(compare_folders(a, b), "full", "accuracy")
    assert move.rule == "unpaired" and not move.moved
    assert move.low < 0 < move.high
    paired = find(compare_folders(a, make_study(tmp_path / "c", 0.71)), "full", "accuracy")
    assert paired.high - paired.low < move.high - move.low


def test_seed_noise_alone_is_rarely_called_a_move(tmp_path):
    """Other runs of the same method: their items vary, their true accuracy does not."""
    a = make_study(tmp_path / "a", 0.70)
    false = 0
    for n in range(8):
        other = Factory(tmp_path / f"b{n}")
        other.add(make_spec("base"))
        for seed in (10 * n + 10, 10 * n + 11, 10 * n + 12):
            other.add(make_spec("full", seed=seed), knows=0.70)
        false += any(m.rule == "paired" and m.moved for m in compare_folders(a, other.folder).moves)
    assert false <= 1


@pytest.mark.parametrize(
    ("after", "moved"),
    [
        (Spread(1.20, 1.18, 1.22, 3), True),  # 20 % and apart
        (Spread(1.04, 1.035, 1.05, 3), False),  # apart, but within 5 %
        (Spread(1.20, 1.00, 1.40, 3), False),  # the seeds' ranges overlap
        (Spread(0.80, 0.79, 0.81, 3), True),  # faster is a move too
    ],
)
def test_a_time_moves_if_ranges_part_by_more_than_the_stated_share(after, moved):
    before = Spread(1.0, 0.98, 1.03, 3)
    assert judge_spread(WHAT, "Clean step", before, after, "time").moved is moved


def test_what_is_counted_moves_by_any_difference():
    before, after = Spread(1000, 1000, 1000, 3), Spread(1001, 1001, 1001, 3)
    assert judge_spread(WHAT, "Trainable", before, after, "counted").moved
    assert not judge_spread(WHAT, "Trainable", before, before, "counted").moved


def test_another_device_is_named_and_only_shared_peaks_are_compared(tmp_path):
    a, b = make_study(tmp_path / "a"), make_study(tmp_path / "b", device=GPU)
    compared = compare_folders(a, b)
    assert compared.settings["device"] == ("CPU AMD EPYC", GPU)
    assert compared.settings["driver 0"] == ("absent", "570.1")
    assert not any("NVML" in m.figure for m in compared.moves)
    assert find(compared, "full", "train peak, host memory").rule == "memory"


def test_runs_of_one_side_alone_are_listed(tmp_path):
    a = make_study(tmp_path / "a", methods=("base", "full", "lora"))
    b = make_study(tmp_path / "b", methods=("base", "full", "qlora"))
    compared = compare_folders(a, b)
    assert compared.only_before == ("ladder:0.4m lora-r16",)
    assert compared.only_after == ("ladder:0.4m qlora-r16",)


def test_a_run_that_ends_otherwise_has_moved(tmp_path):
    a = make_study(tmp_path / "a")
    other = Factory(tmp_path / "b")
    other.add(make_spec("base"))
    other.add(make_spec("full"), status="out of memory", reason="CUDA out of memory")
    [move] = [m for m in compare_folders(a, other.folder).moves if m.figure == "status"]
    assert (move.before, move.after, move.moved) == ("complete", "out of memory", True)


def test_folders_without_a_run_in_common_are_refused(tmp_path):
    a = make_study(tmp_path / "a")
    b = Factory(tmp_path / "b")
    b.add(make_spec("full", "ladder:1.4m"))
    with pytest.raises(StudyError, match="no track, model and method in common"):
        compare_folders(a, b.folder)
    with pytest.raises(StudyError, match="no record lies below"):
        compare_folders(a, tmp_path / "nowhere")


def make_serving(low, value, high, disk_bytes=1000):
    timing = summarise_seconds([0.1, 0.2])
    row = LatencyRow(
        variant="dynamic", against="base", decoding="eager", batch=1, prompt_tokens=128,
        new_tokens=16, first_token_seconds=timing, between_tokens_seconds=timing,
        tokens_per_second=1.0, decode_tokens_per_second=1.0, first_token_ratio=None,
        between_tokens_ratio=None,
        whole_ratio=PairedRatio(value=value, low=low, high=high, pairs=9),
    )  # fmt: skip
    kept = FootprintRow(what="adapter", dtype="fp32", disk_bytes=disk_bytes, memory_bytes=1000,
                        disk_how="measured")  # fmt: skip
    spec = make_spec("lora")
    return ServeRecord(
        serve_id="ladder-0.4m--lora-r16", status="complete",
        spec=ServeSpec(profile="cpu", model=spec.model, method=spec.method, dtype="fp32",
                       settings=ServeSettings(), hardware=spec.hardware),
        measures=ServeMeasures(engine="transformers", latency=(row,), footprint=(kept,)),
        stages={"serve": StageMeasure(wall_seconds=1.0)},
        environment=Factory(None).environment(), fingerprint={},
    )  # fmt: skip


def test_a_latency_ratio_moves_if_its_interval_leaves_the_other(tmp_path):
    one = make_serving(1.05, 1.08, 1.11)
    assert [m.moved for m in compare_ratios(one, make_serving(1.10, 1.13, 1.16))] == [False]
    assert [m.moved for m in compare_ratios(one, make_serving(1.12, 1.15, 1.18))] == [True]
    a, b = make_study(tmp_path / "a"), make_study(tmp_path / "b")
    for folder, record in ((a, one), (b, make_serving(1.12, 1.15, 1.18, disk_bytes=1200))):
        target = folder / "serve" / record.serve_id
        target.mkdir(parents=True)
        write_serve_record(target, record)
    moved = [m.figure for m in compare_folders(a, b).moved]
    assert moved == ["dynamic over base, eager, batch 1, prompt 128", "adapter on disk, fp32"]


def test_the_command_prints_words_or_json(tmp_path):
    a, b = make_study(tmp_path / "a", 0.72), make_study(tmp_path / "b", 0.5)
    app = typer.Typer()
    app.command()(cli_advise.advise)
    app.command()(cli_advise.diff)
    made = CliRunner().invoke(app, ["diff", str(a), str(b), "--json"])
    content = json.loads(made.stdout)
    assert {m["figure"] for m in content["moves"] if m["moved"]} == {"accuracy"}
    assert "moved by more than their noise" in CliRunner().invoke(
        app, ["diff", str(a), str(b)]
    ).stdout  # fmt: skip


def test_a_key_of_the_recipe_that_differs_is_listed_before_the_figures(tmp_path):
    a, b = make_study(tmp_path / "a"), tmp_path / "b"
    factory = Factory(b, items=320, device="CPU AMD EPYC")
    factory.add(make_spec("base"))
    spec = make_spec("full")
    longer = spec.train.model_copy(update={"steps": 41})
    factory.add(spec.model_copy(update={"train": longer}))
    compared = compare_folders(a, b)
    assert compared.settings["train.steps"] == ("40", "41")
    assert "  train.steps: 40 -> 41" in format_moves(compared)
