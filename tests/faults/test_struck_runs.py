"""Runs that are struck in the middle: by kills, stops, a small memory, a full disk.

Each is started as the study starts it, forked from a process that has imported everything, and what
it ends with is compared with what an undisturbed run gave.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sabotage
from sabotage import Strike
from scene import EVERY, ROOT, RUN, TOKEN, Kept, essence, write_profile
from waiting import wait_for

from studylib.core.errors import StudyError
from studylib.running.executor import Outcome, Task, run_batch
from studylib.running.progress import Progress
from studylib.running.warm import warm_starts
from studylib.schema.records import read_record
from studylib.schema.settings import Hardware
from studylib.training.checkpoints import newest_checkpoint

pytestmark = pytest.mark.faults
MACHINE = Hardware(jobs=1, threads=1)


class Scene:
    """Where runs of one small study are started, struck and started again."""

    def __init__(self, start, place: Path) -> None:
        self.start, self.place = start, place
        self.profile = write_profile(place)
        self.whole = place / "whole"

    def task(self, results: Path, profile: Path | None = None) -> Task:
        folder = results / "struck" / "runs" / RUN
        return Task(RUN, ("run", RUN), folder, folder / "record.json",
                    str(profile or self.profile), results)  # fmt: skip

    def run(self, results: Path, strike: Strike | None = None, profile: Path | None = None,
            hardware: Hardware = MACHINE) -> Outcome:  # fmt: skip
        """As `reproduce` runs it on this machine."""
        outcome = Outcome()

        def struck(words, folder, threads, environ):
            return self.start(words, folder, threads, {**environ, **(strike or NONE).environ})

        progress = Progress()
        progress.begin_tasks("struck", 1, 1)
        run_batch([self.task(results, profile)], hardware, progress, outcome, struck)
        return outcome

    def folder(self, results: Path) -> Path:
        return results / "struck" / "runs" / RUN

    def undisturbed(self) -> dict:
        if not self.whole.is_dir():
            assert self.run(self.whole).finished == [RUN]
        return essence(self.folder(self.whole))


class NONE:
    environ: dict = {}  # noqa: RUF012


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    place = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch:
        planted = sabotage.plant(place / "planted")
        patch.setenv("PYTHONPATH", os.pathsep.join((planted, os.environ.get("PYTHONPATH", ""))))
        patch.setenv("HF_TOKEN", TOKEN)
        patch.chdir(ROOT)
        with warm_starts(MACHINE, print) as start:
            yield Scene(start, place)


MOMENTS = {
    "load": {"does": "loading"},
    "train": {"opens": rf"checkpoint-{2 * EVERY}/trainer_state\.json$"},
    "keep": {"opens": r"trained/\.whole\."},
    "evaluate": {"does": "evaluating"},
    "serve": {"does": "serving"},
    "write": {"opens": r"/\.record\.json\."},
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_run_that_is_killed_goes_on_and_ends_as_an_undisturbed_one(
    scene, tmp_path, record_property, moment
):
    strike = Strike(tmp_path / "mark", signal.SIGKILL, **MOMENTS[moment])
    outcome = scene.run(tmp_path, strike)
    assert strike.pid and list(outcome.failed) == [RUN] and outcome.exit_code == 1
    run = scene.folder(tmp_path)
    kept = Kept(run)
    assert kept.record is None
    assert scene.run(tmp_path).finished == [RUN]
    assert essence(run) == scene.undisturbed()
    assert kept.lost(run) is None
    resumed = read_record(run / "record.json").train.resumed_at_steps
    told = {"train": f"went on at step {resumed}", "load": "began anew"}
    record_property("seen", f"{moment}: {told.get(moment, 'the training was not done again')}")
    if moment == "train":
        assert resumed == (EVERY,)


def test_kernel_that_stands_still_is_ended_with_a_message(scene, tmp_path, record_property):
    strike = Strike(tmp_path / "mark", signal.SIGSTOP, does="evaluating")
    soon = MACHINE.model_copy(update={"hang_minutes": 0.05})
    outcome = scene.run(tmp_path, strike, hardware=soon)
    said = outcome.failed[RUN].message
    assert "stood still" in said and "hang_minutes" in said and outcome.exit_code == 1
    assert scene.run(tmp_path).finished == [RUN]
    assert essence(scene.folder(tmp_path)) == scene.undisturbed()
    record_property("seen", f"exit 1: {said}")


def test_run_without_memory_is_a_record_that_says_so(scene, tmp_path, record_property):
    """The system refuses the memory: torch's own allocator says it."""
    recipe = {"steps": 4, "seq_len": 256, "micro_batch": 64, "checkpoint_every": 4,
              "learning_rates": {"lora": 5e-3}}  # fmt: skip
    profile = write_profile(tmp_path, train=recipe)
    strike = Strike(tmp_path / "mark", room_bytes=300 << 20, does="loading")
    outcome = scene.run(tmp_path, strike, profile)
    assert outcome.finished == [RUN]
    record = read_record(scene.folder(tmp_path) / "record.json")
    assert record.status == "out of memory"
    record_property("seen", f"record: {record.status}, {record.reason}")


@contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own in memory, of so many bytes."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here ({done.stderr.strip()})")
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", folder], check=True
        )
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("size", ["24k", "160k", "480k", "800k"])
def test_full_disk_is_one_message_and_with_room_the_run_ends(
    scene, tmp_path, record_property, size
):
    """Each size is full at another write: the notebook, a checkpoint, the weights, the tables."""
    results = tmp_path / "small"
    with small_disk(results, size) as change:
        outcome = scene.run(results)
        assert list(outcome.failed) == [RUN]
        assert not (scene.folder(results) / "record.json").exists()
        said = outcome.failed[RUN].message or "no room for a word in its log"
        change("size=64m")
        assert scene.run(results).finished == [RUN]
        assert essence(scene.folder(results)) == scene.undisturbed()
    told = said.replace(str(scene.folder(results)), "the run's folder")
    record_property("seen", f"{size}: exit {outcome.exit_code}, {told}")


def test_results_that_are_gone_in_mid_run_fail_it_and_come_back(scene, tmp_path, record_property):
    strike = Strike(tmp_path / "mark", signal.SIGSTOP, does="evaluating")
    process = scene.start(
        scene.task(tmp_path).command(1), scene.folder(tmp_path), 1, strike.environ
    )
    wait_for(strike.stands)
    (tmp_path / "struck").rename(tmp_path / "elsewhere")
    strike.go_on(signal.SIGCONT)
    code = process.wait()
    assert code == 1
    shutil.rmtree(tmp_path / "struck", ignore_errors=True)
    (tmp_path / "elsewhere").rename(tmp_path / "struck")
    assert scene.run(tmp_path).finished == [RUN]
    assert essence(scene.folder(tmp_path)) == scene.undisturbed()
    record_property("seen", f"exit {code}; with the folder back the run went on and ended")


@pytest.fixture(scope="module")
def broken_off(scene, tmp_path_factory):
    """The results of a run that was killed after its training: two checkpoints, and the weights."""
    place = tmp_path_factory.mktemp("broken_off")
    scene.run(place, Strike(place / "mark", signal.SIGKILL, opens=r"trained/\.whole\."))
    (scene.folder(place) / "work" / "trained" / "whole").touch()
    return place


@pytest.fixture
def work(scene, broken_off, tmp_path):
    """A copy of that run's work folder, below tmp_path as results."""
    shutil.copytree(broken_off / "struck", tmp_path / "struck")
    return scene.folder(tmp_path) / "work"


def test_checkpoint_that_is_cut_short_anywhere_is_not_taken_for_whole(work, record_property):
    newest = newest_checkpoint(work, 99)
    assert newest.name == f"checkpoint-{2 * EVERY}"
    files = [path for path in newest.iterdir() if path.suffix in (".safetensors", ".pt", ".pth")]
    files.append(newest / "trainer_state.json")
    assert len(files) == 5
    for path in files:
        content = path.read_bytes()
        for share in (0, 0.5, 0.99):
            path.write_bytes(content[: int(share * len(content))])
            assert newest_checkpoint(work, 99).name == f"checkpoint-{EVERY}", path.name
        path.write_bytes(content)
    assert newest_checkpoint(work, 99) == newest
    record_property("seen", f"{', '.join(sorted(path.name for path in files))}: the one before it")


def test_weights_that_are_cut_short_after_their_training_are_trained_again(
    scene, work, tmp_path, record_property
):
    weights = work / "trained" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert scene.run(tmp_path).finished == [RUN]
    assert essence(scene.folder(tmp_path)) == scene.undisturbed()
    resumed = read_record(scene.folder(tmp_path) / "record.json").train.resumed_at_steps
    record_property("seen", f"went on from the checkpoint of step {resumed[-1]}")


class Asks:
    """A pickle of it names a function; called it would do no harm."""

    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "pytorch_model.bin"])
def test_checkpoint_that_asks_for_code_is_refused_by_name(work, record_property, name):
    import torch

    torch.save({"a": Asks()}, newest_checkpoint(work, 99) / name)
    with pytest.raises(StudyError, match=f"{name}: .*(getcwd|never from pickles)") as caught:
        newest_checkpoint(work, 99)
    record_property("seen", f"{name}: {caught.value.rule}")


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_unreadable_session_is_one_message(scene, work, tmp_path, record_property, content):
    (work / "session.json").write_text(content)
    outcome = scene.run(tmp_path)
    assert outcome.exit_code == 2
    assert "cannot be read" in outcome.failed[RUN].message
    record_property("seen", "exit 2: what the run has done so far cannot be read")


def test_no_port_is_open_to_others_and_none_stays(scene, tmp_path, record_property):
    """A notebook's channels are files that this user alone can open; ipykernel's way for what a
    process of its own prints is a port of 127.0.0.1, which takes words with its key alone."""
    strike = Strike(tmp_path / "mark", signal.SIGSTOP, does="evaluating")
    process = scene.start(
        scene.task(tmp_path).command(1), scene.folder(tmp_path), 1, strike.environ
    )
    kernel = psutil.Process(wait_for(strike.stands))
    family = [kernel, *kernel.parents()[:2]]
    ports = [socket.laddr for one in family for socket in one.net_connections("inet")]
    assert {address.ip for address in ports} <= {"127.0.0.1"}
    strike.go_on(signal.SIGCONT)
    assert process.wait() == 0
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    left = {socket.laddr for socket in psutil.net_connections("inet") if socket.status == "LISTEN"}
    assert not left & set(ports)
    record_property("seen", f"{len(ports)} on 127.0.0.1 in mid-run, none afterwards")


def test_planted_secret_is_in_no_file(scene, record_property):
    """HF_TOKEN was set for every run here, for those that failed with a traceback too."""
    scene.undisturbed()
    base = scene.place.parent  # of all folders of these tests
    files = [path for path in base.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name == "executed.ipynb" for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    record_property("seen", "in no record, table, notebook, traceback or log of all these runs")
