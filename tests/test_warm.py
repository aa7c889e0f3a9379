"""Forked runs are runs as ever: same results, kills that harm no other, and a way without forks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import yaml
from waiting import wait_for

from studylib.running import stand_by, warm
from studylib.running.executor import launch, read_progress
from studylib.running.warm import warm_starts
from studylib.schema.records import read_record
from studylib.schema.settings import Hardware

ROOT = Path(__file__).parents[1]
RUN = "ladder-0.4m--lora-r16--s0"
FOREVER = 3000  # steps, minutes of them
MACHINE = Hardware(jobs=2, threads=1)

LOOK = """
import json, os, threading, time
from pathlib import Path
import numpy as np, torch
from studylib.commands.stand_by import ALSO
from studylib.running import stand_by

stand_by.import_everything(False, ALSO)
seen = {"unfit": stand_by.why_unfit(False), "threads": stand_by.name_threads(),
        "cuda": torch.cuda.is_initialized()}

def draw():
    ours, theirs = os.pipe()
    if os.fork() == 0:
        stand_by.begin_randomly()
        drawn = [torch.rand(1).item(), np.random.rand(), torch.get_num_threads()]
        os.write(theirs, json.dumps(drawn).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(ours, 1000))

seen["drawn"] = [draw(), draw()]
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
seen["with a thread"] = stand_by.why_unfit(False)
print(json.dumps(seen))
"""


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a run of so many steps in a folder of its own: gives (process, folder)."""

    def start(name, steps=4):
        return begin_run(start.begin, tmp_path_factory.mktemp(name), steps)

    start.said = []
    with warm_starts(MACHINE, start.said.append) as start.begin:
        yield start


def begin_run(begin, place, steps):
    profile = place / "smoke.yaml"
    text = yaml.safe_load((ROOT / "studylib" / "profiles" / "smoke.yaml").read_text())
    text["train"] |= {"steps": steps, "checkpoint_every": FOREVER}
    profile.write_text(yaml.safe_dump({"name": "smoke", **text}))
    folder = place / "smoke" / "runs" / RUN
    words = ("run", RUN, "--profile", str(profile), "--results", str(place), "--jobs", "1")
    return begin(words, folder, 1, {}), folder


def await_training(folder):
    """The run's kernel, once it trains."""
    wait_for(lambda: read_progress(folder).get("step"))
    return read_progress(folder)["pid"]


def test_what_runs_are_forked_from_has_no_thread_no_cuda_and_no_numbers_in_common():
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2",
               "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
               "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # fmt: skip
    out = subprocess.run([sys.executable, "-c", LOOK], env=environ, cwd=ROOT, check=True,
                         capture_output=True, text=True).stdout  # fmt: skip
    seen = json.loads(out.splitlines()[-1])
    assert seen["unfit"] is None and len(seen["threads"]) == 1
    assert not seen["cuda"]
    first, second = seen["drawn"]
    assert first[0] != second[0] and first[1] != second[1]
    assert first[2] == second[2] == 2
    assert "started threads" in seen["with a thread"]


def test_nvml_is_left_as_often_as_it_was_begun(monkeypatch):
    answers = [0, 0, 1]
    library = SimpleNamespace(nvmlShutdown=lambda: answers.pop(0))
    monkeypatch.setattr(stand_by.ctypes, "CDLL", lambda name: library)
    stand_by.leave_nvml()
    assert answers == []


