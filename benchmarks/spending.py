"""What a process takes from its start to its end, with all that it waited for.

Not covered: processes that outlive it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from studylib.core.errors import StudyError
from studylib.core.places import python_path

ROOT = Path(__file__).parents[1]


class Spent(NamedTuple):
    """Seconds on processors, seconds by the clock, largest memory of one process in bytes."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


def spend(words: list[str], anew: bool = False) -> Spent:
    """Run Python with these words on one thread. StudyError with its last line where it fails.

    anew: with nothing kept of what was forecast or read before.
    """
    environ = {**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1",
               "OMP_NUM_THREADS": "1"}  # fmt: skip
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryDirectory() as empty:
        environ |= {"STUDY_CACHE": empty} if anew else {}
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environ, stdout=said, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = said.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise StudyError(" ".join(words)[:80], f"failed: {last[0]}", "Run it by itself.")
    return Spent(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024)
