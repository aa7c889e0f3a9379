"""What a study asks: its profile, the runs that follow from it and their ids.

A profile is one YAML file: the shipped default plus differences. Everything is checked when it is
read, so that a typing error costs a second and not an evening. Pure data: no torch, no device.

Not covered: whether files, models or cards exist (plan and data look), and what a method does
to a model (studylib.methods).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from studylib.errors import StudyError

PROFILES = Path(__file__).parent / "profiles"
MODEL_KINDS = ("hub", "path", "shape", "ladder")


class Frozen(BaseModel):
    """Immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Method(Frozen):
    """One row of the table of methods: what is trained, and on what base."""

    trains: bool = True
    adapter: bool = False
    quantized: bool = False
    embeddings: bool = False
    label: str
    default_learning_rate: float


# The one place where methods differ. The learning rates are starting points for real models
# (LoRA's best is about ten times full's: "LoRA Without Regret", 2025); studies tune their own.
METHODS: dict[str, Method] = {
    "base": Method(trains=False, label="base", default_learning_rate=0.0),
    "full": Method(label="full", default_learning_rate=1e-5),
    "lora": Method(adapter=True, label="LoRA", default_learning_rate=1e-4),
    "qlora": Method(adapter=True, quantized=True, label="QLoRA", default_learning_rate=1e-4),
    "lora-embed": Method(
        adapter=True, embeddings=True, label="LoRA + embeddings", default_learning_rate=1e-4
    ),
}


def nearest(word: str, known: list[str]) -> str:
    """The known names, the most alike first, for the remedy of a message."""
    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."


class ModelRef(Frozen):
    """Where weights come from: hub:ID[@REVISION], path:FOLDER, shape:NAME or ladder:NAME."""

    kind: Literal["hub", "path", "shape", "ladder"]
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        kind, colon, name = str(text).partition(":")
        if not colon or kind not in MODEL_KINDS or not name:
            raise StudyError(
                text,
                "a model is hub:ID[@REVISION], path:FOLDER, shape:NAME or ladder:NAME",
                "For a folder of your own write path:/the/folder.",
            )
        revision = None
        if kind == "hub":
            name, _, revision = name.partition("@")
        return cls(kind=kind, name=name, revision=revision or None)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def slug(self) -> str:
        """A readable part of a folder's name: the last part of the path, ladder names in full."""
        base = self.name.rstrip("/").rsplit("/", 1)[-1]
        if self.kind == "ladder":
            base = f"ladder-{base}"
        return re.sub(r"[^a-z0-9.]+", "-", base.lower()).strip("-.") or "model"


class MethodSettings(Frozen):
    """A method with its numbers. `targets` is "all-linear" or a list of module names."""

    name: str
    rank: int | None = Field(default=None, ge=1, le=1024)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    adapter_dtype: Literal["fp32", "bf16"] = "fp32"

    @property
    def kind(self) -> Method:
        return METHODS[self.name]

    @property
    def slug(self) -> str:
        return f"{self.name}-r{self.rank}" if self.kind.adapter else self.name

    @property
    def label(self) -> str:
        return f"{self.kind.label} r={self.rank}" if self.kind.adapter else self.kind.label


class LoraSettings(Frozen):
    """Numbers shared by all adapter methods of a profile; `lora-r64` in a list overrides rank."""

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    adapter_dtype: Literal["fp32", "bf16"] = "fp32"


def parse_method(text: str, lora: LoraSettings) -> MethodSettings:
    """`full`, `lora`, `qlora-r64` ... as settings, or one message that names what is known."""
    match = re.fullmatch(r"([a-z]+(?:-[a-z]+)*?)(?:-r(\d+))?", text.strip().lower())
    name = match.group(1) if match else text
    if not match or name not in METHODS:
        raise StudyError(text, "this is not a method", nearest(name, list(METHODS)))
    if not METHODS[name].adapter:
        if match.group(2):
            raise StudyError(text, f"{name} has no adapter and so no rank", f"Write {name}.")
        return MethodSettings(name=name)
    numbers = lora.model_dump()
    if match.group(2):
        numbers["rank"] = int(match.group(2))
    return MethodSettings(name=name, **numbers)


