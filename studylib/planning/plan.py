"""What a study would do: each run, whether it is done, how long it should take, what it costs.

Times come from records of the same run, or of the most alike one, on this or the reference
machine; where there is none the plan says "unknown" and does not guess.

Not covered: starting runs (studylib.running.runner), estimates for cards
(studylib.forecasting.prospects).
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import computed_field

from studylib.core.errors import StudyError
from studylib.core.files import disk_full, explain_write_error
from studylib.inputs.almanac import USUAL_FACTS
from studylib.inputs.extras import check_extras
from studylib.inputs.hub import hub_errors, resolve_dataset
from studylib.inputs.origins import take_data
from studylib.inputs.parts import HELD_OUT, read_part, tell_parts
from studylib.inputs.questions import check_questions
from studylib.inputs.rungs import known_facts
from studylib.inputs.sources import ask_model, model_folder, resolve_model
from studylib.planning.answers import check_measures
from studylib.planning.stale import REMEDY, refuse_stale
from studylib.schema.differences import find_changes
from studylib.schema.kept import kept_folder, why_not_kept
from studylib.schema.pins import apply_pins, unpinned
from studylib.schema.profile import (
    EvaluateSettings,
    Frozen,
    ModelRef,
    Profile,
    RunSpec,
)
from studylib.schema.records import RECORD, Record, read_records
from studylib.schema.settings import DataSettings
from studylib.schema.spec import Track

SMALLEST_ROOM_BYTES = 16_000_000
State = Literal["done", "to resume", "to do"]


class PlannedRun(Frozen):
    """One run of a plan. seconds and usd are None where nothing alike was ever measured."""

    run_id: str
    state: State
    seconds: float | None
    seconds_source: str
    usd: float | None


class Plan(Frozen):
    """All runs of a profile in their order; left_* leaves out what is done."""

    profile: str
    results: str
    jobs: int
    runs: tuple[PlannedRun, ...]

    @property
    def left(self) -> list[PlannedRun]:
        return [run for run in self.runs if run.state != "done"]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def left_seconds(self) -> float | None:
        """Wall-clock estimate of what is left, runs side by side as the profile says."""
        known = [run.seconds for run in self.left if run.seconds is not None]
        if len(known) < len(self.left):
            return None
        return sum(known) / self.jobs

    @computed_field  # type: ignore[prop-decorator]
    @property
    def left_usd(self) -> float | None:
        known = [run.usd for run in self.left if run.usd is not None]
        return sum(known) if len(known) == len(self.left) else None


def plan_study(
    profile: Profile, results: Path, reference: Sequence[Record] = (), device: str | None = None
) -> Plan:
    """The plan of a profile whose results go to `results` (the folder results/PROFILE).

    device: take times from records of this device alone; cards differ more than processors.
    Raises StudyError if a record there is damaged or was made with other settings.
    """
    records = {record.run_id: record for record in read_records(results / "runs")}
    own, others = (
        [r for r in found if device is None or r.environment.device == device]
        for found in (records.values(), reference)
    )
    runs = []
    for spec in profile.runs():
        folder = results / "runs" / spec.run_id
        if spec.run_id in records:
            refuse_other_settings(spec, records[spec.run_id], folder)
            refuse_stale(spec, records[spec.run_id], folder)
            state: State = "done"
        else:
            state = "to resume" if (folder / "work" / "session.json").is_file() else "to do"
        seconds, source = expect_seconds(spec, own, others)
        rate = profile.hardware.usd_per_hour
        usd = None if seconds is None or rate is None else seconds / 3600 * rate
        runs.append(
            PlannedRun(
                run_id=spec.run_id, state=state, seconds=seconds, seconds_source=source, usd=usd
            )
        )
    return Plan(
        profile=profile.name, results=str(results), jobs=profile.hardware.jobs, runs=tuple(runs)
    )


def specs_left(profile: Profile, plan: Plan) -> list[RunSpec]:
    """The runs that are not done, in the profile's order."""
    left = {run.run_id for run in plan.left}
    return [spec for spec in profile.runs() if spec.run_id in left]


def refuse_other_settings(spec: RunSpec, record: Record, folder: Path) -> None:
    changes = find_changes(spec, record.run)
    if changes:
        raise StudyError(
            f"{folder / RECORD}",
            f"it was made with other settings than profile {spec.profile} has now "
            f"({'; '.join(changes[:3])})",
            REMEDY,
        )


def tell_unkept(profile: Profile, results: Path) -> str | None:
    """That finished runs kept less than is asked for now: they are not run again by themselves."""
    records = {record.run_id: record for record in read_records(results / "runs")}
    less = [
        spec.run_id
        for spec in profile.runs()
        if spec.run_id in records
        and records[spec.run_id].complete
        and spec.method.kind.trains
        and why_not_kept(spec.keep, spec.model_ref, spec.method) is None
        and not (results / "runs" / spec.run_id / kept_folder(spec.method)).is_dir()
    ]
    if not less:
        return None
    return (
        f"{len(less)} finished runs have no weights that KEEP={profile.keep} asks for, {less[0]} "
        "for one: move their folders away to run them again"
    )


