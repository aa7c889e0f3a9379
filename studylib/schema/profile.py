"""What a study asks: its profile, the runs that follow from it and their ids.

A profile is one YAML file: the shipped default plus differences. Everything is checked when it is
read, so that a typing error costs a second and not an evening. Pure data: no torch, no device.

Not covered: the parts that a profile is made of (studylib.schema.settings, studylib.schema.spec),
whether files, models or cards exist (plan and data look).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from studylib.core.errors import StudyError
from studylib.core.files import read_mapping
from studylib.core.places import PACKAGE
from studylib.schema.kept import Keep
from studylib.schema.layers import (
    TRACK_DEFAULTS,
    change_profile,
    check_tracks,
    choose_device,
    merge_mappings,
)
from studylib.schema.serve_settings import ServeSettings
from studylib.schema.settings import (
    BASE,
    METHODS,
    DataSettings,
    EvaluateSettings,
    Frozen,
    Hardware,
    LoraSettings,
    Method,
    MethodSettings,
    ModelRef,
    TrainSettings,
    nearest,
    parse_method,
)
from studylib.schema.spec import RunSpec, Track, choose_learning_rate
from studylib.schema.tune_settings import TunedRate, TuneSettings

__all__ = [
    "METHODS",
    "DataSettings",
    "EvaluateSettings",
    "Frozen",
    "Hardware",
    "LoraSettings",
    "Method",
    "MethodSettings",
    "ModelRef",
    "Profile",
    "RunSpec",
    "Track",
    "TrainSettings",
    "is_file_name",
    "merge_mappings",
    "nearest",
    "parse_method",
    "read_profile",
    "shipped_profiles",
]

PROFILES = PACKAGE / "profiles"


class Profile(Frozen):
    """One study. `tracks` come fully spelled out: read_profile fills them from the defaults.

    origin: the profile that this one changes. tuned: "TRACK MODEL METHOD-rRANK" -> a sweep's rate.
    article: whether the report of a reader's own study judges the article's claims as well.
    keep: which trained weights stay in the runs' folders.
    """

    name: str
    question: str
    lora: LoraSettings = LoraSettings()
    hardware: Hardware = Hardware()
    serve: ServeSettings | None = None
    keep: Keep = "adapters"
    tracks: tuple[Track, ...]
    origin: str | None = None
    tuned: dict[str, TunedRate] = Field(default_factory=dict)
    article: bool = False

    @model_validator(mode="after")
    def consistent(self) -> Profile:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) or self.name == "reference":
            raise StudyError(
                f"name = {self.name!r}",
                "a profile's name is a folder's name: letters, digits, points, _ and -, and not "
                "`reference`, where the shipped results lie",
                "Add a line such as name: my-study to the profile.",
            )
        names = [track.name for track in self.tracks]
        if len(set(names)) != len(names):
            raise ValueError(f"two tracks share a name: {names}")
        for other in {track.rates_from for track in self.tracks} - {None}:
            if other not in names:
                raise StudyError(
                    f"rates_from = {other}", "there is no such track", nearest(str(other), names)
                )
        for track in self.tracks:
            for model in track.models:
                ModelRef.parse(model)
            for method in track.methods:
                parse_method(method, self.lora)
            for key in track.train.learning_rates:
                self._check_rate_key(key)
        models = {model: None for track in self.tracks for model in track.models}
        for model in {model for track in self.tracks for model in track.seeds_of}:
            if model not in models:
                raise StudyError(
                    f"seeds_of.{model}", "no track has this model", nearest(model, list(models))
                )
        for name in self.hardware.gpus_of:
            if name not in METHODS:
                raise StudyError(
                    f"hardware.gpus_of.{name}", "this is not a method", nearest(name, list(METHODS))
                )
        for run in self.runs():
            check_cards(run)
        runs = [run.run_id for run in self.runs()]
        if len(set(runs)) != len(runs):
            twice = sorted({r for r in runs if runs.count(r) > 1})
            raise StudyError(
                twice[0],
                f"two runs of profile {self.name} would share this name and folder",
                "Ask for one of them, or give one of the models' folders another name.",
            )
        return self

    def _check_rate_key(self, key: str) -> None:
        """A rate is for METHOD or for "MODEL METHOD": a misspelt key would be silently unused."""
        model, _, method = key.rpartition(" ")
        try:
            parse_method(method, self.lora)
            if model:
                ModelRef.parse(model)
        except StudyError as error:
            raise StudyError(f"learning_rates.{key}", error.rule, error.remedy) from None

    def runs(self) -> list[RunSpec]:
        """Every run in the order in which it is started: each track's bases first, then by seed.

        Random weights are asked nothing, so that an untrained one has no run.
        """
        runs: list[RunSpec] = []
        for track in self.tracks:
            methods = [parse_method(m, self.lora) for m in track.methods]
            trained = [m for m in methods if m.kind.trains]
            grid = [(m, BASE, 0) for m in track.models if ModelRef.parse(m).kind != "shape"]
            asked = {m: frozenset(track.seeds_for(m)) for m in track.models}
            grid += [
                (m, method, s)
                for s in track.all_seeds
                for m in track.models
                if s in asked[m]
                for method in trained
            ]
            runs += [self._run(track, model, method, seed) for model, method, seed in grid]
        return runs

    def _run(self, track: Track, model: str, method: MethodSettings, seed: int) -> RunSpec:
        rate, source = choose_learning_rate(track, model, method, self.tuned)
        return RunSpec(
            profile=self.name,
            track=track.name,
            model=model,
            method=method,
            seed=seed,
            learning_rate=rate,
            learning_rate_source=source,
            data=track.data,
            train=track.train,
            evaluate=track.evaluate,
            hardware=self.hardware,
            keep=self.keep,
        )

    def sweeps(self) -> list[tuple[RunSpec, tuple[float, ...]]]:
        """What tuning does: a spec with the sweep's own seed, and the rates to try.

        A model whose rate the profile states for itself is not swept: nothing would use it.
        """
        return [
            (self._run(track, model, method, track.tune.seed), track.tune.grid(method))
            for track in self.tracks
            if track.tune is not None
            for model in track.models
            for method in (parse_method(m, self.lora) for m in track.methods)
            if method.kind.trains
            and not {f"{model} {method.slug}", f"{model} {method.name}"}
            & track.train.learning_rates.keys()
        ]

    def run(self, run_id: str) -> RunSpec:
        runs = {run.run_id: run for run in self.runs()}
        if run_id not in runs:
            raise StudyError(
                run_id,
                f"profile {self.name} has no such run",
                nearest(run_id, list(runs)) + f" `study plan --profile {self.name}` lists them.",
            )
        return runs[run_id]


def check_cards(run: RunSpec) -> None:
    """Raise where a run cannot be trained on as many cards as its profile gives it."""
    if run.gpus > 1 and run.train.accumulation % run.gpus:
        raise StudyError(
            f"train.accumulation = {run.train.accumulation}, {run.gpus} cards",
            "the cards share the rows of every update, so accumulation is a multiple of them",
            f"Write accumulation: {run.gpus * max(1, round(run.train.accumulation / run.gpus))}.",
        )
    if run.gpus > 1 and run.method.kind.quantized and run.hardware.sharding != "none":
        raise StudyError(
            f"{run.method.name} on {run.gpus} cards",
            "4-bit weights are not divided over cards",
            f"Write hardware.gpus_of: {{{run.method.name}: 1}}, or sharding: none.",
        )
    if run.gpus > 1 and run.method.kind.converted:
        raise StudyError(
            f"{run.method.name} on {run.gpus} cards",
            "an adapter that begins by changing its base is trained on one card",
            f"Write hardware.gpus_of: {{{run.method.name}: 1}}.",
        )


def is_file_name(name: str) -> bool:
    """Whether a profile is named by its file and not by a shipped profile's name."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def read_profile(
    name: str, changes: dict[str, Any] | None = None, on_card: bool = False
) -> Profile:
    """The profile of a shipped name or of a YAML file's path, with `changes` laid over it.

    on_card: whether it is for a machine with one. A changed profile gets a name of its own
    (`cpu-1a2b3c`), so that its records never lie beside those of the unchanged one.
    """
    path = PROFILES / f"{name}.yaml"
    if is_file_name(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise StudyError(name, "there is no such profile file", "Check the path.")
    elif name not in shipped_profiles():
        raise StudyError(name, "this is not a shipped profile", nearest(name, shipped_profiles()))
    content = merge_mappings(
        read_mapping(PROFILES / "default.yaml", "the profile"), read_mapping(path, "the profile")
    )
    content.setdefault("name", path.stem)
    content = choose_device(content, on_card)
    if not changes:
        return build_profile(content, origin=str(path))
    content = change_profile(content, changes)
    unnamed = build_profile(content, origin=f"{path}, with the options given")
    asked = without_report_keys(changes)
    if not asked:
        return unnamed
    words = [unnamed.name]
    if "models" in asked:
        words.append(ModelRef.parse(unnamed.tracks[0].models[0]).slug)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode())
    name = "-".join([*words, digest.hexdigest()[:6]])
    return unnamed.model_copy(update={"name": name, "origin": unnamed.name})


