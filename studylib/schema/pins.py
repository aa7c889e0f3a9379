"""A study's hub sources that name no revision, held to the commits of its first start.

`study reproduce` writes the profile beside its results with hub:ID@COMMIT in place of hub:ID. Every
later command reads the commits from there, so that all runs of the study, resumed ones too, use the
same weights and examples, whatever the hub's branch does. A folder of its own is a new study.

Not covered: asking the hub for the commit (studylib.planning.plan), revisions that a profile names
itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from studylib.core.files import read_mapping
from studylib.schema.profile import Profile
from studylib.schema.spec import Track

RESOLVED = "profile.yaml"
DATA_KEYS = ("source", "test", "validation")
PINNED = re.compile(r"(hub:[^@\s]+)@[0-9a-f]{40}")


def unpinned(profile: Profile) -> list[str]:
    """The profile's hub models and data sets that name no revision, each once; without a split."""
    found = [s for track in profile.tracks for s in (*track.models, *track.data.sources)]
    names = (source.partition("#")[0] for source in found if source.startswith("hub:"))
    return [name for name in dict.fromkeys(names) if "@" not in name]


def read_pins(folder: Path) -> dict[str, str]:
    """hub:ID -> hub:ID@COMMIT of the study whose results are in `folder`; none is fine."""
    path = folder / RESOLVED
    if not path.is_file():
        return {}
    tracks = read_mapping(path, "the study's profile").get("tracks") or []
    return dict(pairs(source for track in tracks for source in sources_in(track)))


def sources_in(track: Any) -> list[str]:
    if not isinstance(track, dict):
        return []
    data = track.get("data")
    named = [data.get(key) for key in DATA_KEYS] if isinstance(data, dict) else []
    return [str(found) for found in (*(track.get("models") or []), *named) if found]


def pairs(sources: Iterable[str]) -> Iterable[tuple[str, str]]:
    for source in sources:
        pinned = source.partition("#")[0]
        if match := PINNED.fullmatch(pinned):
            yield match[1], pinned


def apply_pins(profile: Profile, pins: Mapping[str, str]) -> Profile:
    """The profile with these commits, wherever it names the sources without one."""
    wanted = {source: pins[source] for source in unpinned(profile) if source in pins}
    if not wanted:
        return profile
    tracks = tuple(pin_track(track, wanted) for track in profile.tracks)
    tuned = {pin_key(key, wanted): rate for key, rate in profile.tuned.items()}
    return profile.model_copy(update={"tracks": tracks, "tuned": tuned})


def pin_track(track: Track, pins: Mapping[str, str]) -> Track:
    rates = {pin_key(key, pins): rate for key, rate in track.train.learning_rates.items()}
    data = {key: pin_source(getattr(track.data, key), pins) for key in DATA_KEYS}
    return track.model_copy(
        update={
            "models": tuple(pins.get(model, model) for model in track.models),
            "seeds_of": {pins.get(model, model): s for model, s in track.seeds_of.items()},
            "data": track.data.model_copy(update=data),
            "train": track.train.model_copy(update={"learning_rates": rates}),
        }
    )


def pin_source(source: str | None, pins: Mapping[str, str]) -> str | None:
    """A source of examples, pinned, with the split that it names."""
    if source is None:
        return None
    name, mark, split = source.partition("#")
    return pins.get(name, name) + mark + split


def pin_key(key: str, pins: Mapping[str, str]) -> str:
    """A key of words such as "MODEL METHOD", its model pinned."""
    return " ".join(pins.get(word, word) for word in key.split(" "))
