"""Strike a process at one moment of its work: when it opens a file, or says what it does now.

Python's audit hooks see both before they happen, in the process itself and in its forks. The strike
is a signal that no code can soften (SIGKILL, SIGSTOP), or a limit that the system sets.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

# Python imports it at its start, from PYTHONPATH; a fork reads the order that its run was given.
SITECUSTOMIZE = """
import json, os, re, resource, signal, sys, time

def strike(event, args):
    if event not in ("open", "os.rename"):
        return
    order = os.environ.get("STUDY_FAULT")
    if not order:
        return
    order = json.loads(order)
    if "opens" in order:
        if event != "open" or not re.search(order["opens"], str(args[0])):
            return
    elif event != "os.rename" or not str(args[1]).endswith("progress.json"):
        return
    else:
        held = os.open(str(args[0]), os.O_RDONLY)
        said = json.loads(os.read(held, 4096))
        os.close(held)
        if said["doing"] != order["does"]:
            return
    time.sleep(order["after_seconds"])
    try:
        mark = os.open(order["mark"] + ".new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return
    os.write(mark, str(os.getpid()).encode())
    os.close(mark)
    os.rename(order["mark"] + ".new", order["mark"])
    if "room_bytes" in order:
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + order["room_bytes"], -1))
    else:
        os.kill(os.getpid(), order["signal"])

sys.addaudithook(strike)
"""


def plant(folder: Path) -> str:
    """Write what processes import; gives the folder for their PYTHONPATH."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return str(folder)


class Strike:
    """One blow, dealt once. opens: a pattern of a file's path; does: a word of progress.json.

    number: the signal; room_bytes: instead, how much more memory the process may take.
    """

    def __init__(
        self,
        mark: Path,
        number: int = 0,
        opens: str | None = None,
        does: str | None = None,
        room_bytes: int | None = None,
        after_seconds: float = 0.0,
    ) -> None:
        self.mark = mark
        place = {"opens": opens} if opens else {"does": does}
        what = {"room_bytes": room_bytes} if room_bytes is not None else {"signal": int(number)}
        after = {"mark": str(mark), "after_seconds": after_seconds}
        self.environ = {"STUDY_FAULT": json.dumps(place | what | after)}

    @property
    def pid(self) -> int | None:
        """The process that was struck."""
        return int(self.mark.read_text()) if self.mark.is_file() else None

    def stands(self) -> int | None:
        """The process that was stopped, once it stands still."""
        if self.pid is None:
            return None
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return self.pid if stat[0] == "T" else None

    def go_on(self, number: int) -> None:
        os.kill(self.pid, number)
