"""The record of a serving run: serve.json, written last and sealed like a run's record.

It lies in results/PROFILE/serve/SERVE_ID beside the executed notebook. Reading it needs no torch.

Not covered: what is in the measures (studylib.schema.serving).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from studylib.core.measure import StageMeasure
from studylib.core.sealed import read_sealed, write_sealed
from studylib.schema.profile import Frozen
from studylib.schema.records import Environment, Scalar
from studylib.schema.serving import ServeMeasures, ServeSpec

SERVE_RECORD = "serve.json"
SERVE_SCHEMA_VERSION = 1
Status = Literal["complete", "out of memory", "not a number"]


class ServeRecord(Frozen):
    """One serving run, whole. `fingerprint` is flat, as a run's."""

    schema_version: int = SERVE_SCHEMA_VERSION
    serve_id: str
    status: Status
    reason: str | None = None
    spec: ServeSpec
    measures: ServeMeasures
    stages: dict[str, StageMeasure]
    environment: Environment
    fingerprint: dict[str, Scalar]
    digest: str = ""


def write_serve_record(folder: Path, record: ServeRecord) -> Path:
    """Seal and write FOLDER/serve.json. Never over another one."""
    return write_sealed(folder / SERVE_RECORD, record)


def read_serve_record(path: Path) -> ServeRecord:
    """The record in a file, or one message on what is wrong with it."""
    remedy = "Restore it, or move its folder away and serve again."
    return read_sealed(path, ServeRecord, SERVE_SCHEMA_VERSION, "the record", remedy)


def read_serve_records(folder: Path) -> list[ServeRecord]:
    """All serving records below results/PROFILE/serve, by id; none is fine."""
    return [read_serve_record(path) for path in sorted(folder.glob(f"*/{SERVE_RECORD}"))]
