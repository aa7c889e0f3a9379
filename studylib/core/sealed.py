"""Files that can be trusted: written atomically, sealed by a digest of their own content.

A file that is truncated, of another version or edited after it was written is named, never read.

Not covered: what the files hold (records, serve_records, tuning, forecast_book).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from studylib.core.errors import StudyError
from studylib.core.files import write_atomically

Model = TypeVar("Model", bound=BaseModel)


def canonical(content: Any) -> bytes:
    """The same bytes for the same content: sorted keys, no spaces, no NaN or infinity."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    ).encode()


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 of everything but the digest itself."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def write_sealed(path: Path, model: BaseModel, over: bool = False) -> Path:
    """Write a model with its digest. over: take an earlier file's place; else that is refused."""
    if path.exists() and not over:
        raise StudyError(path, "a record is never overwritten", "Move it away first.")
    content = model.model_dump(mode="json")
    content["digest"] = digest_of(content)
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())
    return path


def read_sealed(path: Path, kind: type[Model], version: int, what: str, remedy: str) -> Model:
    """The model in a file, or one message on what is wrong with it. what: such as "the record"."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError
        digest = digest_of(content)
    except OSError as error:
        rule = f"{what} cannot be read ({error.strerror or error})"
        raise StudyError(path, rule, remedy) from None
    except ValueError:  # also what JSON does not allow in a number or a text, such as NaN
        raise StudyError(path, f"{what} is truncated or not JSON", remedy) from None
    found = content.get("schema_version")
    if found != version:
        raise StudyError(
            path,
            f"{what} has schema version {found}, this code reads {version}",
            f"Read it with the version of the study that wrote it. {remedy}",
        )
    if content.get("digest") != digest:
        raise StudyError(path, f"{what} was changed after it was written", remedy)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise StudyError(path, f"{where}: {fault['msg']}", remedy) from None