REPORT_KEYS = ("article", "margin")


def without_report_keys(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes without what only a report reads: the same runs, whatever that is."""
    kept = {key: value for key, value in changes.items() if key not in REPORT_KEYS}
    if isinstance(asked := kept.get("evaluate"), dict):
        kept["evaluate"] = {key: value for key, value in asked.items() if key not in REPORT_KEYS}
        if not kept["evaluate"]:
            del kept["evaluate"]
    return kept


def build_profile(content: dict[str, Any], origin: str) -> Profile:
    """A checked profile from a merged mapping; tracks inherit what they do not state."""
    content = dict(content)
    shared = {key: content.pop(key) for key in TRACK_DEFAULTS if key in content}
    tracks = check_tracks(content.pop("tracks", None) or [{"name": "main"}])
    try:
        return Profile.model_validate(
            {**content, "tracks": tuple(merge_mappings(shared, track) for track in tracks)}
        )
    except ValidationError as error:
        raise explain(error, origin) from None


RULES = {
    "model_type": "this is a mapping of keys to values",
    "dict_type": "this is a mapping of keys to values",
    "tuple_type": "this is a list",
}


def explain(error: ValidationError, origin: str) -> StudyError:
    """The first fault of a pydantic error as value, rule and remedy; misspelt keys come first."""
    faults = error.errors()
    misspelt = ("extra_forbidden", "invalid_key")
    fault = next((f for f in faults if f["type"] in misspelt), faults[0])
    where = ".".join(str(part) for part in fault["loc"] if part != "tracks")
    where = re.sub(r"^\d+\.", "", where) or "profile"
    if fault["type"] == "extra_forbidden":
        return StudyError(
            where, f"this key is not known ({origin})", nearest(where.split(".")[-1], known_keys())
        )
    if fault["type"] == "missing":
        return StudyError(where, f"this key is missing ({origin})", f"Add {where}: to the profile.")
    rule = fault["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    rule = RULES.get(fault["type"], rule)
    value = fault["input"]
    shown = f"{where} = {value!r}" if isinstance(value, str | int | float | tuple | list) else where
    return StudyError(shown, f"{rule} ({origin})", f"Change {where} to a value that is allowed.")


def known_keys() -> list[str]:
    models: list[type[Frozen]] = [Profile, Track, DataSettings, TrainSettings, EvaluateSettings]
    models += [Hardware, LoraSettings, TuneSettings, ServeSettings]
    return sorted({key for model in models for key in model.model_fields})


def shipped_profiles() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml") if path.stem != "default")
