"""All that is looked into before a study starts, and kept while neither profile nor files change.

Reading tens of thousands of examples and spelling them for a model takes seconds; a plan is asked
again with another card, and before a run.

Not covered: the checks (studylib.planning.plan, studylib.modelling.preflight).
"""

from __future__ import annotations

from pathlib import Path

from studylib.commands.said_before import mark_places
from studylib.forecasting.kept_forecasts import keep_forecast
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.converted import converted_folder
from studylib.inputs.extras import check_extras
from studylib.inputs.origins import take_data
from studylib.schema.frozen import Frozen
from studylib.schema.profile import Profile
from studylib.schema.settings import ModelRef


class Told(Frozen):
    """What the checks found to say."""

    lines: tuple[str, ...]


def check_all(profile: Profile) -> list[str]:
    """Read what the runs will read, and look into the models that are on this machine.

    Returns a line for each set of examples: how many, and what was left out.
    """
    for spec in profile.runs():  # of packages and cards, which no file shows
        check_extras(spec)
    brought = take_data(profile)
    places = source_places(profile)
    marks = None if places is None else mark_places(str(place.resolve()) for place in places)
    question = {"config": marks, "profile": profile.model_dump(mode="json")}
    kept = keep_forecast(question, Told, lambda: Told(lines=tuple(check_anew(profile))))
    return [*brought, *kept.lines]


def check_anew(profile: Profile) -> list[str]:
    from studylib.planning.plan import brings_models, check_inputs

    told = check_inputs(profile, fetch=False)
    if brings_models(profile):
        from studylib.modelling.preflight import check_models

        told += check_models(profile)
    return told


def source_places(profile: Profile) -> list[Path] | None:
    """Files and folders of its data and models; None where not all are here: a hub is asked again
    each time."""
    places: dict[Path, None] = {}
    for track in profile.tracks:
        for source in (*track.data.sources, *track.evaluate.sources):
            if source == "hub" or source.startswith(("hub:", "tasks:")):
                return None
            if not source.startswith("almanac:"):
                places[Path(source).expanduser()] = None
        for ref in map(ModelRef.parse, track.models):
            if ref.kind in ("gguf", "pypi"):
                places[converted_folder(ref)] = None
            elif ref.kind == "hub":
                return None
            elif ref.kind == "path":
                places[Path(ref.name).expanduser()] = None
            elif ref.kind == "ladder":
                places[ladder_folder(ref.name)] = None
    return list(places) if all(place.exists() for place in places) else None
