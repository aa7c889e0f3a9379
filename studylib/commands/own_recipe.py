"""How the profile `custom` trains on the machine at hand, where the reader does not say it.

On a card: by the usual recipe (studylib.forecasting.usual_recipe), the same for all methods; a
study that has begun keeps its own. Without a card it is the profile's, in fp32.

Not covered: the recipe of shipped profiles, which state theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studylib.core.files import read_mapping
from studylib.schema.pins import RESOLVED
from studylib.schema.profile import Profile

if TYPE_CHECKING:
    from studylib.forecasting.job_forecast import Machine

ROWS = {"seq_len", "micro_batch", "accumulation"}  # one stated: the reader has thought of rows


def suit_machine(
    profile: Profile,
    stated: Mapping[str, Any],
    results: Path,
    find_machine: Callable[[], Machine | None],
) -> Profile:
    """The profile with the recipe that suits the machine. stated: what the reader says of `train`.

    results: the folder of results folders. find_machine: the one that runs it; None without a card.
    """
    from studylib.forecasting.usual_recipe import KEYS, usual_recipe

    kept = read_recipe(results / profile.name)
    free = [key for key in KEYS if key not in stated and not (key in ROWS and ROWS & set(stated))]
    if kept is not None:
        return with_recipe(profile, {key: kept[key] for key in free if key in kept})
    if find_machine() is None:
        return profile
    found = [usual_recipe(model) for track in profile.tracks for model in track.models]
    shortest = min(found, key=lambda recipe: recipe["seq_len"])
    return with_recipe(profile, {key: shortest[key] for key in free})


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe of a study that has begun, of its first track; None where there is none yet."""
    path = folder / RESOLVED
    tracks = read_mapping(path, "the study's profile").get("tracks") if path.is_file() else None
    return tracks[0].get("train") if tracks else None


def with_recipe(profile: Profile, recipe: Mapping[str, Any]) -> Profile:
    tracks = tuple(
        track.model_copy(update={"train": track.train.model_copy(update=dict(recipe))})
        for track in profile.tracks
    )
    return profile.model_copy(update={"tracks": tracks})
