"""A study under a clock on one card: its steps as data (studylib/card.yaml), and what came of them.

card.json lies in results/CARD beside the ordinary records, is written after every step and says
where a later call goes on. Beside it lie other libraries' figures, MMLU by two ways and the card's
self-check, all of them optional. What is missing is left out and not spoken of. A rehearsal, which
had no card, is told as any other study.

Not covered: the clock (studylib.running.card), what a step starts (studylib.running.card_jobs),
what is said of all this (studylib.reporting.card_section).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from studylib.core.errors import StudyError
from studylib.core.files import read_mapping
from studylib.core.places import PACKAGE
from studylib.core.sealed import read_sealed, write_sealed
from studylib.schema.checks import GpuChecks, read_checks
from studylib.schema.profile import explain
from studylib.schema.settings import Frozen, ModelRef, nearest

CARD_STUDY, CARD_VERSION = "card.json", 1
STEPS_FILE = PACKAGE / "card.yaml"
State = Literal["done", "cut off", "failed", "does not fit", "not reached"]
PEERS, MMLU, CHECKS = "peers*.json", "mmlu*.json", "gpu-check/*.json"
CARD_FILES = (CARD_STUDY, PEERS, MMLU, CHECKS)


class RunAsked(Frozen):
    """One run of the profile `card`. gib: what the card must have; below: and less than that."""

    track: str
    method: str
    gib: float = 0
    below: float | None = None

    def suits(self, gib: float) -> bool:
        return self.gib <= gib and (self.below is None or gib < self.below)


class CardStep(Frozen):
    """One step. Exactly one of runs, serve, study and script says what it starts.

    seconds: its slice of 12 minutes; least: what must be left to begin it. result: of a command or
    a program, the file below the card's folder that it leaves; finds: an exit code other than 0 is
    a finding, in that file. changes: of the profile, for a step whose results then lie in a folder
    of their own.
    """

    name: str
    answers: str
    seconds: float = Field(gt=0)
    least: float = Field(default=0, ge=0)
    gib: float = Field(default=0, ge=0)
    runs: tuple[RunAsked, ...] = ()
    serve: RunAsked | None = None
    study: tuple[str, ...] = ()
    script: tuple[str, ...] = ()
    result: str = ""
    finds: bool = False
    changes: dict[str, Any] = Field(default_factory=dict)

    @field_validator("study", "script", mode="before")
    @classmethod
    def flat(cls, words: Any) -> Any:
        """Lists within a list of words are lines of it."""
        return [w for part in words for w in (part if isinstance(part, list) else [part])]

    @model_validator(mode="after")
    def one_kind(self) -> CardStep:
        if sum(map(bool, (self.runs, self.serve, self.study, self.script))) != 1:
            raise ValueError("a step has one of runs, serve, study and script")
        if (self.study or self.script) and not self.result:
            raise ValueError("result names the file that a command leaves")
        return self


class CardSteps(Frozen):
    """All steps, most valuable first, and the models that they speak of by a short name."""

    models: dict[str, str]
    steps: tuple[CardStep, ...]

    def choose(self, names: list[str] | None) -> tuple[CardStep, ...]:
        """The steps of these names, in the study's own order; all for None."""
        known = [step.name for step in self.steps]
        for name in names or []:
            if name not in known:
                raise StudyError(f"STEPS={name}", "there is no such step", nearest(name, known))
        return tuple(step for step in self.steps if names is None or step.name in names)

    def with_models(self, changes: list[str] | None) -> CardSteps:
        """Other models in the places of the study's own: `7b=ladder:0.4m`."""
        models = dict(self.models)
        for change in changes or []:
            name, equals, model = change.partition("=")
            if not equals or name not in models:
                raise StudyError(
                    f"MODELS={change}",
                    "this is PLACE=MODEL for one of the study's places",
                    f"Places: {', '.join(models)}; for example MODELS=7b=shape:Llama-3.1-8B.",
                )
            models[name] = str(ModelRef.parse(model))
        return self.model_copy(update={"models": models})


def read_steps() -> CardSteps:
    """StudyError names the first fault of the file."""
    try:
        return CardSteps.model_validate(read_mapping(STEPS_FILE, "the steps"))
    except ValidationError as error:
        raise explain(error, str(STEPS_FILE)) from None


