"""The process that a study's runs are forked from: it has imported everything and begun nothing.

Python takes seconds to import what a run needs, twice for each run: its own process and its
notebook's. A fork has it at once. What is forked must be as a new process would be: no thread, no
CUDA (which no fork survives), no random numbers in common, nothing remembered about cards.

Not covered: the study's side (studylib.running.warm), the notebook's kernel
(studylib.running.forked_kernel).
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from studylib.running.forked_kernel import become_kernel, fork_kernel

# Beside what a run's code reaches: how its notebook is executed and shown.
NOTEBOOK = ("papermill", "nbclient", "ipykernel.kernelapp", "ipykernel.ipkernel", "IPython.display")
# They keep what they found out about cards and about being in a notebook; both differ in a fork.
REMEMBER = ("transformers.utils.import_utils", "accelerate.utils.imports", "peft.import_utils")
WITH_NOTEBOOK = ("run", "serve")  # the commands that execute one
POPULATE_READ = 22  # madvise's, since Linux 5.14; an earlier one refuses it, which does no harm
MANAGEMENT = "libnvidia-ml.so.1"  # NVML's library
MOST_BYTES = 2**20  # of one message: an environment and a command


def stand_by(channel: socket.socket, card: bool, also: Iterable[str]) -> list[str] | None:
    """Import everything, then fork a process for each order; also: more modules to import.

    Returns the words of its command in each of these processes, and None where there is nothing
    left to do: in a kernel that was shut down, and here when the study has ended. card: whether
    this machine has one; then a fork tries it before any run depends on it.
    """
    changed = import_everything(card, also)
    reason = why_unfit(card)
    if reason is not None:
        channel.send(json.dumps({"unfit": reason}).encode())
        return None
    channel.send(json.dumps({"ready": True}).encode())
    pages = find_file_pages()
    order = Nursery(channel).watch()
    return None if order is None else become(order, changed, pages)


def import_everything(card: bool, also: Iterable[str]) -> dict[str, str]:
    """Import what a run and its notebook will, and freeze the code's hash; gives the environment
    variables that imports have set.

    bitsandbytes asks the card at its import, which starts CUDA: with a card it waits for the fork.
    scipy's statistics are 20 MB that only serving needs.
    """
    from studylib.metering.code_files import RUN, SERVING, code_sha256, reached_files

    before = dict(os.environ)
    defer("scipy.stats")
    if card:
        defer("bitsandbytes")
    for name in NOTEBOOK:
        importlib.import_module(name)
    for file in sorted({*reached_files(RUN), *reached_files(SERVING)}):
        path = Path("studylib", file).with_suffix("")
        importlib.import_module(".".join(path.parts).removesuffix(".__init__"))
    importlib.import_module("studylib.training.run").import_stage_libraries()
    for name in also:
        importlib.import_module(name)
    for entries in (RUN, SERVING):
        code_sha256(entries)  # of what is imported now, whatever is edited later
    for held in gc.get_objects():
        if type(held) is functools._lru_cache_wrapper and held.__module__ in REMEMBER:
            held.cache_clear()
    gc.collect()
    gc.freeze()  # or the first collection of each fork would copy all these pages
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


class Deferred(ModuleType):
    """A module that is loaded at the first use of anything in it, in whatever process that is.

    importlib's own lazy modules load already when they are imported a second time.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked by those who look at all modules
            raise AttributeError(name)
        self.load()
        return getattr(self, name)

    def load(self) -> None:
        spec = self.__spec__
        assert spec is not None and spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        spec.loader.exec_module(self)


def defer(name: str) -> None:
    """Put a module's loading off; nothing where it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is not None and name not in sys.modules:
        module = Deferred(name)
        module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
        sys.modules[name] = module


def load_deferred(name: str) -> None:
    """Load what was put off, before anything is measured, as a new process would."""
    module = sys.modules.get(name)
    if isinstance(module, Deferred):
        module.load()


def find_file_pages() -> list[tuple[int, int]]:
    """(address, bytes) of what this process holds of mapped files; none where it is not told."""
    import numpy as np

    page = os.sysconf("SC_PAGE_SIZE")
    found: list[tuple[int, int]] = []
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            for line in Path("/proc/self/maps").read_text().splitlines():
                span, rights, _, _, inode, *_ = line.split()
                if inode == "0" or "r" not in rights:
                    continue
                first, end = (int(number, 16) // page for number in span.split("-"))
                pagemap.seek(first * 8)
                held = np.frombuffer(pagemap.read((end - first) * 8), np.uint64) >> np.uint64(63)
                edges = np.flatnonzero(np.diff(np.concatenate(([0], held.astype(np.int8), [0]))))
                found += [
                    ((first + int(start)) * page, int(stop - start) * page)
                    for start, stop in edges.reshape(-1, 2)
                ]
    except OSError:
        return []
    return found


def hold_file_pages(pages: list[tuple[int, int]]) -> None:
    """Have in this fork's memory what its parent has: the system leaves files' pages out of it,
    and a run's peak would be smaller by them than in a process that did its own imports."""
    system = ctypes.CDLL(None)
    for address, count_bytes in pages:
        system.madvise(ctypes.c_void_p(address), ctypes.c_size_t(count_bytes), POPULATE_READ)


