"""Start the runs of a study: each a notebook in a process of its own, several side by side.

record.json is the only sign that a run succeeded: papermill writes its output notebook also when
a cell fails, and a killed kernel may end without an exception. A run that fails is reported with
its log, the others go on.

Not covered: what happens inside a run (studylib.run), how progress is drawn (studylib.progress).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from studylib.errors import StudyError
from studylib.places import NOTEBOOKS, REFERENCE, ROOT
from studylib.plan import Plan, check_inputs, check_writable, plan_study
from studylib.profile import Hardware, Profile, RunSpec
from studylib.progress import Progress
from studylib.prospects import foresee, record_misfit
from studylib.records import RECORD, Record, read_records, write_atomically
from studylib.serve_records import SERVE_RECORD
from studylib.serving import serve_specs


@dataclass(frozen=True)
class Task:
    """A command `study WORDS…` that leaves `result` if it succeeds; its log goes to `folder`."""

    task_id: str
    words: tuple[str, ...]
    folder: Path
    result: Path


@dataclass(frozen=True)
class Failure:
    """A run without a record: the log to read, and the message if it was bad input."""

    log: Path
    message: str | None


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
        return 2 if all(failure.message for failure in self.failed.values()) else 1


def reference_records(profile: str) -> list[Record]:
    """The shipped records of a profile, for estimates and comparison; none is fine."""
    runs = REFERENCE / profile / "runs"
    return read_records(runs) if runs.is_dir() else []


def reproduce(profile: Profile, results: Path, progress: Progress, force: bool = False) -> Outcome:
    """Run all that is not done yet, `jobs` at a time, the untrained models first.

    A run that by forecast does not fit this machine is recorded so and not started, unless
    `force` is given.
    """
    plan = plan_study(profile, results, reference_records(profile.name))
    outcome = Outcome(done_before=[run.run_id for run in plan.runs if run.state == "done"])
    if not plan.left and not serve_left(profile, results):
        return outcome
    check_inputs(profile)
    check_writable(results / "runs")
    file = write_profile(profile, results)
    if not force:
        skip_misfits(profile, plan, results, outcome, progress)
        plan = plan_study(profile, results, reference_records(profile.name))
    serving = serve_tasks(profile, file, results)
    progress.begin(plan, len(serving))
    for batch in order_batches(profile, plan):
        tasks = [run_task(spec, file, results, profile.hardware.jobs) for spec in batch]
        run_batch(tasks, profile.hardware, progress, outcome)
    run_batch(serving, profile.hardware, progress, outcome)
    progress.end(outcome.finished, list(outcome.failed))
    return outcome


def skip_misfits(
    profile: Profile, plan: Plan, results: Path, outcome: Outcome, progress: Progress
) -> None:
    """Record the runs that cannot fit, by forecast, instead of starting them."""
    specs = [profile.run(run.run_id) for run in plan.left]
    for run_id, prospect in foresee(specs).items():
        if not prospect.fits:
            record_misfit(profile.run(run_id), prospect, results / "runs" / run_id)
            outcome.finished.append(run_id)
            progress.say(f"  {run_id}: not started, {prospect.reason} (--force starts it)")


def order_batches(profile: Profile, plan: Plan) -> Iterator[list[RunSpec]]:
    """Bases before what is compared with them."""
    left = {run.run_id for run in plan.left}
    specs = [spec for spec in profile.runs() if spec.run_id in left]
    for trains in (False, True):
        batch = [spec for spec in specs if spec.method.kind.trains == trains]
        if batch:
            yield batch


def run_task(spec: RunSpec, file: Path, results: Path, jobs: int) -> Task:
    folder = results / "runs" / spec.run_id
    place = ("--profile", str(file), "--results", str(results.parent), "--jobs", str(jobs))
    return Task(spec.run_id, ("run", spec.run_id, *place), folder, folder / RECORD)


def serve_left(profile: Profile, results: Path) -> list[str]:
    """The serving runs that the profile asks for and that have no record yet."""
    if profile.serve is None:
        return []
    ids = [spec.serve_id for spec in serve_specs(profile)]
    return [name for name in ids if not (results / "serve" / name / SERVE_RECORD).is_file()]


def serve_tasks(profile: Profile, file: Path, results: Path) -> list[Task]:
    place = ("--profile", str(file), "--results", str(results.parent))
    jobs = ("--jobs", str(profile.hardware.jobs))
    return [
        Task(
            f"{serve_id} (serving)",
            ("serve", serve_id, *place, *jobs),
            results / "serve" / serve_id,
            results / "serve" / serve_id / SERVE_RECORD,
        )
        for serve_id in serve_left(profile, results)
    ]


def write_profile(profile: Profile, results: Path) -> Path:
    """The resolved profile beside its results: each run's process reads this file."""
    path = results / "profile.yaml"
    content = profile.model_dump(mode="json")
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_atomically(path, text.encode())
    return path


