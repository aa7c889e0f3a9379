"""The record of a serving run: serve.json, written last and sealed like a run's record.

It lies in results/PROFILE/serve/SERVE_ID beside the executed notebook. Reading it needs no torch.

Not covered: what is in the measures (studylib.serving).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from studylib.errors import StudyError
from studylib.measure import StageMeasure
from studylib.profile import Frozen
from studylib.records import Environment, Scalar, digest_of, write_atomically
from studylib.serving import ServeMeasures, ServeSpec

SERVE_RECORD = "serve.json"
SERVE_SCHEMA_VERSION = 1


class ServeRecord(Frozen):
    """One serving run, whole. `fingerprint` is flat, as a run's."""

    schema_version: int = SERVE_SCHEMA_VERSION
    serve_id: str
    status: Literal["complete", "out of memory"]
    reason: str | None = None
    spec: ServeSpec
    measures: ServeMeasures
    stages: dict[str, StageMeasure]
    environment: Environment
    fingerprint: dict[str, Scalar]
    digest: str = ""


def write_serve_record(folder: Path, record: ServeRecord) -> Path:
    """Seal and write FOLDER/serve.json. Never over another one."""
    path = folder / SERVE_RECORD
    if path.exists():
        raise StudyError(path, "a record is never overwritten", "Move it away first.")
    content = record.model_dump(mode="json")
    content["digest"] = digest_of(content)
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())
    return path


def read_serve_record(path: Path) -> ServeRecord:
    """The record in a file, or one message on what is wrong with it."""
    remedy = "Restore it, or move its folder away and serve again."
    try:
        content: Any = json.loads(path.read_bytes())
        digest = digest_of(content)
    except OSError as error:
        raise StudyError(path, f"it cannot be read ({error.strerror})", remedy) from None
    except (ValueError, AttributeError):
        raise StudyError(path, "the record is truncated or not JSON", remedy) from None
    if content.get("schema_version") != SERVE_SCHEMA_VERSION:
        rule = f"this code reads schema version {SERVE_SCHEMA_VERSION}"
        raise StudyError(path, rule, remedy)
    if content.get("digest") != digest:
        raise StudyError(path, "the record was changed after it was written", remedy)
    try:
        return ServeRecord.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise StudyError(path, f"{where}: {fault['msg']}", remedy) from None


def read_serve_records(folder: Path) -> list[ServeRecord]:
    """All serving records below results/PROFILE/serve, by id; none is fine."""
    return [read_serve_record(path) for path in sorted(folder.glob(f"*/{SERVE_RECORD}"))]
