"""Several processes give the training of one; what is divided is divided; a fault is told once."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import save_family
from safetensors.torch import load_file, save_file
from small_runs import small_run
from two_processes import Pair
from waiting import LONG_SECONDS

from studylib.core.errors import StudyError
from studylib.core.places import ROOT
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.data import prepare_data
from studylib.modelling.weights import TRAINED, bring_in
from studylib.training import distributed
from studylib.training.distributed import (
    AS_USUAL,
    STEPS,
    WorkerFailed,
    launch_config,
    read_results,
    take_cards,
    train_on_cards,
    try_model,
)
from studylib.training.train import Diverged, StepLog, train_model
from studylib.training.train_worker import main as work
from studylib.training.train_worker import train_share

LOSS_TOLERANCE = 2e-4  # relative: two processes add the same numbers in another order


def make_spec(method="full", gpus=1, sharding="fsdp", **train):
    hardware = {"gpus": gpus, "sharding": sharding}
    return small_run("ladder:0.4m", method, hardware=hardware, **train)


def train_alone(spec, folder):
    loaded, model = bring_in(spec, None)
    log = StepLog()
    data = prepare_data(spec.data, spec.train, loaded.tokenizer, spec.seed)
    train_model(model, data, spec, folder, log, checkpoints=False)
    return log, model


def assert_trained_as_one(spec, folder, log, alone):
    """Losses, tokens and the kept weights are those of one process."""
    expected, model = alone
    assert [row["step"] for row in log.rows] == [1, 2, 3, 4, 5, 6]
    losses = [row["loss"] for row in expected.rows]
    assert [row["loss"] for row in log.rows] == pytest.approx(losses, rel=LOSS_TOLERANCE)
    assert [row["tokens"] for row in log.rows] == [row["tokens"] for row in expected.rows]
    _, trained = bring_in(spec, folder / TRAINED)
    pairs = zip(model.parameters(), trained.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in pairs)


@pytest.fixture
def forked(monkeypatch):
    """The processes are forked; a test without this starts them by the study's own launcher."""

    def fork(words, **_):
        return Pair(work, Path(words[-1]), log=Path(words[-1]) / distributed.LOG)

    monkeypatch.setattr(distributed, "subprocess", SimpleNamespace(Popen=fork, DEVNULL=None))


def test_two_processes_train_an_adapter_as_one(forked, tmp_path):
    spec, log, saved = make_spec("lora"), StepLog(), []
    train_on_cards(spec, tmp_path, 2, log, on_save=saved.append)
    assert saved == [2, 4]
    assert_trained_as_one(spec, tmp_path, log, train_alone(spec, tmp_path / "alone"))


def test_two_processes_read_one_by_one_where_the_whole_model_showed_that_they_must(
    forked, tmp_path
):
    spec = make_spec("lora", loss="chunked", steps=1)
    spec = spec.model_copy(update={"model": f"path:{save_family('opt', tmp_path / 'opt')}"})
    found = try_model(spec, bring_in(spec, None)[0])
    assert found == {"apart": True, "loss": {"own": True, "head_alone": True}}
    log = StepLog()
    train_on_cards(spec, tmp_path, 2, log, found=found)
    alone = train_alone(spec, tmp_path / "alone")[0].rows[0]["loss"]
    assert log.rows[0]["loss"] == pytest.approx(alone, rel=1e-5)
    # The control: a process that is told what suits a Llama gets another loss.
    (tmp_path / "control").mkdir()
    train_share({"run": spec.model_dump(mode="json"), "rows": 0, **AS_USUAL},
                tmp_path / "control", 0)  # fmt: skip
    control = json.loads((tmp_path / "control" / STEPS).read_text().partition("\n")[0])
    assert control["loss"] != pytest.approx(alone, rel=1e-4)


def test_two_processes_stopped_on_the_way_go_on_and_train_all_weights_as_one(tmp_path, request):
    """Stopped at step 5 by their parent, as the launcher started them; two new ones go on from the
    checkpoint of step 4."""

    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 5:
            raise Stop

    spec, log = make_spec("full", loss="chunked"), StepLog()
    with pytest.raises(Stop):
        train_on_cards(spec, tmp_path, 2, log, on_step=stop)
    request.getfixturevalue("forked")
    try:
        train_on_cards(spec, tmp_path, 2, log)
    except WorkerFailed as error:
        if re.search(r"tagged with cpu:\d", str(error)):
            pytest.skip(
                "this transformers (5.17 is one) goes on with several processes on cards"
                " alone: it reads the optimizer to 'cpu:0', which torch has no reader for"
            )
        raise
    assert log.rows[4]["step_in_session"] == 1
    assert_trained_as_one(spec, tmp_path, log, train_alone(spec, tmp_path / "alone"))


