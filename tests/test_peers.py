"""The comparison with peers: the same work for all, ratios from known times, words in bad rows."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

from studylib.core.errors import StudyError
from studylib.core.measure import StageMeasure
from studylib.inputs.data import prepare_data

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
peers, training, table = map(importlib.import_module, ("peers", "peer_training", "peer_table"))
sys.path.pop(0)

SMALL = ["--model", "ladder:0.4m", "--seq-len", "256", "--micro-batch", "2", "--steps", "2"]


def make_spec(*words):
    return peers.make_spec(peers.read_options([*SMALL, *words]))


def train(peer, spec, folder):
    job = training.Job(peer, spec, folder)
    with job.meter:
        peers.PEERS[peer](job)
        return job.close()


def made_up(peer, seconds, peak_bytes=100, **facts):
    """A finished result whose steps after the warm-up take `seconds` for 600 tokens each."""
    given = {
        "seconds": [9, 9, 9, seconds, seconds], "tokens": [600] * 5, "positions": [800] * 5,
        "losses": [2.0, 1.5, 1.0, 0.5, 0.6], "cpu_seconds": [9, 9, 2, 2],
        "trainable_params": 7, "flops_per_token": 1e6,
        "peak_flops_per_second": 1e9,
        "measure": StageMeasure(wall_seconds=1, torch_peak_allocated_bytes=peak_bytes),
    }  # fmt: skip
    return training.PeerResult(peer, **{**given, **facts})


def cells(found, spec=None):
    rows = table.build_table(found, spec or make_spec())
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def test_peers_multiply_in_tf32_where_ours_does(tmp_path, monkeypatch):
    """In fp32 on a card, matrices are multiplied several times as fast in TF32."""
    job = training.Job("plain", make_spec(), tmp_path)
    assert job.spec.train.tf32 and "tf32" not in training.settings(job, 1)
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: True)
    assert training.settings(job, 1)["tf32"] is True


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    spec, folder = make_spec("--template", "plain"), tmp_path_factory.mktemp("peers")
    return {peer: train(peer, spec, folder / peer) for peer in ("plain", "ours")}


def test_ours_and_the_loop_by_hand_do_the_same_work(pair):
    ours, plain = pair["ours"], pair["plain"]
    assert ours.tokens == plain.tokens and len(ours.tokens) == 2
    assert ours.trainable_params == plain.trainable_params > 0
    assert ours.first_loss == pytest.approx(plain.first_loss, rel=1e-4)
    assert table.differences(plain, ours, 1e-3) == []
    assert all(p >= t for p, t in zip(plain.positions, plain.tokens, strict=True))
    assert plain.measure.live_tensor_peak_bytes > 0 and ours.measure.live_tensor_peak_bytes > 0


def test_steps_of_the_warm_up_give_no_speed(pair):
    assert pair["plain"].tokens_per_second is None


def test_micro_batches_hold_each_updates_examples_and_no_others():
    spec = make_spec("--template", "plain", "--steps", "5", "--accumulation", "2")
    tokenizer = peers.load_tokenizer(peers.model_folder(spec.model_ref)[0])
    data = prepare_data(spec.data, spec.train, tokenizer, spec.seed)
    batches = training.unpack(data, spec)
    assert len(batches.places) == 5 * batches.accumulation
    assert all(batches.places)
    for update in range(5):
        wanted = [e for row in data.rows[4 * update : 4 * update + 4] for e in row]
        part = slice(update * batches.accumulation, (update + 1) * batches.accumulation)
        fed = [batches.examples[place] for places in batches.places[part] for place in places]
        assert fed == wanted


def test_table_gives_known_ratios():
    found = {
        "plain": [made_up("plain", s) for s in (1.0, 1.1, 1.0)],
        "ours": [made_up("ours", s / 2, 80) for s in (1.0, 1.1, 1.0)],
    }
    shown = cells(found)
    assert shown["ours"]["tokens/s"] == f"{3 / (1 / 1200 + 1.1 / 1200 + 1 / 1200):,.0f}"
    assert shown["ours"]["by plain [95 %]"] == "2.00 [2.00, 2.00]"
    assert shown["ours"]["allocated"].endswith("(0.80)")
    speed = 3 / (1 / 1200 + 1.1 / 1200 + 1 / 1200)
    assert shown["ours"]["MFU"] == f"{100 * speed * 1e6 / 1e9:.1f} %"
    assert shown["plain"]["padding"] == "25 %"
    assert shown["ours"]["did the same work"] == "yes"
    assert (shown["ours"]["first loss"], shown["ours"]["last losses"]) == ("2.0000", "0.7000")
    assert shown["ours"]["tokens/CPU-s"] == "300 (1.00)"


def test_fewer_than_three_rounds_give_no_interval():
    found = {"plain": [made_up("plain", 1.0)], "ours": [made_up("ours", 0.5)]}
    assert cells(found)["ours"]["by plain [95 %]"] == "2.00 (no interval)"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"trainable_params": 8}, "8 trainable parameters, not 7"),
        ({"losses": [2.01]}, "first loss 2.0100, not 2.0000"),
        ({"losses": [math.nan]}, "first loss"),
        ({"tokens": [500] * 5}, "2,500 tokens, not 3,000"),
    ],
)
def test_other_work_is_named_and_ends_with_code_1(facts, words):
    found = {"plain": [made_up("plain", 1.0)], "ours": [made_up("ours", 1.0, **facts)]}
    assert words in cells(found)["ours"]["did the same work"]
    assert peers.judge(found, table.build_table(found, make_spec())) == 1


def test_peer_that_is_not_installed_is_a_row_without_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.NEEDS, "unsloth", ["no_such_package"])
    kept, spec = [], make_spec()
    found = peers.run_rounds(
        ["unsloth"], spec, 2, tmp_path, {}, lambda now: kept.append(peers.spell_raw(now, spec, "-"))
    )
    assert len(found["unsloth"]) == len(kept) == 1
    content = json.loads(kept[0])
    assert content["peers"]["unsloth"][0]["status"] == "not installed"
    assert [row[0] for row in content["table"]] == ["peer", "unsloth"]
    row = cells({"plain": [made_up("plain", 1.0)], **found})["unsloth"]
    assert row.pop("did the same work") == "not installed: no package no_such_package"
    assert not any(character.isdigit() for cell in row.values() for character in cell)


def test_another_interpreter_is_asked_for_its_own_packages(monkeypatch, tmp_path):
    monkeypatch.setitem(peers.NEEDS, "trl", ["json", "no_such_package"])
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    assert peers.choose_pythons([f"trl={other}"]) == {"trl": str(other)}
    assert peers.missing_package("trl", str(other)) == "no_such_package"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MemoryError("no room"), "out of memory", 0),
        (training.NotSupported("no such model"), "not supported", 0),
        (ValueError("a fault"), "failed", 1),
    ],
)
def test_peer_that_ends_early_is_a_row_and_only_a_fault_is_code_1(
    error, status, code, tmp_path, monkeypatch, capsys
):
    def end(job):
        raise error

    monkeypatch.setitem(peers.PEERS, "ours", end)
    (tmp_path / "job.json").write_text(make_spec().model_dump_json())
    peers.work_once("ours", str(tmp_path / "job.json"), str(tmp_path / "result.json"))
    result = training.PeerResult.from_json((tmp_path / "result.json").read_text())
    assert result.status == status and str(error) in result.reason
    found = {"plain": [made_up("plain", 1.0)], "ours": [result]}
    row = cells(found)["ours"]
    assert row["tokens/s"] == status
    assert str(error) in row["did the same work"]
    assert peers.judge(found, table.build_table(found, make_spec())) == code


def test_table_comes_with_the_job_and_the_switches_of_ours(monkeypatch, capsys):
    monkeypatch.setattr(peers, "run_rounds", lambda *_: {"plain": [made_up("plain", 1.0)]})
    words = ["--template", "plain", "--steps", "6", "--peers", "plain"]
    assert peers.main([*SMALL, *words]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "ladder:0.4m, LoRA r=16, fp32, 1 x 2 rows of 256 tokens" in said[0]
    assert said[1] == "ours: sdpa, chunked loss, adamw, tf32"
    assert said[-1].startswith("plain")


def test_result_survives_its_file():
    result = made_up("ours", 1.0)
    assert training.PeerResult.from_json(result.to_json()) == result
    assert json.loads(result.to_json())["measure"]["torch_peak_allocated_bytes"] == 100


@pytest.mark.parametrize(
    "words",
    [
        ["--peers", "trk"],
        ["--steps", "3"],
        ["--rounds", "0"],
        ["--seq-len", "1"],
        ["--method", "base"],
        ["--model", "ladder:9m"],
        ["--python", "trl=/no/such/program"],
        ["--data", "no-such-file.json"],
    ],
)
def test_bad_input_is_one_message_and_code_2(words, capsys):
    assert peers.main(["--model", "ladder:0.4m", "--steps", "6", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.strip().splitlines()) == 1


def test_unknown_peer_is_told_its_nearest():
    with pytest.raises(StudyError, match="trl"):
        peers.choose_peers("plain,trll")


def test_ours_may_cut_an_update_into_passes_of_its_own():
    spec = peers.make_spec(peers.read_options(["--micro-batch", "8", "--accumulation", "3"]))
    cuts = {rows: peers.cut_passes(spec, rows).train for rows in (None, 1, 6, 24)}
    found = {rows: (cut.micro_batch, cut.accumulation) for rows, cut in cuts.items()}
    assert found == {None: (8, 3), 1: (1, 24), 6: (6, 4), 24: (24, 1)}
    for rows in (0, 5, 25):
        with pytest.raises(StudyError, match="divides the 24 rows"):
            peers.cut_passes(spec, rows)
