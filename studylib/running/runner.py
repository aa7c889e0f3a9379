"""Start the runs of a study: each a notebook in a process of its own, sent where an executor says.

record.json is the only sign that a run succeeded: papermill writes its output notebook also when
a cell fails, and a killed kernel may end without an exception.

Not covered: what happens inside a run (studylib.training.run), processes and machines
(studylib.running.executor, studylib.running.ray_executor), how progress is drawn
(studylib.running.progress).
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from studylib.core.errors import StudyError, without_colours
from studylib.core.files import lock_folder
from studylib.core.places import NOTEBOOKS, REFERENCE
from studylib.forecasting.disk import refuse_full_disk
from studylib.forecasting.extent import tell_extents
from studylib.forecasting.prospects import foresee_runs, record_misfit
from studylib.inputs.extras import refuse_without_card
from studylib.inputs.origins import take_data
from studylib.planning.plan import (
    Plan,
    brings_models,
    check_inputs,
    check_writable,
    pin_sources,
    plan_study,
    specs_left,
)
from studylib.planning.stale import refuse_stale_serves
from studylib.running.doctor import cards_here
from studylib.running.executor import Executor, Outcome, Task, run_batch
from studylib.running.forked_kernel import kernel_options
from studylib.running.progress import Progress
from studylib.running.ray_executor import RayExecutor
from studylib.running.warm import warm_starts
from studylib.schema.profile import ModelRef, Profile, RunSpec
from studylib.schema.records import RECORD, Record, read_records, write_atomically
from studylib.schema.serve_records import SERVE_RECORD
from studylib.schema.serving import serve_specs


def reference_records(profile: str) -> list[Record]:
    """The shipped records of a profile, for estimates and comparison; none is fine."""
    runs = REFERENCE / profile / "runs"
    return read_records(runs) if runs.is_dir() else []


def open_executor(name: str, ray_address: str | None = None) -> AbstractContextManager[Executor]:
    """Where runs go: `local` (this machine) or `ray` (a cluster's machines)."""
    check_executor(name)
    return RayExecutor(ray_address) if name == "ray" else nullcontext(run_batch)


def check_executor(name: str) -> None:
    if name not in ("local", "ray"):
        raise StudyError(name, "this is not an executor", "Write local or ray.")


def reproduce(
    profile: Profile,
    results: Path,
    progress: Progress,
    force: bool = False,
    executor: Executor = run_batch,
) -> Outcome:
    """Run all that is not done yet, the untrained models first.

    A run that by forecast does not fit this machine is recorded so and not started, unless
    `force` is given or the runs go to other machines. Unfit, before any work, where a model cannot
    take one of its methods.
    """
    plan = plan_study(profile, results, reference_records(profile.name))
    outcome = Outcome(done_before=[run.run_id for run in plan.runs if run.state == "done"])
    if not plan.left and not serve_left(profile, results):
        return outcome
    profile = pin_sources(profile)
    for line in take_data(profile):
        progress.say(f"  {line}")
    check_inputs(profile, fetch=executor is run_batch)
    left = specs_left(profile, plan)
    if executor is run_batch and not cards_here():
        for spec in left:
            refuse_without_card(spec)
    if brings_models(profile):
        from studylib.modelling.preflight import check_models

        check_models(profile)
    check_writable(results / "runs")
    if executor is run_batch and not force:
        refuse_full_disk(left, results)
    for line in tell_extents(left):
        progress.say(f"  {line}")
    with lock_folder(results / ".study", "study"):
        return run_left(profile, results, progress, force, executor, outcome)


def run_left(
    profile: Profile,
    results: Path,
    progress: Progress,
    force: bool,
    executor: Executor,
    outcome: Outcome,
) -> Outcome:
    """Run what is left in the study's folder, which this process holds: no other one ends any."""
    here = executor is run_batch
    with ExitStack() as stack:
        if here:  # begun first: it imports while this process makes its forecasts
            start = stack.enter_context(warm_starts(profile.hardware, progress.say))
            executor = partial(run_batch, start=start)
        for batch in make_batches(profile, results, progress, force, here, outcome):
            executor(batch, profile.hardware, progress, outcome)
    progress.end(outcome.finished, list(outcome.failed))
    return outcome


def make_batches(
    profile: Profile,
    results: Path,
    progress: Progress,
    force: bool,
    here: bool,
    outcome: Outcome,
) -> list[list[Task]]:
    """The tasks that are left, in groups that follow one another; enters what cannot fit here."""
    file = write_profile(profile, results)
    plan = plan_study(profile, results, reference_records(profile.name))
    if here and not force:
        skip_misfits(profile, plan, results, outcome, progress)
        plan = plan_study(profile, results, reference_records(profile.name))
    serving = serve_tasks(profile, file, results)
    progress.begin(plan, len(serving), here)
    batches = [
        [run_task(s, file, results) for s in specs] for specs in order_batches(profile, plan)
    ]
    batches.append(serving)
    if not here:  # a base's answers are only shown beside another's: no machine idles for them
        batches = [[task for batch in batches for task in batch]]
    return batches


def skip_misfits(
    profile: Profile, plan: Plan, results: Path, outcome: Outcome, progress: Progress
) -> None:
    """Record the runs that cannot fit, by forecast, instead of starting them."""
    specs = {spec.run_id: spec for spec in specs_left(profile, plan)}
    for run_id, prospect in foresee_runs([*specs.values()]).items():
        if not prospect.may_run:
            record_misfit(specs[run_id], prospect, results / "runs" / run_id)
            outcome.finished.append(run_id)
            progress.say(f"  {run_id}: not started, {prospect.reason} (--force starts it)")


def order_batches(profile: Profile, plan: Plan) -> Iterator[list[RunSpec]]:
    """Bases before what is compared with them."""
    specs = specs_left(profile, plan)
    for trains in (False, True):
        batch = [spec for spec in specs if spec.method.kind.trains == trains]
        if batch:
            yield batch


def run_task(spec: RunSpec, file: Path, results: Path) -> Task:
    folder = results / "runs" / spec.run_id
    return Task(
        task_id=spec.run_id,
        words=("run", spec.run_id),
        folder=folder,
        result=folder / RECORD,
        profile=str(file),
        results=results.parent,
        gpus=spec.gpus,
        needs=(results / "runs" / spec.base_run_id / "items.parquet",),
        inputs=local_inputs(spec.model_ref, *spec.data.sources, *spec.evaluate.sources),
    )


def local_inputs(model: ModelRef, *sources: str) -> tuple[str, ...]:
    """Which of a run's inputs are files or folders named relative to the working directory."""
    names = [model.name] if model.kind in ("path", "gguf") else []
    names += sources
    return tuple(name for name in names if not name.startswith(("/", "~")) and Path(name).exists())


def serve_left(profile: Profile, results: Path) -> list[str]:
    """The serving runs that the profile asks for and that have no record yet."""
    if profile.serve is None:
        return []
    refuse_stale_serves(profile, results)
    ids = [spec.serve_id for spec in serve_specs(profile)]
    return [name for name in ids if not (results / "serve" / name / SERVE_RECORD).is_file()]


def serve_tasks(profile: Profile, file: Path, results: Path) -> list[Task]:
    specs = {spec.serve_id: spec for spec in serve_specs(profile)} if profile.serve else {}
    return [
        Task(
            task_id=f"{serve_id} (serving)",
            words=("serve", serve_id),
            folder=results / "serve" / serve_id,
            result=results / "serve" / serve_id / SERVE_RECORD,
            profile=str(file),
            results=results.parent,
            gpus=min(profile.hardware.gpus, 1),
            inputs=local_inputs(specs[serve_id].model_ref),
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
    from traitlets.config import Config

    source = NOTEBOOKS / name
    check_parameters(source, parameters)
    with tempfile.TemporaryDirectory(prefix="study-") as sockets:
        # Local sockets that only this user can open, not TCP ports that every user of the machine
        # can reach; in a folder with a short name, as their names may be no longer than 107 bytes.
        channel = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        execute(source, output, parameters, channel)


def execute(source: Path, output: Path, parameters: dict[str, Any], channel: Any) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

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
            config=channel,
            **kernel_options(),
        )
    except PapermillExecutionError as error:
        if error.ename == "StudyError":
            raise Refused(error.evalue) from None
        trace = without_colours("\n".join(error.traceback))
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
    return make_record("10_run.ipynb", folder / RECORD, profile, results, concurrent_runs)


def make_record(
    notebook: str, record: Path, profile: str, results: Path, concurrent_runs: int
) -> Path:
    """Execute the notebook of a run or a serving run, which leaves its record in a folder of its
    own, named by its id; gives the record's path."""
    folder = record.parent
    check_writable(folder)
    parameters = {
        "PROFILE": profile,
        "RUN_ID": folder.name,
        "RESULTS": str(results),
        "CONCURRENT_RUNS": concurrent_runs,
    }
    run_notebook(notebook, folder / "executed.ipynb", parameters)
    if not record.is_file():
        raise RunFailed("the notebook ended without a record")
    return record


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