class DataSettings(Frozen):
    """Training examples: an Alpaca-format json or jsonl file, hub:ID[@REVISION], almanac:NAME."""

    source: str
    template: Literal["alpaca", "plain"] = "alpaca"
    facts: int | None = Field(default=None, ge=1)


class TrainSettings(Frozen):
    """One recipe for all methods. A step is accumulation × micro_batch rows of seq_len tokens."""

    steps: int = Field(ge=1)
    seq_len: int = Field(ge=8)
    micro_batch: int = Field(default=1, ge=1)
    accumulation: int = Field(default=1, ge=1)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    dtype: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    checkpoint_every: int = Field(default=100, ge=1)
    learning_rates: dict[str, float] = {}

    @field_validator("learning_rates")
    @classmethod
    def positive(cls, rates: dict[str, float]) -> dict[str, float]:
        for name, rate in rates.items():
            if not 0 < rate <= 1:
                raise ValueError(f"learning rate {rate:g} of {name} is not in (0, 1]")
        return rates


class EvaluateSettings(Frozen):
    """Questions with four choices: hub (lm-eval's mmlu), a folder in MMLU's form, almanac:NAME.

    scoring: letters (MMLU's own form, MCF) or text (the choices' text, CF).
    retention: the same questions about what the base already knows; measures forgetting.
    """

    questions: str
    retention: str | None = None
    scoring: Literal["letters", "text"] = "letters"
    shots: int = Field(default=5, ge=0, le=25)
    limit: int | None = Field(default=None, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)


class Hardware(Frozen):
    """How runs share the machine, and what an hour of it costs if no offer names this device."""

    jobs: int = Field(default=1, ge=1, le=64)
    threads: int | None = Field(default=None, ge=1)
    gpus: int = Field(default=1, ge=0)
    usd_per_hour: float | None = Field(default=None, ge=0)
    usd_note: str = ""


class Track(Frozen):
    """One data set with its questions, asked of some models by some methods."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*$")
    question: str = ""
    data: DataSettings
    evaluate: EvaluateSettings
    train: TrainSettings
    models: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    @field_validator("models", "methods", "seeds")
    @classmethod
    def not_empty(cls, values: tuple) -> tuple:
        if not values:
            raise ValueError("the list is empty")
        if len(set(values)) != len(values):
            raise ValueError(f"an entry stands twice in {list(values)}")
        return values


class RunSpec(Frozen):
    """One model, method, seed and learning rate on one track: what one notebook process does."""

    profile: str
    track: str
    model: str
    method: MethodSettings
    seed: int
    learning_rate: float
    learning_rate_source: str
    data: DataSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    hardware: Hardware

    @property
    def model_ref(self) -> ModelRef:
        return ModelRef.parse(self.model)

    @property
    def run_id(self) -> str:
        parts = [self.model_ref.slug, self.method.slug]
        if self.track != "main":
            parts.append(self.track)
        if self.method.kind.trains:
            parts.append(f"s{self.seed}")
        return "--".join(parts)

    @property
    def base_run_id(self) -> str:
        """The untrained model's run on the same questions."""
        base = MethodSettings(name="base")
        return self.model_copy(update={"method": base, "seed": 0}).run_id


class Profile(Frozen):
    """One study. `tracks` come fully spelled out: read_profile fills them from the defaults."""

    name: str
    question: str
    lora: LoraSettings = LoraSettings()
    hardware: Hardware = Hardware()
    tracks: tuple[Track, ...]

    @model_validator(mode="after")
    def consistent(self) -> Profile:
        names = [track.name for track in self.tracks]
        if len(set(names)) != len(names):
            raise ValueError(f"two tracks share a name: {names}")
        for track in self.tracks:
            for model in track.models:
                ModelRef.parse(model)
            for method in track.methods:
                parse_method(method, self.lora)
        runs = [run.run_id for run in self.runs()]
        if len(set(runs)) != len(runs):
            twice = sorted({r for r in runs if runs.count(r) > 1})
            raise ValueError(f"two runs would share the folder {twice[0]}")
        return self

    def runs(self) -> list[RunSpec]:
        """Every run in the order in which it is started: each track's bases first, then by seed."""
        runs: list[RunSpec] = []
        for track in self.tracks:
            methods = [parse_method(m, self.lora) for m in track.methods]
            base = MethodSettings(name="base")
            trained = [m for m in methods if m.kind.trains]
            grid = [(model, base, 0) for model in track.models]
            grid += [
                (m, method, s) for s in track.seeds for m in track.models for method in trained
            ]
            runs += [self._run(track, model, method, seed) for model, method, seed in grid]
        return runs

    def _run(self, track: Track, model: str, method: MethodSettings, seed: int) -> RunSpec:
        rate, source = choose_learning_rate(track.train.learning_rates, model, method)
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
        )

    def run(self, run_id: str) -> RunSpec:
        runs = {run.run_id: run for run in self.runs()}
        if run_id not in runs:
            raise StudyError(
                run_id,
                f"profile {self.name} has no such run",
                nearest(run_id, list(runs)) + f" `study plan --profile {self.name}` lists them.",
            )
        return runs[run_id]


