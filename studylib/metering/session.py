"""What a run has done so far, kept beside it so that a killed run loses nothing it finished.

The folder `work` in the run's own holds Trainer's checkpoints, the trained weights, session.json
(measures and per-step figures) and the samples of each process. It goes when the record is written.

Not covered: the stages themselves (studylib.training.run).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from studylib.core.errors import StudyError
from studylib.core.measure import StageMeasure
from studylib.schema.records import write_atomically


class Session:
    """State that outlives a process. `number` counts the processes that worked on the run."""

    def __init__(self, folder: Path, meter: Any):
        self.folder, self.meter = folder, meter
        self.path = folder / "session.json"
        folder.mkdir(parents=True, exist_ok=True)
        earlier = read_session(self.path)
        self.number: int = earlier.get("number", 0) + 1
        self.started_at: str | None = earlier.get("started_at")
        self.steps: list[dict[str, Any]] = earlier.get("steps", [])
        self.resumed_at_steps: list[int] = earlier.get("resumed_at_steps", [])
        self.notes: dict[str, Any] = earlier.get("notes", {})
        self._earlier = {
            name: StageMeasure.model_validate(m) for name, m in earlier.get("stages", {}).items()
        }

    def stages(self) -> dict[str, StageMeasure]:
        """Each stage's measure over all processes so far."""
        now = self.meter.stages
        merged = {name: m for name, m in self._earlier.items() if name not in now}
        for name, measure in now.items():
            earlier = self._earlier.get(name)
            merged[name] = earlier.merge(measure) if earlier else measure
        return merged

    def save(self) -> None:
        """Keep everything up to this instant; called at each checkpoint and at each stage's end."""
        content = {
            "number": self.number,
            "started_at": self.started_at,
            "steps": self.steps,
            "resumed_at_steps": self.resumed_at_steps,
            "notes": self.notes,
            "stages": {name: m.model_dump(mode="json") for name, m in self.stages().items()},
        }
        samples = self.meter.samples().to_parquet()
        write_atomically(self.folder / f"samples-{self.number}.parquet", samples)
        write_atomically(self.path, json.dumps(content, allow_nan=False).encode())

    def samples(self) -> pd.DataFrame:
        """The meter's samples of all processes, numbered by `session`."""
        frames = []
        for number in range(1, self.number):
            path = self.folder / f"samples-{number}.parquet"
            if path.is_file():
                frames.append(pd.read_parquet(path).assign(session=number))
        frames.append(self.meter.samples().assign(session=self.number))
        return pd.concat(frames, ignore_index=True)


def read_session(path: Path) -> dict[str, Any]:
    """What earlier processes left of a run; empty where there were none. StudyError where it is not
    as it was written: the run's figures would be made of something else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError
    except (OSError, ValueError):
        raise StudyError(
            path,
            "what the run has done so far cannot be read",
            f"Remove {path.parent} and start again: this run begins anew.",
        ) from None
    return content
