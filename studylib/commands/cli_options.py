"""The options that commands share, the profile that they name, and how `custom` trains here.

Where the reader does not say it, `custom` trains on a card by the usual recipe
(studylib.forecasting.usual_recipe), the same for all methods; a study that has begun keeps its own.
Without a card it is the profile's, in fp32.

Not covered: the commands (studylib.commands.cli and its neighbours), the recipe of shipped
profiles, which state theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studylib.core.errors import StudyError
from studylib.core.files import read_mapping
from studylib.schema.method_names import name_methods

if TYPE_CHECKING:
    from studylib.forecasting.job_forecast import Machine
    from studylib.schema.profile import Profile

FOR_GPUS = ("gpu", "systems")
OWN_MODELS = ("hub", "path", "gguf", "pypi")
DEFAULT_RESULTS = Path("results")

ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="A shipped profile's name or a YAML file.")
]
ResultsOption = Annotated[
    Path, typer.Option("--results", help="The folder that holds a folder for each profile.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="hub:ID, path:FOLDER, gguf:FILE, pypi:PACKAGE==VERSION, shape:NAME or ladder:NAME; "
        "several with commas.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A .jsonl, .json, .csv, .tsv or .parquet file (also .gz), a folder of such train, "
        "validation and test files, or hub:ID.",
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", help="Which columns of the data: 'prompt=text answer=category'."),
]
MmluOption = Annotated[
    str | None, typer.Option("--mmlu", help="hub, or a folder with test.jsonl and dev.jsonl.")
]
MethodsOption = Annotated[
    str | None, typer.Option("--methods", help=f"Of {name_methods()} (-r64 sets a rank).")
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="For example 0,1,2.")]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Updates of a training.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Questions a subject.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any key of the profile: train.seq_len=1024 (may be repeated)."),
]
KeepOption = Annotated[
    str | None,
    typer.Option("--keep", help="Trained weights that stay: adapters (the default), all or none."),
]
PricesOption = Annotated[
    Path | None, typer.Option("--prices", help="Your own prices.csv; it overrides the shipped one.")
]
DEFAULT_BUDGET_USD = "10"

BudgetOption = Annotated[
    str, typer.Option("--budget", help="Dollars that may be spent without asking.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask before spending more.")]
KEYS = {  # of a profile, by option
    "model": "models",
    "data": "data.source",
    "columns": "data.columns",
    "mmlu": "evaluate.questions",
    "methods": "methods",
    "seeds": "seeds",
    "steps": "train.steps",
    "limit": "evaluate.limit",
}
ROWS = {"seq_len", "micro_batch", "accumulation"}  # one stated: the reader has thought of rows


def pick_profile(profile: str | None, own: bool = False) -> tuple[str, str]:
    """(the profile's name, why it was chosen); no reason where it was named. own: MODEL or DATA is
    the reader's."""
    if profile:
        return profile, ""
    if own:
        return "custom", "MODEL or DATA is your own"
    from studylib.running.doctor import own_profile

    return own_profile()


def is_own(model: str | None, data: str | None) -> bool:
    """Whether MODEL or DATA is the reader's own: the ladder and published shapes are not."""
    models = split(model) or []
    return bool(data) or any(name.partition(":")[0] in OWN_MODELS for name in models)


def default_profile() -> str:
    """The profile that suits this machine, as `study doctor` says."""
    return pick_profile(None)[0]


def resolve_profile(
    profile: str | None,
    results: Path,
    changes: list[str] | None = None,
    find_machine: Callable[[], Any] | None = None,
    **asked: Any,
) -> Any:
    """The profile that the options name, each option laid over it, with its tuned rates.

    asked: the options that KEYS has. find_machine: what runs it, where that is not this machine;
    `custom` trains as suits it.
    """
    from studylib.running.doctor import cards_here
    from studylib.schema.profile import merge_mappings
    from studylib.schema.tuning import open_profile

    over: dict[str, Any] = {}
    lists = {"model": split, "methods": split, "seeds": split_numbers}
    for option, value in asked.items():
        value = lists[option](value) if option in lists else value
        if value is not None:
            over = merge_mappings(over, nest(KEYS[option], value))
    over = merge_mappings(over, read_changes(changes))
    name = pick_profile(profile, is_own(asked.get("model"), asked.get("data")))[0]
    if name == "custom":
        if missing := [word.upper() for word in ("model", "data") if not asked.get(word)]:
            raise StudyError(
                "PROFILE=custom",
                f"it needs {', '.join(missing)}",
                "make reproduce PROFILE=custom MODEL=path:FOLDER DATA=FILE, and MMLU=hub|FOLDER",
            )
        if not over.get("evaluate", {}).get("questions"):
            over = merge_mappings(own_measures(over["data"]), over)
    on_card = find_machine is not None or cards_here() > 0
    made = open_profile(name, results, over, on_card)
    if name != "custom":
        return made

    return suit_machine(made, over.get("train", {}), results, find_machine or find_own_machine)


def find_own_machine() -> Any:
    """This machine with its card; None without one, which takes no forecast to know."""
    from studylib.running.doctor import cards_here

    if not cards_here():
        return None
    from studylib.forecasting.prospects import this_machine

    return this_machine()


def keep_as(profile: Any, keep: str | None) -> Any:
    """The profile with another choice of the weights that stay: it is the same study."""
    from studylib.schema.kept import check_keep

    return profile if keep is None else profile.model_copy(update={"keep": check_keep(keep)})


def read_changes(changes: list[str] | None) -> dict[str, Any]:
    """What --set says, as a mapping to lay over a profile."""
    from studylib.schema.profile import merge_mappings

    over: dict[str, Any] = {}
    for change in changes or []:
        key, equals, text = change.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise StudyError(change, "--set takes KEY=VALUE", "Write --set train.seq_len=1024.")
        over = merge_mappings(over, nest(key.strip(), parse_value(text, change)))
    return over


HELD_OUT = 200  # examples for each held-out part, where a reader's own data have as many


def own_measures(data: dict[str, Any]) -> dict[str, Any]:
    """What is asked of a reader's own data where no questions are given, and how many examples are
    held out for it, unless options say otherwise: of a small file, as many as may be."""
    from studylib.inputs.examples import read_source
    from studylib.inputs.parts import most_held_out
    from studylib.schema.settings import DataSettings

    count = HELD_OUT
    if not data["source"].startswith("hub:"):  # a hub is not asked before the plan does
        with suppress(StudyError, ValueError):  # a fault in it is told where it is checked
            settings = DataSettings(source=data["source"], columns=data.get("columns"))
            count = min(count, max(1, most_held_out(len(read_source(settings.source, settings)))))
    return {"data": {"held_out": count}, "evaluate": {"measures": ["loss"]}}


def results_name(profile: str | None, results: Path = Path("results")) -> str:
    """The name of a profile's folder of results; a YAML file's profile knows its own.

    Without a name: that of the results of a profile for GPUs, where there are some, so that
    reading them asks no network.
    """
    from studylib.running.doctor import cards_here
    from studylib.schema.profile import is_file_name, read_profile

    if profile is None:
        found = [name for name in FOR_GPUS if (results / name / "runs").is_dir()]
        return found[0] if found and cards_here() else default_profile()
    return read_profile(profile).name if is_file_name(profile) else profile


def split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def split_numbers(text: str | None) -> list[int] | None:
    if not text:
        return None
    try:
        return [int(part) for part in split(text) or []]
    except ValueError:
        raise StudyError(text, "seeds are whole numbers", "Write SEEDS=0,1,2.") from None


def nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def parse_value(text: str, change: str) -> Any:
    """A value as YAML reads it, numbers such as 1e-4 included."""
    import yaml

    from studylib.core.files import parse_yaml

    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise StudyError(change, f"the value is not YAML ({problem})", "Correct it.") from None
    except ValueError as error:
        rule = f"the value cannot be read ({error})"
        raise StudyError(change[:80], rule, "Correct it.") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


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
    from studylib.schema.pins import RESOLVED

    path = folder / RESOLVED
    tracks = read_mapping(path, "the study's profile").get("tracks") if path.is_file() else None
    return tracks[0].get("train") if tracks else None


def with_recipe(profile: Profile, recipe: Mapping[str, Any]) -> Profile:
    tracks = tuple(
        track.model_copy(update={"train": track.train.model_copy(update=dict(recipe))})
        for track in profile.tracks
    )
    return profile.model_copy(update={"tracks": tracks})
