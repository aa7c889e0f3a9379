"""The executor for a Ray cluster: each run a task with its cards and cores, on any machine.

Every machine needs the study's packages and a started Ray; code, inputs and results travel
through Ray. A run whose worker is lost is sent again and goes on from the last state that came
back; one that fails by itself is not.

Not covered: what the desk and the workers do (studylib.running.ray_desk,
studylib.running.ray_worker), starting machines, clusters that grow on demand (a run that fits no
machine present is refused).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studylib.core.errors import StudyError
from studylib.core.places import NOTEBOOKS, ROOT
from studylib.metering.environment import COMMIT_VARIABLE, DIRTY_VARIABLE, git_state
from studylib.running.executor import Failure, Outcome, Task
from studylib.running.ray_desk import Desk
from studylib.running.ray_head import Head, head_lost, not_taken, refuse_silent
from studylib.running.ray_worker import HOME, Order, work_on_ray

if TYPE_CHECKING:
    from studylib.schema.settings import Hardware

# One after the other, without a state that came back: a run that kills its workers, as by using
# up a machine's memory, would be tried for ever; one on machines that come and go gets on.
MOST_LOSSES = 3
SENT_VARIABLES = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")
END_SECONDS = 20.0
Resources = Mapping[str, float]


class RayExecutor:
    """Connects when it has tasks; a context manager that ends its workers and lets go of Ray."""

    def __init__(self, address: str | None = None):
        if importlib.util.find_spec("ray") is None:
            raise StudyError(
                "executor ray",
                "the package ray is not installed",
                "Install it here and on each machine: pip install -e '.[ray]'.",
            )
        if address and address.startswith("ray://"):
            raise StudyError(
                address,
                "the study is started on a machine of the cluster and not through Ray's client",
                "Start it there with --ray-address auto, or give HOST:6379.",
            )
        # Read when ray is imported. Without the second, Ray prints a lost machine's own log between
        # the lines of this study, which says in one line what was lost.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
        self.address = address
        self.desk: Any = None
        self.code: Path | None = None
        self.head: Head | None = None
        self.running: dict[Any, tuple[Task, Order]] = {}

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        if self.desk is not None and not self._is_headless():
            import ray

            ray.kill(self.desk)
            ray.shutdown()
        if self.code is not None:
            shutil.rmtree(self.code, ignore_errors=True)

    def __call__(
        self, tasks: Sequence[Task], hardware: Hardware, progress: Any, outcome: Outcome
    ) -> None:
        """Send all tasks at once; Ray starts them where there is room, in their order."""
        if not tasks:
            return
        import ray

        self._connect(progress)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = {task.task_id: cpus_of_run(task.gpus, hardware, machines) for task in tasks}
        for task in tasks:
            refuse_unplaceable(task, cpus[task.task_id], machines)
        environ = environ_to_send()
        losses = dict.fromkeys(cpus, 0)
        try:
            for task in tasks:
                order = make_order(task, cpus[task.task_id], environ)
                if self._expect(task, order.folder, progress, outcome):
                    self._submit(task, order)
            while self.running:
                done, _ = ray.wait(list(self.running), timeout=0.5)
                if self._is_headless():
                    raise head_lost(self.address)
                show(self._ask("look"), progress)
                for ref in done:
                    self._settle(ref, losses, progress, outcome)
        finally:
            self._stop()

    def _connect(self, progress: Any) -> None:
        if self.desk is not None:
            return
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self.address:
            refuse_silent(self.address)
        self.code = pack_code(Path(tempfile.mkdtemp(prefix="study-code-")))
        try:
            ray.init(
                address=self.address,
                runtime_env={"working_dir": str(self.code)},
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError) as error:  # nobody there; another version of Ray
            raise not_taken(self.address or "Ray", str(error).splitlines()[0]) from None
        self.head = Head(ray.get_runtime_context().gcs_address)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
        total = ray.cluster_resources()
        machines = sum(node["Alive"] for node in ray.nodes())
        progress.say(
            f"  on Ray: {machines} machines, {total.get('CPU', 0):g} cores, "
            f"{total.get('GPU', 0):g} cards"
        )

    def _is_headless(self) -> bool:
        return self.head is not None and self.head.is_lost()

    def _ask(self, method: str, *args: Any) -> Any:
        import ray

        return ray.get(getattr(self.desk, method).remote(*args))

    def _expect(self, task: Task, place: str, progress: Any, outcome: Outcome) -> bool:
        """Tell the desk of a task; False where another process here is working on it."""
        files = files_to_send(task)
        folder, log = str(task.folder.absolute()), task.folder / "log.txt"
        busy = self._ask("expect", task.task_id, folder, task.result.name, place, files)
        if busy:
            outcome.failed[task.task_id] = Failure(log, busy)
            progress.started(task.task_id)
            progress.failed(task.task_id, log)
        return not busy

    def _submit(self, task: Task, order: Order) -> None:
        import ray

        # Spread, so that as few runs as possible share a machine. Retries are this module's: Ray
        # would repeat a run that exhausts a machine's memory without end.
        options = {"num_cpus": order.cpus, "num_gpus": order.gpus, "name": order.task_id}
        remote = ray.remote(work_on_ray).options(
            **options, max_retries=0, scheduling_strategy="SPREAD"
        )
        self.running[remote.remote(order, self.desk)] = task, order

    def _settle(self, ref: Any, losses: dict[str, int], progress: Any, outcome: Outcome) -> None:
        """A task has ended: by itself, by a bug, or because its machine is lost."""
        import ray
        from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

        task, order = self.running.pop(ref)
        name, exit_code, lost = task.task_id, 1, False
        try:
            exit_code = ray.get(ref)
        except (RayTaskError, RuntimeEnvSetupError) as error:
            self._ask("note", name, f"{error}\n".encode())
        except RayError as error:
            lost = True
            reason = str(error).strip().splitlines()[0]
            self._ask("note", name, f"its worker was lost ({reason})\n".encode())
        attempt, got_on = self._ask("leave", name)
        losses[name] = 0 if got_on else losses[name] + 1
        if lost and losses[name] <= MOST_LOSSES and not task.result.is_file():
            progress.say(f"  {name}: its worker was lost, it is sent again")
            progress.update(name, {"doing": "waiting for another machine"})
            self._submit(task, replace(order, attempt=attempt))
            return
        self._ask("close", name)
        if name not in progress.now:
            progress.started(name)
        outcome.sort_in(task, exit_code, progress)

    def _give_up(self) -> None:
        """Let workers that cannot be cancelled end by themselves: they ask the desk, and what the
        desk has closed they give up. Without a head that is all that still works."""
        import ray
        from ray.exceptions import RayError

        for task, _ in self.running.values():
            with suppress(RayError):
                ray.get(self.desk.leave.remote(task.task_id), timeout=END_SECONDS)
                ray.get(self.desk.close.remote(task.task_id), timeout=END_SECONDS)
        self.running.clear()

    def _stop(self) -> None:
        """End what still runs, after Ctrl-C or a fault; its last whole state is here."""
        import ray

        if self._is_headless():
            self._give_up()
        for ref in self.running:
            ray.cancel(ref)
        if self.running:
            ray.wait(list(self.running), num_returns=len(self.running), timeout=END_SECONDS)
        self.running.clear()


def show(said: dict[str, dict[str, Any]], progress: Any) -> None:
    """Draw what the runs that have a machine last said."""
    for name, figures in said.items():
        if name not in progress.now:
            progress.started(name)
        progress.update(name, figures)


def cpus_of_run(gpus: int, hardware: Hardware, machines: Iterable[Resources]) -> int:
    """The cores that a run reserves: the profile's threads; else 1 beside a card, where cards are
    what is scarce; else the smallest machine's, shared among the profile's jobs."""
    if hardware.threads:
        return hardware.threads
    cores = [int(has["CPU"]) for has in machines if has.get("CPU", 0) >= 1]
    return 1 if gpus or not cores else max(1, min(cores) // hardware.jobs)


def refuse_unplaceable(task: Task, cpus: int, machines: Sequence[Resources]) -> None:
    """Ray would wait for ever for a machine that no one starts."""
    if any(has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= task.gpus for has in machines):
        return
    present = ", ".join(f"{h.get('CPU', 0):g} and {h.get('GPU', 0):g}" for h in machines)
    raise StudyError(
        task.task_id,
        f"it needs a machine with {cpus} cores and {task.gpus} cards; those of the cluster have "
        f"{present}",
        "Add such a machine with `ray start --address HOST:6379`, or change hardware.threads and "
        "hardware.gpus in the profile.",
    )


def make_order(task: Task, cpus: int, environ: Mapping[str, str]) -> Order:
    """The first attempt at a task, in a worker's words."""
    return Order(
        task_id=task.task_id,
        attempt=1,
        words=words_there(task),
        folder=worker_folder(task),
        result=task.result.name,
        cpus=cpus,
        gpus=task.gpus,
        environ=environ,
    )


