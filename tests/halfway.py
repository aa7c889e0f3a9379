"""Training that stops itself (SIGSTOP) where it begins to write a certain checkpoint.

A test that waits for a checkpoint and then kills may find the run over, on a busy machine. Here the
run waits for the test. Each run stops once: its second process goes on.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from studylib.schema.records import Record, read_record
from studylib.training.run import open_run

# Python imports it at its start, from PYTHONPATH. The trainer's state is a checkpoint's last file.
SITECUSTOMIZE = """
import os, signal, sys
from pathlib import Path

HERE = ["runs", "work", "checkpoint-{step}", "trainer_state.json"]

def stop_once(event, args):
    if event != "open" or "w" not in (args[1] or ""):
        return
    *place, name = str(args[0]).split("/")[-5:]
    if [*place[:1], *place[2:], name] != HERE:
        return
    mark = Path({marks!r}) / place[1]
    if not mark.exists():
        new = mark.with_name(mark.name + ".new")
        new.write_text(str(os.getpid()))
        new.rename(mark)
        os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(stop_once)
"""


class Halfway:
    """step: the checkpoint that is not written. folder: an empty one, for the marks.

    python_path: for PYTHONPATH of the processes that are to stop.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.python_path = str(folder)
        self.marks = folder / "marks"
        self.marks.mkdir(parents=True)
        text = SITECUSTOMIZE.format(step=step, marks=str(self.marks))
        (folder / "sitecustomize.py").write_text(text)

    def pid(self, run_id: str) -> int | None:
        """The process that stands still in this run."""
        mark = self.marks / run_id
        if not mark.exists():
            return None
        state = Path(f"/proc/{mark.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
        return int(mark.read_text()) if state == "T" else None

    def go_on(self) -> None:
        for mark in self.marks.iterdir():
            os.kill(int(mark.read_text()), signal.SIGCONT)


def run_unbroken(profile: str, run_id: str, results: Path) -> Record:
    """The record of the same run, made here in one piece by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = open_run(profile, run_id, str(results))
        for stage in (run.load, run.train, run.evaluate, run.serve):
            stage()
        return read_record(run.finish())
    finally:
        torch.set_num_threads(threads)
