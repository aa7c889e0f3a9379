"""One run on a machine of a Ray cluster: fetch what it needs, start it, send home what it makes.

The run is a process of its own in a temporary folder (below TMPDIR), laid out as the driver's:
results/PROFILE/runs/RUN_ID. Each time it saves its state, the state goes to the desk while it runs
on; its folder follows when it ends. Imports only the standard library until it has checked that
this machine has the packages.

Not covered: where things end up (studylib.running.ray_desk), retries
(studylib.running.ray_executor).
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import socket
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from studylib.core.errors import StudyError
from studylib.core.places import ROOT
from studylib.core.sharing import NAME as SHARING
from studylib.core.sharing import leave_word
from studylib.running.executor import launch, read_progress

PART_BYTES = 16 * 2**20
LOOK_EVERY_SECONDS = 0.3
LARGEST_STATE_BYTES = 50e9  # a larger one would reach the desk after its successor was saved
HOME = Path("1/2/3/4")  # so deep that inputs named ../../data lie in the temporary folder too
NOT_SENT = ("log.txt", "progress.json")  # these are sent while the run runs
PREFIX = "study-run-"
YOUNG_SECONDS = 60.0
STALE = -1  # the exit code of a worker that was given up

# The desk's methods by name: ask("begin", …).
Ask = Callable[..., Any]
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Order:
    """One attempt at a run. folder: the run's, as this worker names it; result: a name in it."""

    task_id: str
    attempt: int
    words: tuple[str, ...]
    folder: str
    result: str
    cpus: int
    gpus: int
    environ: Mapping[str, str]


def work_on_ray(order: Order, desk: Any) -> int:
    """The Ray task: carry out an order; the exit code of the run's process."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    has = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    threads = order.cpus
    if order.gpus:
        threads = max(threads, int(has.get("CPU", 1) * order.gpus / has["GPU"]))

    def ask(method: str, *args: Any) -> Any:
        # Not ray.get: while a task waits in it, Ray lends the task's cores to another one.
        return getattr(desk, method).remote(*args).future().result()

    return carry_out(order, ask, threads)


def carry_out(order: Order, ask: Ask, threads: int) -> int:
    """Fetch, run and send home. Ends the run's process whatever happens to this one's."""
    lacking = missing_packages(ROOT / "pyproject.toml")
    if lacking:
        error = StudyError(
            socket.gethostname(),
            f"this machine of the cluster lacks {', '.join(lacking)}",
            "Run `make setup` there and start Ray from that environment.",
        )
        ask("report", order.task_id, order.attempt, {}, f"study: {error}\n".encode())
        return StudyError.exit_code
    clear_abandoned(Path(tempfile.gettempdir()))
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name,
        (Path(name) / "held").open("w") as held,
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        home = Path(name) / HOME
        files = ask("begin", order.task_id, order.attempt, machine_mark())
        if files is None:
            return STALE
        for file, size in files:
            fetch_file(order, ask, file, size, home)
        return watch_order(order, Courier(order, ask, home / order.folder), threads, home)


def clear_abandoned(temporary: Path) -> None:
    """Remove the folders of workers that were killed: their checkpoints would fill the disk."""
    for folder in temporary.glob(f"{PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < YOUNG_SECONDS:
                continue  # perhaps made this instant and not yet held
            with (folder / "held").open("r") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held, gone meanwhile, or another user's
            continue
        shutil.rmtree(folder, ignore_errors=True)


def watch_order(order: Order, courier: Courier, threads: int, home: Path) -> int:
    folder = home / order.folder
    process = launch(order.words, folder, threads, order.environ, cwd=home)
    try:
        while process.poll() is None:
            time.sleep(LOOK_EVERY_SECONDS)
            if not (courier.report() and courier.send_state()):
                return STALE
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if courier.report() and courier.send_state():
        courier.send_result()
    return process.returncode


def fetch_file(order: Order, ask: Ask, name: str, size: int, home: Path) -> None:
    """One file from the desk, in parts."""
    path = Path(os.path.normpath(home / name))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while file.tell() < size:
            part = ask("read", order.task_id, name, file.tell(), PART_BYTES)
            if not part:
                raise OSError(f"{name} became shorter while it was read")
            file.write(part)


@dataclass
class Courier:
    """Carries a run's files to the desk. sent: the large files of the state that lies there;
    seen: the session.json that was last dealt with."""

    order: Order
    ask: Ask
    folder: Path
    sent: dict[str, Stamp] = field(default_factory=dict)
    seen: Stamp | None = None
    log_sent: int = 0
    warned: bool = False

    def __post_init__(self) -> None:
        state = read_state(self.folder / "work")
        if state is not None:
            self.sent, self.seen = state.large, stamp(self.folder / "work" / "session.json")

    def report(self) -> bool:
        """Send progress and log, note how many share the machine; False: given up, stop."""
        log = b""
        path = self.folder / "log.txt"
        if path.is_file():
            with path.open("rb") as file:
                file.seek(self.log_sent)
                log = file.read(PART_BYTES)
        self.log_sent += len(log)
        sharing = self._ask("report", read_progress(self.folder), log)
        if sharing is None:
            return False
        work = self.folder / "work"
        if work.is_dir():
            with suppress(FileNotFoundError):  # the run has just ended and cleared it away
                leave_word(work, sharing)
        return True

    def send_state(self) -> bool:
        """Send the run's state if it has saved a new one. False: given up, stop."""
        work = self.folder / "work"
        if not (work / "session.json").is_file():
            return True
        saved = stamp(work / "session.json")
        if saved == self.seen:
            return True
        state = read_state(work)
        if state is None:
            return True
        new = [name for name, found in state.large.items() if self.sent.get(name) != found]
        if not self._is_room(sum(state.large[name][0] for name in new)):
            self.seen = saved
            return True
        try:
            if not all(self._send(f"work/{name}", (work / name).open("rb")) for name in new):
                return False
        except FileNotFoundError:  # the trainer has cleared it away: there is a later one
            return True
        if not all(self._send(f"work/{n}", io.BytesIO(text)) for n, text in state.small.items()):
            return False
        self.sent, self.seen = state.large, saved
        return bool(self._ask("keep", [*state.large, *state.small]))

    def send_result(self) -> None:
        """Send everything but the working files; the desk puts it in place, the result last."""
        names = [
            path.relative_to(self.folder).as_posix()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        ]
        names = [n for n in names if not n.startswith(("work/", ".")) and n not in NOT_SENT]
        if all(self._send(name, (self.folder / name).open("rb")) for name in names):
            self._ask("deliver", names)

    def _send(self, name: str, file: BinaryIO) -> bool:
        with file:
            while True:
                offset = file.tell()
                part = file.read(PART_BYTES)
                if offset and not part:
                    return True
                if not self._ask("write", name, offset, part):
                    return False
                if len(part) < PART_BYTES:
                    return True

    def _is_room(self, size: int) -> bool:
        if size <= LARGEST_STATE_BYTES and 2 * size < self.ask("room", self.order.task_id):
            return True
        if not self.warned:
            self.warned = True
            words = f"its checkpoints of {size / 1e9:.1f} GB are too large to be sent home"
            self.ask("note", self.order.task_id, f"{words}: a lost machine loses them\n".encode())
        return False

    def _ask(self, method: str, *args: Any) -> Any:
        return self.ask(method, self.order.task_id, self.order.attempt, *args)