def record_seconds(record: Record) -> float:
    blocks = (record.load, record.train, record.evaluate, record.serve)
    return sum(block.measure.wall_seconds for block in blocks if block is not None)


def expect_seconds(
    spec: RunSpec, own: Sequence[Record], reference: Sequence[Record]
) -> tuple[float | None, str]:
    """(seconds, where that comes from): the same run, else its like with another seed; from the
    results here before the reference's."""
    for records, whose in ((own, ""), (reference, ", in the reference")):
        alike = [r for r in records if r.complete and not find_changes(spec, as_seed(r, spec))]
        same = [r for r in alike if r.run_id == spec.run_id]
        if alike:
            what = "this run's record" if same else "records of other seeds"
            return statistics.median(record_seconds(r) for r in same or alike), what + whose
    return None, "unknown: nothing alike was measured yet"


def as_seed(record: Record, spec: RunSpec) -> RunSpec:
    return record.run.model_copy(update={"seed": spec.seed})


def check_inputs(profile: Profile, fetch: bool = True) -> list[str]:
    """Read what the runs will read, so that a fault shows now and not after an hour.

    fetch: bring in a hub's models now, once for all runs; else only ask whether they are there.
    Returns lines on each data set that is not the almanac's: what it was recognised as, how many
    examples, rows left out, and its first example; and first what was brought in for it.
    """
    told = dict.fromkeys(take_data(profile))
    for track in profile.tracks:
        if not track.data.source.startswith("almanac:") or len(track.data.sources) > 1:
            told |= dict.fromkeys(tell_parts(track.data))
        else:
            read_part(track.data, "train")
        told |= dict.fromkeys(check_held_out(track))
        for source in (track.evaluate.questions, track.evaluate.retention):
            if source is not None:
                check_questions(source, track.evaluate.shots)
        for model in track.models:
            check_model_source(ModelRef.parse(model), fetch)
            check_known(ModelRef.parse(model), track.evaluate)
    for spec in profile.runs():
        check_extras(spec)
    return list(told)


def check_held_out(track: Track) -> list[str]:
    """Raise where a track's measures have no examples that they could be taken on: its test part,
    that which chooses its rates, or the source that tells what is kept. Returns lines to be said.
    """
    asked = track.evaluate
    if not asked.measures:
        return []
    told = check_measures(asked.measures, track.data, track.name)
    for part in HELD_OUT if track.tune is not None else HELD_OUT[:1]:
        read_part(track.data, part)
    if asked.retention_data is not None:
        read_part(DataSettings(source=asked.retention_data), "train")
    from studylib.planning.sizing import tell_sizing  # scipy, for what few studies ask

    return [*told, *tell_sizing(track)]


def pin_sources(profile: Profile) -> Profile:
    """The profile with the commit of every hub source that names no revision, as it is now."""
    pins = {}
    for source in unpinned(profile):
        ref = ModelRef.parse(source)
        models = {model for track in profile.tracks for model in track.models}
        commit = resolve_model(ref) if source in models else resolve_data(source)
        if commit:
            pins[source] = f"{source}@{commit}"
    return apply_pins(profile, pins)


def resolve_data(source: str) -> str | None:
    with hub_errors(source, "give DATA as a file"):
        return resolve_dataset(source.removeprefix("hub:"), None)


def check_model_source(ref: ModelRef, fetch: bool) -> None:
    if ref.kind == "shape":
        from studylib.planning.catalog import find_shape

        find_shape(ref.name)
    elif ref.kind == "hub" and not fetch:
        ask_model(ref)
    else:
        model_folder(ref)


def brings_models(profile: Profile) -> bool:
    """Whether a profile names models with files to look into, which takes torch."""
    refs = [ModelRef.parse(model) for track in profile.tracks for model in track.models]
    return any(ref.kind not in ("shape", "ladder") for ref in refs)


def check_known(ref: ModelRef, asked: EvaluateSettings) -> None:
    """Raise where a ladder's model is asked for OLD facts that it never read."""
    sources = (asked.questions, asked.retention)
    if ref.kind != "ladder" or not {"almanac:old", "almanac:shifted"} & set(sources):
        return
    known = known_facts(ref.name)
    if (asked.facts or USUAL_FACTS) > known:
        raise StudyError(
            f"evaluate.facts = {asked.facts or USUAL_FACTS}",
            f"{ref} knows the first {known:,} facts of the OLD half",
            "Ask for no more of them, or use a larger rung.",
        )


def check_writable(folder: Path) -> None:
    """Make the folder and try a file in it, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".try-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise explain_write_error(folder, error) from None
    check_room(folder)


def check_room(folder: Path) -> None:
    """Raise where the disk has not even the room that the smallest run's checkpoints take."""
    if shutil.disk_usage(folder).free < SMALLEST_ROOM_BYTES:
        raise disk_full(folder)