def test_a_loss_that_is_not_finite_is_told_once_for_all_processes(forked, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(ladder_folder("0.4m"), broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], math.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    spec = make_spec().model_copy(update={"model": f"path:{broken}"})
    with pytest.raises(Diverged, match="nan at step 1"):
        train_on_cards(spec, tmp_path, 2, StepLog())


def test_a_process_ends_soon_after_the_notebook_that_started_it():
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    code = "import time; from studylib.training.train_worker import end_with; "
    code += f"end_with({parent.pid}); "
    worker = subprocess.Popen([sys.executable, "-c", code + "time.sleep(100)"], cwd=ROOT)
    time.sleep(0.5)
    assert worker.poll() is None
    parent.communicate(b"\n")
    assert worker.wait(timeout=LONG_SECONDS) == 1


def test_what_the_processes_leave_is_summed_or_raised(tmp_path):
    def leave(rank, **result):
        content = {
            "status": "complete", "reason": None,
            "torch_peak_allocated_bytes": 10, "torch_peak_reserved_bytes": 20, **result,
        }  # fmt: skip
        (tmp_path / f"worker-{rank}.json").write_text(json.dumps(content))

    launcher = "api.py:986] failed (exitcode: 1) local_rank: 0 (pid: 7)\n" + 60 * "its own lines\n"
    fault = "Traceback\nZeroDivisionError: division by zero\n"
    (tmp_path / distributed.LOG).write_text(launcher + fault + launcher)
    leave(0)
    with pytest.raises(WorkerFailed, match=r"1 of 2 processes.*\n(.*\n)*ZeroDivisionError"):
        read_results(tmp_path, 2)
    leave(1)
    assert read_results(tmp_path, 2) == {
        "torch_peak_allocated_bytes": 20, "torch_peak_reserved_bytes": 40,
    }  # fmt: skip
    leave(1, status="out of memory", reason="process 1: tried to allocate 2 GiB")
    with pytest.raises(torch.OutOfMemoryError, match="process 1"):
        read_results(tmp_path, 2)


def test_launch_follows_the_profile_alone():
    sharded = make_spec(gpus=2, dtype="bf16", checkpointing=True)
    config = launch_config(sharded, 2)
    assert config["distributed_type"] == "FSDP"
    assert config["fsdp_config"]["fsdp_version"] == 2
    assert config["fsdp_config"]["fsdp_state_dict_type"] == "SHARDED_STATE_DICT"
    assert config["fsdp_config"]["fsdp_activation_checkpointing"]
    # accelerate keeps trained weights in fp32 under mixed precision: master weights, when asked.
    assert config["mixed_precision"] == "no"
    mastered = make_spec(gpus=2, dtype="bf16", master_weights=True)
    assert launch_config(mastered, 2)["mixed_precision"] == "bf16"
    assert launch_config(make_spec("lora", gpus=2, dtype="bf16"), 2)["mixed_precision"] == "bf16"
    zero = launch_config(make_spec(gpus=2, sharding="zero3", accumulation=8), 2)
    assert zero["deepspeed_config"]["zero_stage"] == 3
    assert zero["deepspeed_config"]["gradient_accumulation_steps"] == 4
    assert launch_config(make_spec(gpus=2, sharding="none"), 2)["distributed_type"] == "MULTI_GPU"


def test_launchers_own_reader_takes_the_configuration(tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    for sharding in ("fsdp", "zero3", "none"):
        path = tmp_path / f"{sharding}.yaml"
        path.write_text(json.dumps(launch_config(make_spec(gpus=2, sharding=sharding), 2)))
        assert load_config_from_file(str(path)).num_processes == 2


@pytest.mark.parametrize(("gpus", "here", "fits"), [
    (0, 0, True), (1, 0, True), (1, 1, True), (1, 8, False), (8, 1, False), (8, 8, True),
])  # fmt: skip
def test_a_run_takes_as_many_cards_as_it_asks_for_or_none_at_all(monkeypatch, gpus, here, fits):
    """One card asked for where there is none is the CPU; more in sight would all be used."""
    monkeypatch.setattr(distributed, "hold_cards", lambda count: ())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    if fits:
        take_cards(make_spec(gpus=gpus, accumulation=8))
    else:
        with pytest.raises(StudyError, match=f"this process sees {here}"):
            take_cards(make_spec(gpus=gpus, accumulation=8))