class Ceiling(Frozen):
    """What the card gives at most, measured in a few seconds on an otherwise idle card.

    bf16_flops_per_second: matrix products [size, size] of random numbers, median of `products`.
    copy_bytes_per_second: bytes read and written of a copy within the card's memory.
    """

    size: int
    products: int
    bf16_flops_per_second: float
    copy_bytes_per_second: float


class CardFacts(Frozen):
    """Which card this is. ceiling_reason: why there is no ceiling."""

    name: str
    uuid: str | None = None
    memory_bytes: int
    driver: str | None = None
    cuda: str | None = None
    torch: str
    ceiling: Ceiling | None = None
    ceiling_reason: str | None = None

    @property
    def bf16_peak(self) -> float | None:
        """Floating-point operations by second: the card's bf16 peak as measured."""
        return self.ceiling.bf16_flops_per_second if self.ceiling else None


class Part(Frozen):
    """One process of a step: a run, a serving run, a command. figures: in base units."""

    name: str
    state: str
    seconds: float | None = None
    reason: str | None = None
    figures: dict[str, float | str] = Field(default_factory=dict)


class StepTaken(Frozen):
    """What came of a step. seconds: over all calls; slice_seconds: the last call's."""

    name: str
    answers: str
    state: State
    reason: str | None = None
    seconds: float = 0.0
    slice_seconds: float | None = None
    parts: tuple[Part, ...] = ()


class Call(Frozen):
    """One call of the command, and the code that it ran."""

    started_at: str
    minutes: float
    seconds: float
    git_commit: str | None
    git_dirty: bool | None


class CardStudy(Frozen):
    """card.json, whole. rehearsal: there was no card. models: place -> model."""

    schema_version: int = CARD_VERSION
    card: CardFacts
    rehearsal: bool
    models: dict[str, str]
    calls: tuple[Call, ...] = ()
    steps: tuple[StepTaken, ...] = ()
    digest: str = ""

    def taken(self, name: str) -> StepTaken | None:
        return next((step for step in self.steps if step.name == name), None)


def write_card_study(folder: Path, study: CardStudy) -> Path:
    """Seal and write FOLDER/card.json, over what an earlier step or call left there."""
    return write_sealed(folder / CARD_STUDY, study, over=True)


def read_card_study(folder: Path) -> CardStudy:
    """The study in FOLDER/card.json, or one message on what is wrong with it."""
    remedy = "Move it away; finished runs beside it are kept."
    path = folder / CARD_STUDY
    return read_sealed(path, CardStudy, CARD_VERSION, "the card's study", remedy)


@dataclass(frozen=True)
class CardFiles:
    """All of them. peers: what benchmarks/peers.py writes, one mapping a file. mmlu: what
    benchmarks/mmlu_prefix.py writes, one mapping a precision."""

    study: CardStudy
    peers: tuple[dict[str, Any], ...] = ()
    mmlu: tuple[dict[str, Any], ...] = ()
    checks: tuple[GpuChecks, ...] = ()


def read_card_files(folder: Path) -> CardFiles | None:
    """Those of a results folder; None where it is no card's. StudyError: one cannot be trusted."""
    if not (folder / CARD_STUDY).is_file():
        return None
    study = read_card_study(folder)
    if study.rehearsal:
        return None
    return CardFiles(
        study=study,
        peers=tuple(one for path in sorted(folder.glob(PEERS)) for one in read_objects(path)),
        mmlu=tuple(one for path in sorted(folder.glob(MMLU)) for one in read_objects(path)),
        checks=tuple(read_checks(path) for path in sorted(folder.glob(CHECKS))),
    )


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file: a list, or one or several after each other. StudyError: no JSON."""
    text, found = path.read_text(encoding="utf-8").strip(), []
    decoder = json.JSONDecoder()
    try:
        while text:
            content, end = decoder.raw_decode(text)
            found += content if isinstance(content, list) else [content]
            text = text[end:].lstrip()
        return [dict(content) for content in found]
    except (ValueError, TypeError):
        rule = "this is not JSON, or is cut off"
        raise StudyError(path, rule, "Restore it, or move it away.") from None
