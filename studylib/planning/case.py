"""A reader's case, and the evidence that advice on it may use: plain values with ids.

Every piece of evidence carries the id by which a sentence names it: `record:` (a run or a
serving), `forecast:` (a traced step on a card), `count:` (exact arithmetic) or `price:` (offers).

Not covered: where the pieces come from (studylib.advice.evidence,
studylib.forecasting.card_forecasts) and what follows from them (studylib.advice.advise).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from studylib.core.errors import StudyError
from studylib.planning.catalog import find_gpu
from studylib.planning.fit import Fit
from studylib.schema.method_names import name_methods
from studylib.schema.methods import ADVISED, WHOLE, trained_names
from studylib.schema.ranges import Range
from studylib.schema.settings import Frozen, ModelRef, Settings, nearest

Change = Literal["task", "knowledge", "language"]
CHANGE_WORDS = {
    "task": "a new style or task",
    "knowledge": "new knowledge",
    "language": "a new language or new tokens",
}


class Case(Settings):
    """What the reader wants. The assumptions at the end are theirs to change.

    tokens: of the data, read `epochs` times in each training. gpu: the card at hand (with `gpus` of
    them), or None for any that somebody offers. max_accuracy_loss_pp: points behind full
    fine-tuning of the same model that may be lost; None asks for no proof. budget_usd: a year's.
    serving_hours_per_year: for which a card is rented to serve all variants; none unless asked.
    methods: those to weigh; the advised ones if left out.
    """

    model: str
    change: Change
    tokens: int = Field(ge=1, le=10**14)
    facts: int | None = Field(default=None, ge=1)
    variants: int = Field(default=1, ge=1, le=10**7)
    retrains_per_year: float = Field(default=1, ge=0, le=10**5)
    gpu: str | None = None
    gpus: int = Field(default=1, ge=1, le=64)
    budget_usd: float | None = Field(default=None, ge=0)
    max_latency_overhead_percent: float | None = Field(default=None, ge=0)
    max_accuracy_loss_pp: float | None = Field(default=None, ge=0)
    epochs: float = Field(default=3, gt=0, le=10**4)
    usd_per_gpu_hour: float | None = Field(default=None, ge=0)
    serving_gpu: str | None = None
    serving_hours_per_year: float = Field(default=0, ge=0, le=8760)
    usd_per_gb_month: float = Field(default=0.023, ge=0)
    methods: tuple[str, ...] = ()

    @field_validator("methods")
    @classmethod
    def methods_train(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in trained_names():
                raise ValueError(f"{name} is no method that trains: {name_methods()}")
        return names

    @model_validator(mode="after")
    def facts_need_knowledge(self) -> Case:
        if self.facts is not None and self.change != "knowledge":
            raise ValueError(f"facts are new knowledge, not a new {self.change}")
        return self

    @property
    def trainings_per_year(self) -> float:
        """Of each variant: what is never retrained is still trained once."""
        return max(self.retrains_per_year, 1.0)

    @property
    def weighed(self) -> tuple[str, ...]:
        """The methods that are weighed; full fine-tuning, against which others lose, among them."""
        return tuple(dict.fromkeys((WHOLE, *(self.methods or ADVISED))))

    @property
    def trained_tokens(self) -> float:
        return self.tokens * self.epochs


def build_case(**given: object) -> Case:
    """A checked case; StudyError names the option that is wrong. gpu may read 8xa100-80gb."""
    change, changes = given.get("change"), list(get_args(Change))
    if change not in changes:
        rule = "a change is task, knowledge or language"
        raise StudyError(f"--change {change}", rule, nearest(str(change), changes))
    given = {key: value for key, value in given.items() if value is not None}
    ref = ModelRef.parse(str(given.get("model")))
    given["model"] = str(ref).lower() if ref.kind == "shape" else str(ref)  # one name for each
    if "gpu" in given:
        given |= dict(zip(("gpus", "gpu"), parse_cards(str(given["gpu"])), strict=True))
    if "serving_gpu" in given:
        given["serving_gpu"] = find_gpu(str(given["serving_gpu"])).name
    try:
        return Case.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        field = str(fault["loc"][0]) if fault["loc"] else "facts"
        rule = fault["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        option = re.sub("_(usd|percent|pp)$", "", field).replace("_", "-")
        value = f"--{option} {given.get(field)}"
        raise StudyError(value, rule, "See `study advise --help`.") from None


def parse_cards(text: str) -> tuple[int, str]:
    """`a100-80gb` or `8xa100-80gb` as how many of which card."""
    match = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?(.+)", text.strip().lower())
    if not match:
        raise StudyError(text, "cards are written a100-80gb or 8xa100-80gb", "Name a card.")
    return int(match.group(1) or 1), find_gpu(match.group(2)).name


class JobForecast(Frozen):
    """One model and method on one kind and number of cards: forecast peak, time, sizes."""

    id: str
    model: str
    method: str
    gpu: str
    gpus: int
    fit: Fit
    seconds_per_token: Range
    speed_source: str = ""


class Sizes(Frozen):
    """Bytes of one model and method, counted: a whole variant, the shared base, one adapter."""

    id: str
    model: str
    method: str
    params: int
    whole_bytes: int
    base_bytes: int
    adapter_bytes: int | None


class AccuracyEvidence(Frozen):
    """Points behind full fine-tuning of `against` on the same questions, where it was measured.

    kept: the share of full's gain over the base that it keeps; 1 is all. Either may be unknown.
    merged: the adapter was merged into 16-bit weights before the questions were asked.
    """

    ids: tuple[str, ...]
    model: str
    against: str
    params: int
    method: str
    merged: bool = False
    change: Change
    tokens: int
    facts: int | None = None
    loss_pp: Range | None = None
    kept: Range | None = None
    forgot_pp: Range | None = None
    questions: int
    seeds: int


class LatencyEvidence(Frozen):
    """Per cent that an adapter kept apart adds to an answer's time; `device` is where."""

    id: str
    model: str
    params: int | None
    method: str
    device: str
    overhead_percent: Range


class LeftOut(Frozen):
    """What could not be used, why, and the command that says more or mends it."""

    what: str
    why: str
    command: str


class Evidence(Frozen):
    """All that advice may rest on. prices: dollars an hour of one card, by card."""

    forecasts: tuple[JobForecast, ...] = ()
    sizes: tuple[Sizes, ...] = ()
    prices: Mapping[str, Range] = Field(default_factory=dict)
    accuracy: tuple[AccuracyEvidence, ...] = ()
    latency: tuple[LatencyEvidence, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @cached_property
    def sizes_of(self) -> dict[tuple[str, str], Sizes]:
        return {(s.model, s.method): s for s in self.sizes}

    @cached_property
    def forecasts_of(self) -> dict[tuple[str, str], tuple[JobForecast, ...]]:
        found: dict[tuple[str, str], list[JobForecast]] = {}
        for made in self.forecasts:
            found.setdefault((made.model, made.method), []).append(made)
        return {key: tuple(made) for key, made in found.items()}


def ratio(one: float, other: float) -> float:
    """How many times the larger of two positive figures is the smaller one."""
    return max(one, other) / min(one, other)