def choose_learning_rate(
    rates: dict[str, float], model: str, method: MethodSettings
) -> tuple[float, str]:
    """The rate for a model and method, the most specific key first, and where it comes from.

    Keys: "MODEL METHOD-rRANK", "MODEL METHOD", "METHOD-rRANK", "METHOD".
    """
    if not method.kind.trains:
        return 0.0, "not trained"
    for key in (f"{model} {method.slug}", f"{model} {method.name}", method.slug, method.name):
        if key in rates:
            return rates[key], f"profile ({key})"
    return method.kind.default_learning_rate, "the method's default, not tuned"


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise StudyError(path, f"{line}{problem}", "Correct the file and try again.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(path, f"cannot be read ({error})", "Check the path.") from None
    if not isinstance(content, dict):
        raise StudyError(path, "a profile is a mapping of keys to values", "See profiles/cpu.yaml.")
    return content


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mappings merged, everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


TRACK_DEFAULTS = ("models", "methods", "seeds", "data", "train", "evaluate")


def read_profile(name: str, changes: dict[str, Any] | None = None) -> Profile:
    """The profile of a shipped name or of a YAML file's path, with `changes` laid over it.

    A changed profile gets a name of its own (`cpu-1a2b3c`), so that its records never lie
    beside those of the unchanged one.
    """
    path = PROFILES / f"{name}.yaml"
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise StudyError(name, "there is no such profile file", "Check the path.")
    elif not path.is_file() or name == "default":
        raise StudyError(name, "this is not a shipped profile", nearest(name, shipped_profiles()))
    content = merge(read_yaml(PROFILES / "default.yaml"), read_yaml(path))
    content.setdefault("name", path.stem)
    if changes:
        content = merge(content, changes)
        marks = [ModelRef.parse(m).slug for m in changes.get("models", [])][:1]
        digest = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6]
        content["name"] = "-".join([content["name"], *marks, digest])
    return build_profile(content, origin=str(path))


def build_profile(content: dict[str, Any], origin: str) -> Profile:
    """A checked profile from a merged mapping; tracks inherit what they do not state."""
    content = dict(content)
    shared = {key: content.pop(key) for key in TRACK_DEFAULTS if key in content}
    tracks = content.pop("tracks", None) or [{"name": "main"}]
    try:
        return Profile(tracks=tuple(merge(shared, track) for track in tracks), **content)  # type: ignore[arg-type]
    except ValidationError as error:
        raise explain(error, origin) from None


def explain(error: ValidationError, origin: str) -> StudyError:
    """The first fault of a pydantic error as value, rule and remedy."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"] if part != "tracks")
    where = re.sub(r"^\d+\.", "", where) or "profile"
    if fault["type"] == "extra_forbidden":
        return StudyError(
            where, f"this key is not known ({origin})", nearest(where.split(".")[-1], known_keys())
        )
    if fault["type"] == "missing":
        return StudyError(where, f"this key is missing ({origin})", f"Add {where}: to the profile.")
    rule = fault["msg"].removeprefix("Value error, ")
    value = fault["input"]
    shown = f"{where} = {value!r}" if isinstance(value, str | int | float | tuple | list) else where
    return StudyError(shown, f"{rule} ({origin})", f"Change {where} to a value that is allowed.")


def known_keys() -> list[str]:
    models = (Profile, Track, DataSettings, TrainSettings, EvaluateSettings, Hardware, LoraSettings)
    return sorted({key for model in models for key in model.model_fields})


def shipped_profiles() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml") if path.stem != "default")
