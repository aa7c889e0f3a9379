"""What a run says of itself while it is under way, for whoever watches: one small file.

Not covered: drawing it (studylib.running.progress, studylib.notebook_views).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from studylib.metering.meter import Meter

PROGRESS = "progress.json"
EVERY_SECONDS = 0.5


class Watch:
    """Leaves word in the run's folder, at most twice a second."""

    def __init__(self, folder: Path, steps: int, meter: Meter):
        self.folder, self.steps, self.meter = folder, steps, meter
        self._last = 0.0

    def show(self, doing: str, **figures: Any) -> None:
        """What the run does now; a change of that is never left out."""
        instant = time.monotonic()
        if figures and instant - self._last < EVERY_SECONDS:
            return
        self._last = instant
        content = {"doing": doing, "pid": os.getpid(), **figures}
        temporary = self.folder / ".progress.tmp"
        temporary.write_text(json.dumps(content))
        temporary.replace(self.folder / PROGRESS)

    def show_step(self, row: dict[str, Any]) -> None:
        """One step of a training: its loss, pace and the memory so far."""
        if time.monotonic() - self._last < EVERY_SECONDS:
            return
        measure = self.meter.stages.get("train")
        peak = measure and (measure.nvml_peak_bytes or measure.host_peak_bytes)
        self.show(
            "training",
            step=row["step"],
            steps=self.steps,
            loss=row["loss"],
            tokens_per_second=row["tokens"] / row["step_seconds"],
            peak_bytes=peak,
        )

    def end(self) -> None:
        (self.folder / PROGRESS).unlink(missing_ok=True)
