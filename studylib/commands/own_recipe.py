"""How the profile `custom` trains on the machine at hand, where the reader does not say it.

On a card: bf16 with fp32 weights for what is trained whole, the loss in slices of tokens, TF32, and
checkpointing where more methods fit with it, by forecast. The recipe is the same for all methods,
and a study that has begun keeps its own. Without a card it is the profile's, in fp32.

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

ON_CARD: dict[str, Any] = {
    "dtype": "bf16",
    "master_weights": True,
    "loss": "chunked",
    "tf32": True,
}
KEYS = (*ON_CARD, "checkpointing")


def suit_machine(
    profile: Profile,
    stated: Mapping[str, Any],
    results: Path,
    find_machine: Callable[[], Machine | None],
) -> Profile:
    """The profile with the recipe that suits the machine. stated: what the reader says of `train`.

    results: the folder of results folders. find_machine: the one that runs it; None without a card.
    """
    kept = read_recipe(results / profile.name)
    free = [key for key in KEYS if key not in stated]
    if kept is not None:
        return with_recipe(profile, {key: kept[key] for key in free if key in kept})
    machine = find_machine()
    if machine is None:
        return profile
    made = with_recipe(profile, {key: ON_CARD[key] for key in free if key in ON_CARD})
    if "checkpointing" not in free or made.hardware.gpus < 1:
        return made
    saving = with_recipe(made, {"checkpointing": True})
    plain, lean = (count_fitting(one, machine) for one in (made, saving))
    return saving if lean > plain else made


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


def count_fitting(profile: Profile, machine: Machine) -> int:
    """How many of the runs fit by forecast; one that cannot be traced counts as one that does."""
    from studylib.forecasting.prospects import foresee

    runs = profile.runs()
    found = foresee(runs, machine, bundled=True, say=lambda line: None)
    return len(runs) - sum(not prospect.fits for prospect in found.values())