def run_batch(tasks: Sequence[Task], hardware: Hardware, progress: Any, outcome: Outcome) -> None:
    """Run tasks side by side, `jobs` at a time, and sort them by whether their result is there."""
    waiting = list(tasks)
    running: dict[str, tuple[Task, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < hardware.jobs:
                task = waiting.pop(0)
                running[task.task_id] = task, launch(task, hardware)
                progress.started(task.task_id)
            time.sleep(0.2)
            for task_id, (task, process) in list(running.items()):
                if process.poll() is None:
                    progress.update(task_id, read_progress(task.folder))
                    continue
                del running[task_id]
                if task.result.is_file():
                    outcome.finished.append(task_id)
                    progress.finished(task_id, task.folder)
                else:
                    outcome.failed[task_id] = explain_failure(task.folder, process.returncode)
                    progress.failed(task_id, outcome.failed[task_id].log)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def explain_failure(folder: Path, exit_code: int) -> Failure:
    """The run's own last message, where it ended with one."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    messages = [line.removeprefix("study: ") for line in lines if line.startswith("study: ")]
    return Failure(log, messages[-1] if messages and exit_code == StudyError.exit_code else None)


def launch(task: Task, hardware: Hardware) -> subprocess.Popen[bytes]:
    """`study WORDS…` in a process of its own, what it prints in the task's log.txt."""
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / "progress.json").unlink(missing_ok=True)
    threads = hardware.threads or max(1, (os.cpu_count() or 1) // hardware.jobs)
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "STUDY_PARENT_PID": str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(
            part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part
        ),
    }
    command = [sys.executable, "-m", "studylib", *task.words]
    with (task.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )


def read_progress(folder: Path) -> dict[str, Any]:
    """The run's last word, or nothing: it is only for showing."""
    try:
        return json.loads((folder / "progress.json").read_bytes())
    except (OSError, ValueError):
        return {}


class Refused(StudyError):
    """A StudyError that was raised in a notebook's process; only its message came through."""

    def __init__(self, message: str):
        Exception.__init__(self, message)


class RunFailed(Exception):
    """A notebook ended without a record: a bug, a killed kernel. Its last lines are the message."""


def run_notebook(name: str, output: Path, parameters: dict[str, Any]) -> None:
    """Execute notebooks/NAME in a fresh kernel of this interpreter; parameters are checked first.

    Raises StudyError where the notebook raised one, RunFailed for anything else.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source = NOTEBOOKS / name
    check_parameters(source, parameters)
    try:
        # Paths relative to where the command was given: the executed copy holds them, and it is
        # meant to be shown to others.
        papermill.execute_notebook(
            os.path.relpath(source),
            os.path.relpath(output),
            parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=Path.cwd(),  # a profile's relative paths are the caller's
            log_output=False,
        )
    except PapermillExecutionError as error:
        if error.ename == "StudyError":
            raise Refused(error.evalue) from None
        trace = "\n".join(error.traceback)
        raise RunFailed(f"{error.ename}: {error.evalue}\n{trace}") from None
    except DeadKernelError:
        raise RunFailed("the notebook's process died (killed, or out of memory?)") from None


def check_parameters(source: Path, parameters: dict[str, Any]) -> None:
    """Every parameter is one that the notebook's tagged cell names: papermill would only warn."""
    import papermill

    if not source.is_file():
        raise StudyError(source, "there is no such notebook", "Run from a checkout of the study.")
    known = papermill.inspect_notebook(source)
    for key in parameters:
        if key not in known:
            raise StudyError(
                f"{source.name}: {key}",
                "the notebook has no such parameter",
                f"It has {', '.join(known)}.",
            )


def run_one(spec: RunSpec, profile: str, results: Path, concurrent_runs: int = 1) -> Path:
    """Execute one run's notebook and return its record's path."""
    folder = results / spec.profile / "runs" / spec.run_id
    if (folder / RECORD).is_file():
        raise StudyError(
            folder / RECORD, "this run is finished", "Move its folder away to run it anew."
        )
    check_writable(folder)
    parameters = {
        "PROFILE": profile,
        "RUN_ID": spec.run_id,
        "RESULTS": str(results),
        "CONCURRENT_RUNS": concurrent_runs,
    }
    run_notebook("10_run.ipynb", folder / "executed.ipynb", parameters)
    if not (folder / RECORD).is_file():
        raise RunFailed("the notebook ended without a record")
    return folder / RECORD


def follow_parent() -> None:
    """End when the study that started this run has died, so that no run goes on unwatched."""
    parent = os.environ.get("STUDY_PARENT_PID")
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
