"""The desk on the driver's machine through which workers elsewhere read and deliver files.

A worker asks it for what its run needs, leaves the run's progress, log and whole checkpoints with
it, and delivers the finished folder; nothing needs a shared disk. What arrives lies in the run's
own folder here as if the run were local, so a retried run, or a later study on this machine, goes
on from it. Each attempt at a run has a number, and only the newest is listened to: a machine that
was given up for lost and lives on delivers nothing. A result is put in place once, its record last.

Not covered: what workers do (studylib.running.ray_worker), who is sent where
(studylib.running.ray_executor).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.files import lock_folder

INCOMING = ".incoming"  # what is still arriving; never read as a run's state
MARKERS = ("trainer_state.json", "whole")  # the last file of a checkpoint, of trained weights
OWN = ("lock", INCOMING)  # in a work folder, but not a run's state


@dataclass
class Entry:
    """One run: its folder here, the name of its result file, and how it stands."""

    folder: Path
    result: str
    files: dict[str, Path]
    place: str
    attempt: int = 1
    machine: str | None = None
    sharing: int = 1
    progress: dict[str, Any] = field(default_factory=dict)
    got_on: bool = False
    lock: Any = None

    @property
    def work(self) -> Path:
        return self.folder / "work"


class Desk:
    """All runs of a study that are under way on other machines. One call at a time."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def expect(
        self, task_id: str, folder: str, result: str, place: str, files: Mapping[str, str]
    ) -> str | None:
        """Open a run; the reason, where another process on this machine is working on it.

        place: the run's folder as workers name it. files: worker's name -> path here, all that
        the run reads.
        """
        entry = Entry(Path(folder), result, {n: Path(p) for n, p in files.items()}, place)
        try:
            entry.lock = lock_folder(entry.work)
        except StudyError as error:
            return str(error)
        shutil.rmtree(entry.work / INCOMING, ignore_errors=True)
        (entry.folder / "log.txt").touch()
        self.entries[task_id] = entry
        return None

    def begin(self, task_id: str, attempt: int, machine: str) -> list[tuple[str, int]] | None:
        """A worker starts: the files that it must fetch, with their sizes in bytes.

        None, here and below: the attempt was given up, the worker must stop.
        """
        entry = self._current(task_id, attempt)
        if entry is None:
            return None
        entry.machine = machine
        together = [e for e in self.entries.values() if e.machine == machine]
        for other in together:
            other.sharing = max(other.sharing, len(together))
        for path in state_files(entry.work):
            name = path.relative_to(entry.folder).as_posix()
            entry.files[f"{entry.place}/{name}"] = path
        present = {name: path for name, path in entry.files.items() if path.is_file()}
        return [(name, path.stat().st_size) for name, path in present.items()]

    def read(self, task_id: str, name: str, offset: int, size: int) -> bytes:
        """A part of one of the files that `begin` named."""
        with self.entries[task_id].files[name].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def report(
        self, task_id: str, attempt: int, progress: dict[str, Any], log: bytes
    ) -> int | None:
        """Take a run's last word and new log; return the most runs that shared its machine."""
        entry = self._current(task_id, attempt)
        if entry is None:
            return None
        entry.progress = progress
        self.note(task_id, log)
        return entry.sharing

    def note(self, task_id: str, text: bytes) -> None:
        if text:
            with (self.entries[task_id].folder / "log.txt").open("ab") as log:
                log.write(text)

    def room(self, task_id: str) -> int:
        """Bytes free on the disk that holds the results."""
        return shutil.disk_usage(self.entries[task_id].folder).free

    def write(self, task_id: str, attempt: int, name: str, offset: int, part: bytes) -> bool:
        """Take the next part of a file; offset 0 begins it anew. False: the worker must stop."""
        entry = self._current(task_id, attempt)
        if entry is None:
            return False
        path = inside(entry.work / INCOMING, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if offset == 0 else "r+b") as file:
            file.seek(offset)
            file.write(part)
        return True

    def keep(self, task_id: str, attempt: int, names: Iterable[str]) -> bool:
        """Make what has arrived the run's state; `names` (below work/) is all that belongs to it.

        A checkpoint's marker comes after its other files, and session.json, which says how far
        the run is, last of all: whenever this is cut off, what lies here can be resumed.
        """
        entry = self._current(task_id, attempt)
        if entry is None:
            return False
        wanted = set(names)
        for name in sorted(wanted, key=arrival):
            arrived = inside(entry.work / INCOMING, f"work/{name}")
            if arrived.is_file():
                target = inside(entry.work, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                arrived.replace(target)
        lying = {p.relative_to(entry.work).as_posix(): p for p in state_files(entry.work)}
        left = [path for name, path in lying.items() if name not in wanted]
        for path in sorted(left, key=lambda p: p.name not in MARKERS):
            path.unlink()
        shutil.rmtree(entry.work / INCOMING, ignore_errors=True)  # what was broken off before
        remove_empty_folders(entry.work)
        entry.got_on = True
        return True

    def deliver(self, task_id: str, attempt: int, names: Iterable[str]) -> bool:
        """Put a run's files in place, its result last; with a result the run is over."""
        entry = self._current(task_id, attempt)
        if entry is None or (entry.folder / entry.result).exists():
            return False
        wanted = sorted(names, key=lambda name: name == entry.result)
        for name in wanted:
            arrived, target = inside(entry.work / INCOMING, name), inside(entry.folder, name)
            with arrived.open("rb") as file:
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            arrived.replace(target)
        if entry.result in wanted:
            shutil.rmtree(entry.work)
        return True

    def leave(self, task_id: str) -> tuple[int, bool]:
        """A worker has ended or is lost: whatever this attempt still sends is refused.

        Returns the number of the next attempt, and whether this one brought the run on.
        """
        entry = self.entries[task_id]
        got_on = entry.got_on
        entry.machine, entry.progress, entry.got_on = None, {}, False
        entry.attempt += 1
        shutil.rmtree(entry.work / INCOMING, ignore_errors=True)
        return entry.attempt, got_on

    def close(self, task_id: str) -> None:
        """The run is over for this study: let others work on it."""
        entry = self.entries.pop(task_id)
        entry.lock.close()

    def look(self) -> dict[str, dict[str, Any]]:
        """What each run that has a machine last said."""
        return {name: e.progress for name, e in self.entries.items() if e.machine is not None}

    def _current(self, task_id: str, attempt: int) -> Entry | None:
        entry = self.entries.get(task_id)
        return entry if entry is not None and entry.attempt == attempt else None


def state_files(work: Path) -> list[Path]:
    """The files of a run's state: checkpoints, trained weights, session and samples."""
    found = (path for path in sorted(work.rglob("*")) if path.is_file())
    return [path for path in found if path.relative_to(work).parts[0] not in OWN]


def remove_empty_folders(work: Path) -> None:
    for path in sorted(work.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def arrival(name: str) -> int:
    """The order in which files of a state are put in place."""
    if name == "session.json":
        return 2
    return int(name.rsplit("/", 1)[-1] in MARKERS)


def inside(folder: Path, name: str) -> Path:
    """FOLDER/NAME, where the name stays inside the folder."""
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        raise ValueError(f"{name} leads out of {folder}")
    return path
