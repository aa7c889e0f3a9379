"""How many runs shared a machine, where only those that sent them there can tell.

A run is told at its start how many others the profile puts beside it. On machines that fill and
empty as runs come and go, whoever sends the runs leaves word in the run's work folder instead.

Not covered: counting (studylib.running.ray_desk).
"""

from __future__ import annotations

from pathlib import Path

NAME = "concurrent_runs"


def leave_word(work: Path, runs: int) -> None:
    """Note that so many runs, this one included, have shared the machine at once."""
    if most_concurrent(work, 0) >= runs:
        return
    temporary = work / f".{NAME}.tmp"
    temporary.write_text(str(runs))
    temporary.replace(work / NAME)


def most_concurrent(work: Path, told: int) -> int:
    """The larger of what the run was told at its start and what was noted since."""
    path = work / NAME
    return max(told, int(path.read_text())) if path.is_file() else told
