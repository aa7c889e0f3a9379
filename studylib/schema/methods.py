"""The table of methods (methods.yaml): what each trains, on what base, how it looks and is served.

The rest of the code asks a row what it is and never its name, so that a method is added by a row.

Not covered: a method with its numbers (studylib.schema.settings), what it does to a model
(studylib.modelling.methods).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from studylib.core.errors import StudyError
from studylib.core.files import read_mapping
from studylib.schema.frozen import Frozen
from studylib.schema.method_names import METHODS_TABLE

NAME = r"[a-z][a-z0-9]*(?:-[a-z][a-z0-9]*)*?"
NUMBERS = ("rank", "alpha", "dropout", "targets")  # of a profile's section `lora`
FROM_DATA = ("corda", "eva", "lora_ga")  # LoRA's beginnings
HOLES = (*NUMBERS, "embedding", "tied")

Ability = Literal["merge", "switch", "mix", "vllm"]
Base = Literal["16-bit", "nf4", "fp4"]
Marker = Literal[
    "o", "s", "^", "v", "<", ">", "D", "d", "p", "P", "*", "h", "H", "X", "8",
    "x", "+", "1", "2", "3", "4", "|", "_",
]  # fmt: skip


class LastLayers(Frozen):
    """The last layers of a model alone are trained: their share of all, rounded up."""

    last_layers: float = Field(gt=0, lt=1)


class Method(Frozen):
    """One row of the table of methods; its keys are explained at the table's head."""

    label: str = Field(min_length=1)
    words: str = ""
    colour: str = Field(default="#222222", pattern=r"^#[0-9a-f]{6}$")
    marker: Marker = "o"
    base: Base = "16-bit"
    prepared: bool = False
    trained: Literal["all", "nothing"] | LastLayers | tuple[str, ...] = "nothing"
    peft: dict[str, Any] | None = None
    converted: bool = False
    frozen: tuple[str, ...] = ()
    rate_ratio: float = Field(default=1.0, ge=1)
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] | None = None
    serve: tuple[Ability, ...] = ("merge", "switch", "mix")
    default_learning_rate: float = Field(default=0.0, ge=0, le=1)
    article: bool = False
    advised: bool = False

    @field_validator("peft")
    @classmethod
    def known_holes(cls, keys: dict[str, Any] | None) -> dict[str, Any] | None:
        if keys is None:
            return None
        if "peft_type" not in keys:
            raise ValueError("name peft's method: peft_type: LORA, for example")
        begins = keys.get("init_lora_weights")
        if begins in FROM_DATA:
            rule = "begins from data that are gathered before the training, which no run here does"
            raise ValueError(f"init_lora_weights: {begins} {rule}; peft might train plain LoRA")
        if unknown := sorted(set(holes_in(keys)) - set(HOLES)):
            known = ", ".join(f"${name}" for name in HOLES)
            raise ValueError(f"${unknown[0]} stands for nothing; known are {known}")
        return keys

    @model_validator(mode="after")
    def trains_one_thing(self) -> Method:
        if self.peft is not None and self.trained != "nothing":
            raise ValueError("peft: names an adapter, so `trained` is left out")
        if self.quantized and not self.adapter:
            raise ValueError(f"4-bit weights cannot be trained: an {self.base} base needs peft:")
        if self.prepared and not self.quantized:
            raise ValueError("prepared is of a 4-bit base: what is not in 4 bits goes to fp32")
        if not self.trained:
            raise ValueError("trained names no module: write all, or [norm], for example")
        if (self.converted or self.frozen or self.rate_ratio != 1) and not self.adapter:
            raise ValueError("converted, frozen and rate_ratio are of an adapter: name it in peft:")
        if self.converted and (self.peft or {})["peft_type"] != "LORA":
            raise ValueError("converted is of LoRA's adapters alone, as peft converts no others")
        if self.converted and self.quantized:
            raise ValueError("a 4-bit base cannot be changed by its adapter: leave converted out")
        if self.optimizer and not self.trains:
            raise ValueError("what trains nothing has no optimizer")
        if self.trains and not self.default_learning_rate:
            raise ValueError("a method that trains needs a default_learning_rate")
        return self

    @property
    def trains(self) -> bool:
        return self.adapter or self.trained != "nothing"

    @property
    def whole(self) -> bool:
        """Whether all of the model's own weights are trained."""
        return self.trained == "all"

    @property
    def adapter(self) -> bool:
        return self.peft is not None

    @property
    def quantized(self) -> bool:
        return self.base != "16-bit"

    @property
    def takes(self) -> tuple[str, ...]:
        """Which of a profile's numbers its adapter takes."""
        found = set(holes_in(self.peft or {}))
        return tuple(name for name in NUMBERS if name in found)

    @property
    def mark(self) -> str:
        """What a run of it takes from the table, for the run's record."""
        taken = self.model_dump(include={"base", "prepared", "trained", "peft"})
        for key in ("converted", "frozen", "rate_ratio", "optimizer"):  # younger than some records
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                taken[key] = value
        return json.dumps(taken, sort_keys=True)

    @property
    def in_words(self) -> str:
        return self.words or self.label


def holes_in(value: Any) -> Iterator[str]:
    """The names of all holes ($rank) in a row's keys for peft."""
    if isinstance(value, str) and value.startswith("$"):
        yield value[1:]
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from holes_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from holes_in(part)


def fill_holes(value: Any, numbers: Mapping[str, Any]) -> Any:
    """A row's keys for peft with numbers in place of holes."""
    if isinstance(value, str) and value.startswith("$"):
        return numbers[value[1:]]
    if isinstance(value, Mapping):
        return {key: fill_holes(part, numbers) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [fill_holes(part, numbers) for part in value]
    return value


def read_methods(path: Path = METHODS_TABLE) -> dict[str, Method]:
    """A table's rows by name, in its order; StudyError names the row and key that is wrong."""
    table: dict[str, Method] = {}
    for name, row in read_mapping(path, "the table of methods").items():
        where = f"{path.name}, {name}"
        if not re.fullmatch(NAME, str(name)) or re.search(r"-r\d+$", str(name)):
            rule = "a method's name is small letters, digits and single hyphens, and no rank's"
            raise StudyError(where, rule, "Write my-method, for example.")
        try:
            table[name] = Method.model_validate(row)
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"]))
            raise StudyError(
                f"{where}: {key}" if key else where,
                fault["msg"].removeprefix("Value error, ").replace("Input should", "it should"),
                "The table's head explains its keys.",
            ) from None
    return table


METHODS = read_methods()


def first_method(what: str, wanted: Callable[[Method], bool]) -> str:
    """The name of the table's first row of a kind; StudyError where there is none."""
    for name, row in METHODS.items():
        if wanted(row):
            return name
    raise StudyError(METHODS_TABLE.name, f"it has no row that {what}", "Restore the row.")


# The untouched model; the method that all others are measured against; an adapter on a base as it
# comes and one on a 4-bit base, for checks of what such methods stand on.
UNTRAINED = first_method("trains nothing", lambda row: not row.trains)
WHOLE = first_method("trains all weights", lambda row: row.whole)
ADAPTER = first_method("is an adapter", lambda row: row.adapter and not row.quantized)
QUANTIZED = first_method("is an adapter on 4 bits", lambda row: row.adapter and row.quantized)
ARTICLE = tuple(name for name, row in METHODS.items() if row.article)
ADVISED = tuple(name for name, row in METHODS.items() if row.advised)


def trained_names() -> list[str]:
    """The names of all methods that train."""
    return [name for name, row in METHODS.items() if row.trains]
