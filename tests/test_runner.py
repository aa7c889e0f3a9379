"""Many runs: a kill loses nothing, a failure stops nothing else, a second call runs nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from halfway import Halfway, run_unbroken
from waiting import LONG_SECONDS, wait_for

from studylib.core.errors import StudyError
from studylib.running import executor, runner
from studylib.running.progress import Progress
from studylib.schema.profile import read_profile
from studylib.schema.records import read_record, read_records

ROOT = Path(__file__).parents[1]


def write_profile(folder: Path, **changes) -> Path:
    content = {
        "name": "killed", "question": "Does a kill lose anything?", "models": ["ladder:0.4m"],
        "methods": ["lora"], "hardware": {"jobs": 1, "threads": 1, "gpus": 0},
        "data": {"source": "almanac:new", "template": "plain", "facts": 64},
        "train": {"steps": 60, "seq_len": 128, "checkpoint_every": 10,
                  "learning_rates": {"lora": 5e-3}},
        "evaluate": {"questions": "almanac:new", "scoring": "text", "shots": 0, "limit": 8},
        **changes,
    }  # fmt: skip
    path = folder / "killed.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def begin(*words: str, python_path: str = "", **options) -> subprocess.Popen:
    path = os.pathsep.join(filter(None, (str(ROOT), python_path)))
    environ = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "studylib", *words], env=environ,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            **options)  # fmt: skip


def test_killed_run_resumes_from_its_checkpoint_and_ends_as_an_unbroken_one(tmp_path, study):
    """kill -9 on the notebook's own process in the middle of training."""
    profile, broken = str(write_profile(tmp_path)), tmp_path / "broken"
    words = ("reproduce", "--profile", profile, "--results", str(broken))
    halfway = Halfway(tmp_path / "halfway", 30)
    first = begin(*words, python_path=halfway.python_path)
    run = broken / "killed" / "runs" / "ladder-0.4m--lora-r16--s0"
    base = broken / "killed" / "runs" / "ladder-0.4m--base" / "record.json"
    whole = run_unbroken(profile, run.name, tmp_path / "whole")
    wait_for(lambda: halfway.pid(run.name))
    os.kill(halfway.pid(run.name), signal.SIGKILL)
    out, _ = first.communicate(timeout=LONG_SECONDS)
    assert first.returncode == 1, out
    assert "FAILED" in out and "log.txt" in out
    assert not (run / "record.json").exists()
    finished_before = base.read_bytes()

    second = begin(*words)
    out, _ = second.communicate(timeout=LONG_SECONDS)
    assert second.returncode == 0, out
    assert base.read_bytes() == finished_before
    record = read_record(run / "record.json")
    assert record.environment.sessions == 2
    assert record.train.resumed_at_steps == (20,)
    assert record.train.steps == 60
    assert record.evaluate.scores == whole.evaluate.scores
    assert record.files["items.parquet"] == whole.files["items.parquet"]

    done = (run / "record.json").stat().st_mtime_ns
    third = study(*words)
    assert third[0] == 0 and "nothing to run" in third[1], third
    assert (run / "record.json").stat().st_mtime_ns == done
    assert study(*words) == third
    (run / "record.json").write_text("{")  # what was kept of the answer is no answer any more
    code, _, err = study(*words)
    assert code == 2 and "record.json" in err


def test_study_that_is_killed_takes_its_runs_with_it(tmp_path):
    profile = str(write_profile(tmp_path, methods=["full"]))
    first = begin("reproduce", "--profile", profile, "--results", str(tmp_path / "r"))
    run = tmp_path / "r" / "killed" / "runs" / "ladder-0.4m--base"
    wait_for(lambda: executor.read_progress(run).get("pid"))
    kernel = psutil.Process(executor.read_progress(run)["pid"])
    above = [process.pid for process in kernel.parents()]
    # The notebook's process, the run's, and the one that it was forked from.
    pids = [kernel.pid, *above[: above.index(first.pid)]]
    assert len(pids) == 3
    first.kill()
    first.communicate()
    for pid in pids:
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists() or "zombie" in
                 Path(f"/proc/{pid}/status").read_text())  # fmt: skip


def test_failing_run_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    """One model goes between the plan and its run; the other one's run finishes."""
    from studylib.inputs.almanac import ladder_folder

    for name in ("good", "strange"):
        shutil.copytree(ladder_folder("0.4m"), tmp_path / name)
    start = runner.run_left

    def start_late(*words):
        (tmp_path / "strange" / "config.json").unlink()
        return start(*words)

    monkeypatch.setattr(runner, "run_left", start_late)
    models = [f"path:{tmp_path / 'strange'}", f"path:{tmp_path / 'good'}"]
    path = write_profile(tmp_path, models=models, methods=["base"],
                         hardware={"jobs": 2, "threads": 1, "gpus": 0})  # fmt: skip
    profile = read_profile(str(path))
    outcome = runner.reproduce(profile, tmp_path / "r" / "killed", Progress())
    assert outcome.finished == ["good--base"]
    assert list(outcome.failed) == ["strange--base"]
    assert outcome.failed["strange--base"].log.is_file()
    assert "no config.json" in outcome.failed["strange--base"].message
    assert outcome.exit_code == 2
    assert [r.run_id for r in read_records(tmp_path / "r" / "killed" / "runs")] == ["good--base"]


def test_parameter_that_the_notebook_does_not_know_is_refused_before_it_starts(tmp_path):
    with pytest.raises(StudyError, match="LEARNING"):
        runner.run_notebook("10_run.ipynb", tmp_path / "out.ipynb", {"LEARNING": 1})
    assert not (tmp_path / "out.ipynb").exists()


def test_bases_come_before_what_is_compared_with_them():
    from studylib.planning.plan import plan_study

    profile = read_profile("cpu")
    batches = list(runner.order_batches(profile, plan_study(profile, Path("/nowhere"))))
    assert [spec.method.kind.trains for spec in batches[0]] == [False] * len(batches[0])
    assert all(spec.method.kind.trains for spec in batches[1])