@dataclass(frozen=True)
class State:
    """What a run could go on from: small files read at one instant, and large ones that, once
    whole, are never changed."""

    small: dict[str, bytes]
    large: dict[str, Stamp]


def read_state(work: Path) -> State | None:
    """The last state that a run has saved; None where there is none, or it is being written.

    session.json is written after the checkpoint and the samples that belong to it. Of the
    checkpoints only the one that the run would itself go on from is taken: the newest whole one
    that is not ahead of the steps in session.json.
    """
    session = work / "session.json"
    try:
        saved = stamp(session)
        names = [SHARING, *(path.name for path in work.glob("samples-*.parquet"))]
        paths = [session, *(work / name for name in names if (work / name).is_file())]
        small = {path.name: path.read_bytes() for path in paths}
        if stamp(session) != saved or any(
            stamp(path)[1] > saved[1] for path in paths if path.suffix == ".parquet"
        ):
            return None
        steps = len(json.loads(small[session.name])["steps"])
        found = [path.parent for path in work.glob("checkpoint-*/trainer_state.json")]
        found = [folder for folder in found if step_of(folder) <= steps]
        folders = sorted(found, key=step_of)[-1:]
        if (work / "trained" / "whole").is_file():
            folders.append(work / "trained")
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return State(small, {path.relative_to(work).as_posix(): stamp(path) for path in files})
    except FileNotFoundError:  # not saved yet, or the trainer cleared an older checkpoint away
        return None


def stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def machine_mark() -> str:
    """What tells this machine from others: two nodes or containers on one machine share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def missing_packages(pyproject: Path) -> list[str]:
    """Which packages of the study this interpreter does not have."""
    wanted = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    missing = []
    for text in wanted:
        name = re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing
