"""Which learning rates a study still has to search for, and which it cannot.

Not covered: running a sweep (studylib.training.tune), hours (studylib.forecasting.prospects).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studylib.core.errors import StudyError
from studylib.inputs.questions import count_overlap
from studylib.planning.stale import refuse_stale_sweep
from studylib.schema.profile import Profile, RunSpec
from studylib.schema.spec import Track
from studylib.schema.tune_settings import TuneSettings
from studylib.schema.tuning import TuneRecord, read_sweep, sweep_name

Sweep = tuple[RunSpec, tuple[float, ...]]


def sweep_id_of(spec: RunSpec) -> str:
    return sweep_name(spec.model_ref.slug, spec.method.slug, spec.track)


def tune_of(profile: Profile, spec: RunSpec) -> TuneSettings:
    """The settings of a sweep, those of its track."""
    settings = next(track.tune for track in profile.tracks if track.name == spec.track)
    assert settings is not None, "a spec of Profile.sweeps"
    return settings


def sweeps_left(profile: Profile, folder: Path, extend: int | None = None) -> list[Sweep]:
    """The sweeps that lack a rate, or are to be extended beyond an edge.

    folder: results/PROFILE. extend: by so many rates more; None: as many as the profile says, those
    that were added before among them.
    """
    return [
        (spec, rates)
        for spec, rates in profile.sweeps()
        if is_left(spec, rates, folder / "tune", extend, tune_of(profile, spec).extend)
    ]


def is_left(
    spec: RunSpec, rates: Sequence[float], folder: Path, extend: int | None, most: int
) -> bool:
    """Whether a sweep is missing, lacks a rate, or is to be extended beyond its edge.

    folder: results/PROFILE/tune. StudyError: it was made of other examples, questions or weights.
    """
    path = folder / f"{sweep_id_of(spec)}.json"
    if not path.is_file():
        return True
    record = read_sweep(path)
    refuse_stale_sweep(spec, record, path)
    if not set(rates) <= {point.learning_rate for point in record.points}:
        return True
    return rates_beyond(record, rates, extend, most) > 0 and record.at_edge


def rates_beyond(
    record: TuneRecord | None, rates: Sequence[float], extend: int | None, most: int
) -> int:
    """How many rates beyond the edge may still be tried: `extend`, else what is left of `most`."""
    if extend is not None:
        return extend
    points = record.points if record else ()
    return max(0, most - len({p.learning_rate for p in points} - set(rates)))


def sweeps_first(profile: Profile, folder: Path) -> tuple[list[Sweep], list[str]]:
    """(the sweeps that `reproduce` does before its runs, why others are not done, in lines).

    A rate that the profile states needs none; a profile whose tracks do not say before_runs has
    none of them.
    """
    found, lines = [], dict[str, None]()
    wanted = {track.name for track in profile.tracks if track.tune and track.tune.before_runs}
    for spec, rates in sweeps_left(profile, folder) if wanted else []:
        if spec.track not in wanted or spec.learning_rate_source.startswith("profile ("):
            continue
        track = next(track for track in profile.tracks if track.name == spec.track)
        if why := obstacle(spec, track):
            lines[f"learning rates of {spec.model} are not tuned: {why}"] = None
        else:
            found.append((spec, rates))
    return found, [*lines]


def obstacle(spec: RunSpec, track: Track) -> str:
    """Why a sweep cannot be judged or run; empty where it can."""
    if spec.model_ref.kind == "shape":
        return "random weights are asked nothing"
    if spec.gpus > 1:
        return "a sweep trains on one card (state them: train.learning_rates)"
    asked = track.evaluate
    if not asked.measures and asked.questions is not None:
        try:
            count_overlap(asked.questions)
        except StudyError as error:
            return f"{error.value}: {error.rule}"
    return ""
