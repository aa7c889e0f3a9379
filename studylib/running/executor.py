"""Where a study's runs go: what a run's process is told, and many of them on this machine.

A task's result file is the only sign that it succeeded. A task that fails is reported with its
log, the others go on.

Not covered: other machines (studylib.running.ray_executor), which tasks a study has
(studylib.running.runner).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from studylib.core.errors import StudyError
from studylib.core.places import python_path
from studylib.metering.devices import visible_cards
from studylib.metering.host import host_description
from studylib.running.heartbeat import Heartbeat, end_hanging, explain_hang

if TYPE_CHECKING:
    from studylib.schema.settings import Hardware


@dataclass(frozen=True)
class Task:
    """A command `study WORDS…` that leaves `result` if it succeeds; its log goes to `folder`.

    profile, results: what the command is told by --profile and --results. needs: files below
    `results` that it reads beside the profile; inputs: files and folders that its profile names
    by a path relative to the working directory. Both matter only on another machine.
    """

    task_id: str
    words: tuple[str, ...]
    folder: Path
    result: Path
    profile: str
    results: Path
    gpus: int = 0
    needs: tuple[Path, ...] = ()
    inputs: tuple[str, ...] = ()

    def command(self, jobs: int) -> list[str]:
        """The words with their place; jobs: how many runs share the machine."""
        place = ["--profile", self.profile, "--results", str(self.results), "--jobs", str(jobs)]
        return [*self.words, *place]


@dataclass(frozen=True)
class Failure:
    """A run without a record: the log to read, and a message where one tells all. hung: it was
    ended because it stood still, which is no bad input."""

    log: Path
    message: str | None
    hung: bool = False


@dataclass
class Outcome:
    """What `reproduce` did: run ids by how they ended."""

    done_before: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """2 where every failure was bad input, 1 where one was not, else 0."""
        if not self.failed:
            return 0
        told = all(failure.message and not failure.hung for failure in self.failed.values())
        return StudyError.exit_code if told else 1

    def sort_in(self, task: Task, exit_code: int, progress: Any, hang: str | None = None) -> None:
        """Enter a task that has ended, by whether its result is there. hang: why it was ended."""
        if task.result.is_file():
            self.finished.append(task.task_id)
            progress.finished(task.task_id, task.folder)
        else:
            failure = explain_failure(task.folder, exit_code)
            self.failed[task.task_id] = Failure(failure.log, hang, True) if hang else failure
            progress.failed(task.task_id, self.failed[task.task_id].log)


class Process(Protocol):
    """What an executor wants of a run's process: subprocess.Popen has it."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def wait(self) -> int: ...


# Runs tasks, tells `progress`, and sorts them into the outcome.
Executor = Callable[[Sequence[Task], "Hardware", Any, Outcome], None]
# Starts `study WORDS…`: its words, its folder, its threads, and what to add to its environment.
Start = Callable[[Sequence[str], Path, int, Mapping[str, str]], Process]


@dataclass
class Running:
    """A task's process, the cards that are its own until it ends, and its signs of life.

    hang: why it was ended, where it stood still.
    """

    task: Task
    process: Process
    cards: tuple[str, ...]
    heart: Heartbeat = field(default_factory=Heartbeat)
    hang: str | None = None

    def watch(self, said: dict[str, Any], minutes: float) -> None:
        """End it where it has stood still for so long; its own process then tells the rest."""
        if self.hang is None and self.heart.beat(said) > 60 * minutes:
            self.hang = explain_hang(said, minutes)
            end_hanging(said["pid"])


def run_batch(
    tasks: Sequence[Task],
    hardware: Hardware,
    progress: Any,
    outcome: Outcome,
    start: Start | None = None,
) -> None:
    """The executor for this machine: `jobs` tasks at a time, each on cards of its own.

    start: how a task's process is begun, `launch` if it is not told.
    """
    start = start or launch
    waiting, running = list(tasks), list[Running]()
    known = visible_cards()
    free = [*known] * hardware.runs_per_card
    threads = share_cores(hardware)
    try:
        while waiting or running:
            while waiting and len(running) < hardware.jobs:
                # One that asks for more than the machine has is started alone, and says so itself.
                if waiting[0].gpus > len(free) and running:
                    break
                task = waiting.pop(0)
                cards, free = tuple(free[: task.gpus]), free[task.gpus :]
                environ = {"CUDA_VISIBLE_DEVICES": ",".join(cards)} if known else {}
                process = start(task.command(hardware.jobs), task.folder, threads, environ)
                running.append(Running(task, process, cards))
                progress.started(task.task_id)
            time.sleep(0.2)
            for one in list(running):
                code = one.process.poll()
                if code is None:
                    said = read_progress(one.task.folder)
                    progress.update(one.task.task_id, said)
                    one.watch(said, hardware.hang_minutes)
                    continue
                running.remove(one)
                free += one.cards
                outcome.sort_in(one.task, code, progress, one.hang)
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()


def explain_failure(folder: Path, exit_code: int) -> Failure:
    """The run's own last message, where it ended with one."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    messages = [line.removeprefix("study: ") for line in lines if line.startswith("study: ")]
    return Failure(log, messages[-1] if messages and exit_code == StudyError.exit_code else None)


def launch(
    words: Sequence[str],
    folder: Path,
    threads: int,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """`study WORDS…` in a process of its own, what it prints in the folder's log.txt."""
    with open_log(folder) as log:
        return subprocess.Popen(
            [sys.executable, "-m", "studylib", *words],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=run_environment(threads, environ),
            cwd=cwd,
            start_new_session=True,
        )


def open_log(folder: Path) -> IO[bytes]:
    """The log of a run that is about to start, in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "progress.json").unlink(missing_ok=True)
    return (folder / "log.txt").open("ab")


def run_environment(threads: int, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a run's process; environ: what differs from this one's."""
    return {
        **os.environ,
        **(environ or {}),
        "OMP_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
        "RAYON_NUM_THREADS": str(threads),  # the tokenizer's
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "STUDY_PARENT_PID": str(os.getpid()),
        "PYTHONPATH": python_path(),
    }


def share_cores(hardware: Hardware) -> int:
    """The threads of each run, where the cores are shared by all that run at a time: those that
    affinity or a container's quota leaves, since more threads than cores wait for each other."""
    host = host_description()
    cores = min(host["cores_allowed"], int(host["cores_quota"] or host["cores_allowed"]))
    return hardware.threads or max(1, cores // hardware.jobs)


def read_progress(folder: Path) -> dict[str, Any]:
    """The run's last word, or nothing: it is only for showing."""
    try:
        return json.loads((folder / "progress.json").read_bytes())
    except (OSError, ValueError):
        return {}