def test_forked_run_gives_what_a_new_process_gives(start, tmp_path):
    process, folder = start("forked")
    new, other = begin_run(launch, tmp_path, 4)
    assert process.wait() == 0 and new.wait() == 0
    forked, fresh = read_record(folder / "record.json"), read_record(other / "record.json")
    assert forked.files["items.parquet"] == fresh.files["items.parquet"]
    assert forked.fingerprint == fresh.fingerprint
    losses = [pd.read_parquet(at / "steps.parquet")["loss"].tolist() for at in (folder, other)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert forked.environment.threads == fresh.environment.threads
    for stage in ("load", "train", "evaluate"):
        ours, theirs = (getattr(record, stage).measure for record in (forked, fresh))
        assert ours.live_tensor_peak_bytes == theirs.live_tensor_peak_bytes
        assert ours.host_peak_bytes == pytest.approx(theirs.host_peak_bytes, rel=0.08)
    outputs = [
        [sorted(output.get("data", {})) for cell in json.loads(text)["cells"]
         for output in cell.get("outputs", [])]
        for text in ((at / "executed.ipynb").read_text() for at in (folder, other))
    ]  # fmt: skip
    assert outputs[0] == outputs[1]


def test_killed_kernel_killed_run_and_ended_run_harm_no_other(start):
    (one, folder), (two, second), (three, third) = (start(n, FOREVER) for n in "abc")
    kernel = await_training(folder)
    os.kill(kernel, signal.SIGKILL)
    assert one.wait() == 1
    assert "the notebook's process died" in (folder / "log.txt").read_text()

    kernel = await_training(second)
    os.kill(psutil.Process(kernel).ppid(), signal.SIGKILL)
    assert two.wait() == -signal.SIGKILL
    wait_for(lambda: is_gone(kernel))

    kernel = await_training(third)
    three.terminate()
    assert three.wait() == -signal.SIGTERM
    wait_for(lambda: is_gone(kernel))

    last, fourth = start("d")
    assert last.wait() == 0 and (fourth / "record.json").is_file()


def test_bad_input_is_told_as_by_a_new_process(start):
    process, folder = start("bad", steps=-1)
    assert process.wait() == 2
    assert "study: " in (folder / "log.txt").read_text()


def test_without_a_process_to_fork_from_runs_start_as_ever_and_the_reason_is_said(
    tmp_path, monkeypatch
):
    said = []
    monkeypatch.setattr(warm, "ENTRY", "no_such_module")
    monkeypatch.setattr(
        warm, "launch", lambda *_: subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    )
    with warm_starts(MACHINE, said.append) as begin:
        assert [begin(("run", n), tmp_path / n, 1, {}).wait() for n in "ab"] == [7, 7]
    assert len(said) == 1 and "no_such_module" in said[0]


def test_other_systems_and_other_numbers_of_threads_start_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "launch", lambda words, folder, threads, *_: threads)
    with warm_starts(MACHINE, print) as begin:
        assert begin(("run", "a"), tmp_path, 3, {}) == 3
    monkeypatch.setattr(warm.sys, "platform", "darwin")
    with warm_starts(MACHINE, print) as begin:
        assert begin is warm.launch


def test_put_off_module_loads_at_its_first_use_and_not_when_looked_at(tmp_path, monkeypatch):
    (tmp_path / "put_off").mkdir()
    (tmp_path / "put_off" / "__init__.py").write_text("value = 3")
    (tmp_path / "put_off" / "part.py").write_text("import put_off; value = put_off.value + 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    for use in ("put_off.value == 3", "__import__('put_off.part').part.value == 4"):
        stand_by.defer("put_off")
        import put_off

        assert hasattr(put_off, "__file__") and not hasattr(put_off, "__wrapped__")
        assert isinstance(put_off, stand_by.Deferred)
        assert eval(use) and not isinstance(put_off, stand_by.Deferred)
        for name in [name for name in sys.modules if name.startswith("put_off")]:
            del sys.modules[name]
    stand_by.defer("put_off_elsewhere")
    assert "put_off_elsewhere" not in sys.modules


def test_run_whose_stem_is_lost_is_started_anew_once_nothing_of_it_is_left(
    start, tmp_path, monkeypatch
):
    """The last of these tests: after it no run is forked."""
    launched = []
    assert start.said == [], "all runs until now were forked"
    process, folder = start("lost", FOREVER)
    kernel = await_training(folder)
    run = psutil.Process(kernel).ppid()

    def launch_noting(words, *_):
        launched.append((words[:2], is_gone(kernel), is_gone(run)))
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])

    monkeypatch.setattr(warm, "launch", launch_noting)
    os.kill(psutil.Process(run).ppid(), signal.SIGKILL)
    assert process.wait() == 7
    assert launched == [(("run", RUN), True, True)]
    assert start.begin(("run", "next"), tmp_path, 1, {}).wait() == 7
    assert len(start.said) == 1 and "ended with -9" in start.said[0]