def worker_folder(task: Task) -> str:
    """The run's folder as a worker names it: results/PROFILE/runs/RUN_ID."""
    return f"results/{task.folder.relative_to(task.results).as_posix()}"


def words_there(task: Task) -> tuple[str, ...]:
    """The task's command with a worker's places. Who shares a machine is counted as it happens."""
    profile = f"results/{Path(task.profile).relative_to(task.results).as_posix()}"
    there = replace(task, profile=profile, results=Path("results"))
    return tuple(there.command(jobs=1))


def files_to_send(task: Task) -> dict[str, str]:
    """A worker's name -> the path here, of the profile, what the run reads, and its inputs."""
    paths = [Path(task.profile), *task.needs]
    files = {f"results/{path.relative_to(task.results).as_posix()}": path for path in paths}
    for text in task.inputs:
        found = Path(text)
        if not is_inside(found):
            raise StudyError(
                text,
                f"an input that is sent lies at most {len(HOME.parts)} folders above this one",
                "Give its absolute path, and have it at that path on each machine.",
            )
        inner = [found] if found.is_file() else sorted(found.rglob("*"))
        files |= {path.as_posix(): path for path in inner if path.is_file()}
    return {name: str(path.absolute()) for name, path in files.items()}


def is_inside(path: Path) -> bool:
    """Whether a relative path, seen from a worker's home, stays in its temporary folder."""
    return Path(os.path.normpath(path)).parts.count("..") <= len(HOME.parts)


def pack_code(folder: Path) -> Path:
    """What workers execute: the package, the notebooks, and the list of what they need."""
    leave = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for source in (ROOT / "studylib", NOTEBOOKS):
        shutil.copytree(source, folder / source.name, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def environ_to_send() -> dict[str, str]:
    """The hub's settings and the commit of the code. As a task's argument and not as Ray's
    runtime environment, which Ray writes into its logs: a token is among them."""
    commit, dirty = git_state()
    told = {COMMIT_VARIABLE: commit, DIRTY_VARIABLE: str(int(bool(dirty)))} if commit else {}
    return {**told, **{name: os.environ[name] for name in SENT_VARIABLES if name in os.environ}}