def why_unfit(card: bool) -> str | None:
    """Why no run should be forked from this process, or None. A first fork also ends the threads
    of linear algebra, which come back in each process that computes."""
    import torch

    leave_nvml()
    failed = try_fork(card)
    if failed:
        return failed
    if torch.cuda.is_initialized():
        return "an import has started CUDA"
    threads = name_threads()
    return f"an import has started threads ({', '.join(threads)})" if len(threads) > 1 else None


def leave_nvml() -> None:
    """End what asking NVML for cards has begun, once for each time: torch does not do so, and a
    fork would go on with its parent's connection to the driver."""
    with suppress(OSError):
        library = ctypes.CDLL(MANAGEMENT)
        while library.nvmlShutdown() == 0:
            pass


def name_threads() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def try_fork(card: bool) -> str | None:
    """Fork once and, with a card, compute on it and ask NVML there; the reason if that failed."""
    from studylib.metering.devices import describe_devices

    answer, pipe = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if card:
                import torch

                torch.cuda.init()
                if torch.cuda.device_count():
                    torch.ones(2, device="cuda").sum().item()
                _, reason = describe_devices()
                if reason is not None:
                    raise RuntimeError(reason)
        except Exception as error:
            os.write(pipe, f"the card does not answer in a fork: {error}"[:500].encode())
        finally:
            os._exit(0)
    os.close(pipe)
    with os.fdopen(answer, "rb") as told:
        reason = told.read().decode()
    _, status = os.waitpid(pid, 0)
    return reason or (f"a fork ended with {status}" if status else None)


class Nursery:
    """Forks the runs, tells the study of their ends, passes its signals on, and ends with it."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.numbers: dict[int, int] = {}  # of the living: process id to the order's number
        self.ended, self._bell = os.pipe()
        for end in (self.ended, self._bell):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)

    def watch(self) -> dict[str, Any] | None:
        """An order, in the process forked for it; None when the study has ended."""
        while True:
            ready, _, _ = select.select([self.channel.fileno(), self.ended], [], [])
            if self.ended in ready:
                os.read(self.ended, 4096)
                self.reap()
            if self.channel.fileno() in ready:
                told, files, _, _ = socket.recv_fds(self.channel, MOST_BYTES, 2)
                if not told:
                    self.signal_all()
                    return None
                order = json.loads(told)
                if "signal" in order:
                    self.signal(order)
                elif self.fork(order, files):
                    return order

    def fork(self, order: dict[str, Any], files: list[int]) -> bool:
        """Whether this is the new process."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.channel.close()
            os.close(self.ended)
            os.close(self._bell)
            order |= {"files": files, "parent": parent}
            return True
        for file in files:
            os.close(file)
        self.numbers[pid] = order["number"]
        return False

    def reap(self) -> None:
        while self.numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            ended = {"ended": self.numbers.pop(pid), "code": os.waitstatus_to_exitcode(status)}
            with suppress(OSError):  # the study has ended, which the next look will show
                self.channel.send(json.dumps(ended).encode())

    def signal(self, order: dict[str, Any]) -> None:
        """Only to one that is not reaped yet: another process may have its number afterwards."""
        for pid, number in self.numbers.items():
            if number == order["number"]:
                os.kill(pid, order["signal"])

    def signal_all(self) -> None:
        for pid in self.numbers:
            os.kill(pid, signal.SIGTERM)


def become(
    order: dict[str, Any], changed: dict[str, str], pages: list[tuple[int, int]]
) -> list[str] | None:
    """Make this fork what a new process with the order's environment would be; the command's words.

    For a command that executes a notebook the kernel is forked from here; None in that process,
    when it has been shut down.
    """
    log, life = order["files"]
    os.setsid()
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.set_inheritable(life, False)  # open in this process and its kernel, for the study to see
    os.environ.clear()
    os.environ.update(order["environ"] | changed | {"STUDY_PARENT_PID": str(order["parent"])})
    if order["cwd"] is not None:
        os.chdir(order["cwd"])
    words: list[str] = order["words"]
    with_notebook = words[0] in WITH_NOTEBOOK
    orders = fork_kernel() if with_notebook else None
    begin_randomly()
    if orders is not None or not with_notebook:
        load_deferred("bitsandbytes")  # here it will be computed, and measured
        if words[0] == "serve":
            load_deferred("scipy.stats")
        hold_file_pages(pages)
    if orders is None:
        return words
    become_kernel(orders)
    return None


def begin_randomly() -> None:
    """New seeds from the system, as each new process has them; Python's own does it by itself."""
    import numpy as np
    import torch

    np.random.seed()
    torch.default_generator.seed()
