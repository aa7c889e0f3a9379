"""Whether what a record was made from is still what lies under the same name.

A file of examples or questions that was edited, or weights that were replaced, are another study
under the same name: "all done" would show figures of what is gone.

Weights are hashed anew only where a file's size, its times or its place on the disk have changed
since they were last hashed; the time of a change to a file's entry, which copying tools cannot set
back, is among them. Small files are always read.

Not covered: a hub's models and data, which a study pins to a commit when it starts; questions that
lm-eval brings; a profile's settings and learning rates (studylib.planning.plan); prices,
which are no part of a record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from studylib.core.errors import StudyError
from studylib.core.files import file_sha256, write_atomically
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.data import hash_examples
from studylib.inputs.parts import read_part
from studylib.inputs.questions import hash_questions
from studylib.inputs.sources import folder_sha256, model_folder
from studylib.schema.profile import Profile
from studylib.schema.records import RECORD, Record, Scalar
from studylib.schema.serve_records import SERVE_RECORD, ServeRecord, read_serve_record
from studylib.schema.serving import serve_specs
from studylib.schema.settings import DataSettings, EvaluateSettings, ModelRef
from studylib.schema.spec import RunSpec
from studylib.schema.tuning import TuneRecord

HASHES = ".hashes.json"
SMALL_BYTES = 64_000_000
REMEDY = "Move the folder away, or choose another one: --results FOLDER (RESULTS= with make)."


def refuse_stale(spec: RunSpec, record: Record, folder: Path) -> None:
    """Raise where a run's examples, questions or weights are other ones than its record's.

    folder: the run's, results/PROFILE/runs/RUN_ID. Records that lack a hash are not compared.
    """
    place = folder / RECORD
    refuse_other_inputs(spec.data, spec.evaluate, record.fingerprint, place)
    if record.load is not None:
        refuse_other_weights(spec.model_ref, record.load.model_sha256, place, folder.parents[1])


def refuse_stale_sweep(spec: RunSpec, record: TuneRecord, place: Path) -> None:
    """The same for a search of learning rates, in results/PROFILE/tune: rates that other weights,
    examples or questions chose are no rates of these."""
    refuse_other_inputs(spec.data, spec.evaluate.for_validation(), record.fingerprint, place)
    recorded = record.fingerprint.get("model.sha256")
    refuse_other_weights(spec.model_ref, recorded, place, place.parents[1])


def refuse_other_inputs(
    data: DataSettings, asked: EvaluateSettings, marks: Mapping[str, Scalar], place: Path
) -> None:
    recorded = marks.get("data.sha256")
    if recorded and lies_here(data) and hash_data_file(data) != recorded:
        refuse(place, f"examples than {' and '.join(data.sources)} give now")
    for key, source in question_sources(asked):
        recorded = marks.get(key)
        if recorded and hash_question_folder(source, asked) != recorded:
            refuse(place, f"questions than {source} has now")


def refuse_stale_serves(profile: Profile, results: Path) -> None:
    """The same for the serving records of results/PROFILE: their settings and weights."""
    for spec in serve_specs(profile) if profile.serve else ():
        place = results / "serve" / spec.serve_id / SERVE_RECORD
        if not place.is_file():
            continue
        record: ServeRecord = read_serve_record(place)
        asked = (spec.model, spec.method, spec.dtype, spec.settings)
        made = record.spec
        if asked != (made.model, made.method, made.dtype, made.settings):
            refuse(place, f"settings than profile {profile.name} has now")
        recorded = record.fingerprint.get("model.sha256")
        refuse_other_weights(spec.model_ref, recorded, place, results)


def refuse_other_weights(ref: ModelRef, recorded: object, place: Path, results: Path) -> None:
    folder = checkpoint_folder(ref)
    if not recorded or folder is None:
        return
    with HashBook(results / HASHES) as book:
        if folder_sha256(folder, book.sha256) != recorded:
            refuse(place, f"weights, tokenizer.json or config.json than {ref} has now")


def refuse(place: Path, what: str) -> None:
    raise StudyError(place, f"it was made with other {what}", REMEDY)


def checkpoint_folder(ref: ModelRef) -> Path | None:
    """The folder behind path:, gguf: and ladder:; None for others and where it is gone."""
    if ref.kind == "ladder":
        return ladder_folder(ref.name)
    place = Path(ref.name).expanduser()
    if ref.kind == "gguf" and place.is_file():
        return model_folder(ref)[0]
    return place if ref.kind == "path" and place.is_dir() else None


def question_sources(asked: EvaluateSettings) -> list[tuple[str, str]]:
    """(fingerprint's field, folder) of the questions that lie in folders here."""
    named = (("questions", asked.questions), ("retention", asked.retention))
    return [
        (f"evaluate.{what}_sha256", source)
        for what, source in named
        if source is not None and Path(source).expanduser().is_dir()
    ]


def lies_here(data: DataSettings) -> bool:
    """Whether the examples are a file's or a folder's, and no source of them is a hub's."""
    here = [Path(source).expanduser().exists() for source in data.sources]
    return all(here)


@lru_cache(maxsize=8)
def hash_data_file(data: DataSettings) -> str:
    return hash_examples(read_part(data, "train"))


@lru_cache(maxsize=8)
def hash_question_folder(source: str, asked: EvaluateSettings) -> str:
    """One hash of the questions of a folder that a run with these settings reads."""
    return hash_questions(Path(source).expanduser(), asked.shots, asked.part)


class HashBook:
    """Hashes of large files, kept from one plan to the next in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list] = {}
        self.new = False

    def __enter__(self) -> HashBook:
        with suppress(OSError, ValueError):
            self.known = dict(json.loads(self.path.read_text(encoding="utf-8")))
        return self

    def __exit__(self, *_: object) -> None:
        if self.new:
            with suppress(StudyError):  # a folder that is only read has no book
                write_atomically(self.path, json.dumps(self.known, indent=1).encode())

    def sha256(self, path: Path, read: Callable[[Path], str] = file_sha256) -> str:
        stat = path.stat()
        if stat.st_size <= SMALL_BYTES:
            return read(path)
        marks = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
        name = str(path.resolve())
        entry = self.known.get(name)
        if entry is None or entry[:-1] != marks:
            entry = [*marks, read(path)]
            self.known[name] = entry
            self.new = True
        return str(entry[-1])
