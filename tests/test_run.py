"""One run, stage by stage: results are recorded, bugs are not, nothing finished is done twice."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
from families import save_family
from small_runs import small_run

from studylib.core.errors import StudyError
from studylib.modelling.serve import written_bytes
from studylib.schema.differences import find_mismatches
from studylib.schema.profile import DataSettings
from studylib.schema.records import check_files, read_record
from studylib.scoring import score as score_module
from studylib.training import run as run_module
from studylib.training.run import Run
from studylib.training.train import is_out_of_memory

ASKED = {"questions": "almanac:new", "retention": "almanac:old", "scoring": "text", "shots": 0,
         "limit": 1}  # fmt: skip


def make_spec(model, method="lora", **train):
    recipe = {"accumulation": 1, **train}
    return small_run(model, method, 5e-3, rank=16, evaluate=ASKED, **recipe)


@pytest.fixture
def model(tiny_folder):
    return f"path:{tiny_folder}"


def complete(run: Run):
    run.load()
    run.train()
    run.evaluate()
    run.serve()
    return read_record(run.finish())


METHODS = ("base", "full", "lora", "qlora")


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A whole run of each method: its folder and its record."""
    folders = {method: tmp_path_factory.mktemp(method) for method in METHODS}
    return {
        method: (folder, complete(Run(make_spec(f"path:{tiny_folder}", method), folder)))
        for method, folder in folders.items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_record_holds_every_stage_and_its_files(made, method):
    folder, record = made[method]
    check_files(folder, record)
    assert record.status == "complete"
    assert record.load.measure.host_peak_bytes > 0
    assert (record.train is None) == (method == "base")
    assert {score.task for score in record.evaluate.scores} == {"questions", "retention"}
    weights = [score.weights for score in record.evaluate.scores if score.task == "questions"]
    assert len(weights) == (2 if method == "qlora" else 1)
    assert len(set(weights)) == len(weights)
    items = pd.read_parquet(folder / "items.parquet")
    assert len(items) == sum(score.questions for score in record.evaluate.scores)
    assert record.serve.variant_bytes > 0
    assert (record.serve.adapter_bytes is not None) == ("lora" in method)
    assert "nvml_peak_bytes" in record.load.measure.unavailable
    assert not (folder / "work").exists()
    assert record.load.packing_reason is None
    if method != "base":
        assert record.fingerprint["data.packing"] == "packed"
        assert record.train.steps == 6 and record.train.resumed_at_steps == ()
        assert record.fingerprint["data.tokens_seen"] == record.train.tokens_seen


def test_examples_read_one_by_one_are_on_record(tmp_path):
    folder = save_family("opt", tmp_path / "opt")
    run = Run(make_spec(f"path:{folder}", "lora"), tmp_path / "run")
    run.load()
    run.train()
    record = read_record(run.finish())
    assert "sees the one before it" in record.load.packing_reason
    assert record.fingerprint["data.packing"] == "one by one"


def test_runs_of_all_methods_share_what_a_table_must_share(made):
    assert find_mismatches([record for _, record in made.values()]) == {}


@pytest.mark.parametrize(("method", "recipe"), [
    ("lora", {}),
    ("lora-embed", {"dtype": "bf16", "loss": "chunked", "checkpointing": True}),
])  # fmt: skip
def test_run_killed_after_training_keeps_the_training(model, tmp_path, method, recipe):
    first = Run(make_spec(model, method, **recipe), tmp_path)
    first.load()
    first.train()
    weights = {n: p.detach().clone() for n, p in first.model.named_parameters() if p.requires_grad}
    first._lock.close()  # as the system does when a process dies

    second = Run(make_spec(model, method, **recipe), tmp_path)
    second.load()
    second.train()
    found = dict(second.model.named_parameters())
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert all(found[name].dtype == weight.dtype for name, weight in weights.items())
    second.evaluate()
    second.serve()
    record = read_record(second.finish())
    assert record.environment.sessions == 2
    assert record.train.steps == 6
    assert record.train.resumed_at_steps == ()


def test_full_run_killed_after_training_goes_on_with_its_weights(model, tmp_path):
    first = Run(make_spec(model, "full"), tmp_path)
    first.load()
    first.train()
    weights = {n: p.detach().clone() for n, p in first.model.named_parameters()}
    first._lock.close()
    second = Run(make_spec(model, "full"), tmp_path)
    second.load()
    assert all(torch.equal(p, weights[n]) for n, p in second.model.named_parameters())


def test_running_out_of_memory_is_a_result(model, tmp_path, monkeypatch):
    def exhaust(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(run_module, "train_model", exhaust)
    record = complete(Run(make_spec(model), tmp_path))
    assert record.status == "out of memory"
    assert "20.00 GiB" in record.reason
    assert record.evaluate is None
    assert record.train.measure.host_peak_bytes > 0
    assert record.train.clean_step_seconds is None


NO_ROOM = (
    "CUDA error: out of memory\nCUDA kernel errors might be reported later",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "Triton Error [CUDA]: out of memory",
    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
)


@pytest.mark.parametrize("stage", ["load", "train"])
def test_no_room_outside_of_the_cards_allocator_is_a_result(model, tmp_path, monkeypatch, stage):
    words = NO_ROOM[0]
    assert all(is_out_of_memory(RuntimeError(other)) for other in NO_ROOM)

    def exhaust(*args, **kwargs):
        raise RuntimeError(words)

    monkeypatch.setattr(run_module, "bring_in" if stage == "load" else "train_model", exhaust)
    record = complete(Run(make_spec(model), tmp_path))
    assert record.status == "out of memory"
    assert words.partition("\n")[0] in record.reason
    assert (record.load is None) == (stage == "load")


def test_loss_that_is_not_finite_is_a_result(model, tmp_path, monkeypatch):
    run = Run(make_spec(model, "full"), tmp_path)
    run.load()
    with torch.no_grad():
        run.model.get_input_embeddings().weight.fill_(math.nan)
    run.train()
    run.evaluate()
    run.serve()
    record = read_record(run.finish())
    assert record.status == "diverged"
    assert "step 1" in record.reason
    assert record.evaluate is None and record.serve is None


@pytest.mark.parametrize("method", ["base", "lora", "qlora"])
def test_answers_that_are_not_numbers_are_a_result(model, tmp_path, method):
    """The last update may break the weights, and no loss after it says so."""
    run = Run(make_spec(model, method), tmp_path)
    run.load()
    run.train()
    with torch.no_grad():
        run.model.get_input_embeddings().weight.fill_(math.nan)
    run.evaluate()
    run.serve()
    record = read_record(run.finish())
    assert (record.status, record.complete) == ("not a number", False)
    assert record.reason == f"{run.weights_scored}: 16 of 16 questions have log-likelihoods that " \
        "are not finite"  # fmt: skip
    assert (record.evaluate.scores, record.evaluate.reason) == ((), record.reason)
    assert record.serve is None and "items.parquet" not in record.files
    assert (record.train is None) == (method == "base")


def test_record_counts_what_was_left_out_and_what_was_undecided(model, tmp_path, monkeypatch):
    rows = [{"instruction": f"{n}", "output": "" if n < 3 else "yes"} for n in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    spec = make_spec(model, "full", steps=2)
    data = DataSettings(source=str(tmp_path / "rows.json"), template="plain")
    spec = spec.model_copy(update={"data": data})
    score = score_module.evaluate_model

    def leave_some_undecided(*asked):
        answers = score(*asked)
        answers.items.loc[:3, "chosen"] = -1
        return answers

    monkeypatch.setattr(score_module, "evaluate_model", leave_some_undecided)
    record = complete(Run(spec, tmp_path / "run"))
    assert record.evaluate.undecided == 4
    train = record.train
    assert (train.rows_skipped, train.examples_left_out) == (3, 0)
    assert train.examples_seen <= train.examples_drawn <= 57


def test_bug_leaves_no_record(model, tmp_path, monkeypatch):
    def crash(*args, **kwargs):
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr(run_module, "train_model", crash)
    run = Run(make_spec(model), tmp_path)
    run.load()
    with pytest.raises(RuntimeError, match="a mistake"):
        run.train()
    assert not (tmp_path / "record.json").exists()


def test_finished_run_is_not_started_again(made):
    folder, record = made["base"]
    before = (folder / "record.json").read_bytes()
    with pytest.raises(StudyError, match="finished"):
        Run(record.run, folder)
    assert (folder / "record.json").read_bytes() == before


def test_two_processes_do_not_work_on_one_run(model, tmp_path):
    first = Run(make_spec(model, "base"), tmp_path)
    with pytest.raises(StudyError, match="another process"):
        Run(make_spec(model, "base"), tmp_path)
    first._lock.close()


def test_a_whole_model_of_random_weights_is_counted_and_neither_written_nor_scored(tmp_path):
    """26 GB for 13B, which nobody would read; its size is the file's, to the byte."""
    run = Run(make_spec("shape:pythia-70m", "full", steps=1, seq_len=32), tmp_path)
    run.load()
    run.train()
    assert not (tmp_path / "work" / "trained").exists()
    run.evaluate()
    run.serve()
    assert run.serve_block.checkpoint_bytes == written_bytes(run.model)
    record = read_record(run.finish())
    assert record.status == "complete" and record.load.total_params > 70e6
    assert record.evaluate.reason == "not measured: random weights"
    assert record.evaluate.scores == ()
