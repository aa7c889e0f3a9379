"""A training job to be forecast, and the answer: plain values, without torch.

Not covered: the forecast itself (studylib.forecasting.forecast), which job is the usual one
(studylib.forecasting.usual_recipe).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from studylib.core.errors import StudyError
from studylib.planning.fit import Fit, judge_fit
from studylib.planning.roofline import Efficiency
from studylib.schema.methods import ADAPTER, METHODS, trained_names
from studylib.schema.ranges import Range
from studylib.schema.settings import Frozen, MethodSettings, nearest

LOSS_WORDS = {
    "full": "loss in full",
    "shifted": "loss in full and shifted",
    "chunked": "loss in pieces",
}


class Fullest(Frozen):
    """A micro-batch with the most learned tokens. row_tokens: of its longest row, to which the
    others are filled up; example_tokens: of all examples, where each is attended by itself."""

    row_tokens: int = Field(ge=2)
    learned_tokens: int = Field(ge=1)
    example_tokens: tuple[int, ...] = ()


class Recipe(Frozen):
    """What of a training decides its step, beside the method. `micro_batch` is per card.

    Rows are full and need no mask (flash attention), unless masked: a mask for every row keeps
    packed examples apart, as studylib.training.train has it with sdpa, or hides padding.
    autocast: a bf16 model multiplies under autocast, as Trainer's bf16=True does; without it an
    fp32 adapter computes in fp32. master_weights: with fp32 weights, autocast; with bf16 weights,
    fp32 copies in the optimizer. optimizer: left at adamw, a method's own where it has one. loss:
    shifted is transformers' own before 4.46. fullest: a processor's; without it all tokens are
    learned. kernels: those of a CUDA card, or of a CPU (then
    without context and allocator).
    """

    micro_batch: int = Field(default=1, ge=1)
    seq_len: int = Field(default=2048, ge=1)
    masked: bool = False
    attention: Literal["sdpa", "by_example", "eager", "flex_attention", "flash_attention_2"] = (
        "sdpa"
    )
    accumulation: int = Field(default=1, ge=1)
    weights: Literal["bf16", "fp32"] = "bf16"
    master_weights: bool = False
    autocast: bool = True
    optimizer: str = "adamw"
    checkpointing: bool = True
    loss: Literal["full", "shifted", "chunked"] = "full"
    fullest: Fullest | None = None
    kernels: Literal["cuda", "cpu"] = "cuda"


class StepSettings(Recipe):
    """What is traced, as far as its memory depends on it: a training step, a pass that scores
    tokens, or one that serves."""

    method: MethodSettings
    stage: Literal["train", "score", "serve"] = "train"

    @property
    def mixed(self) -> bool:
        """Whether matrices multiply under autocast: Trainer's bf16=True."""
        return self.autocast if self.weights == "bf16" else self.master_weights

    @property
    def half(self) -> bool:
        """Whether most of the arithmetic is in bf16."""
        return self.weights == "bf16" or self.mixed


class ForecastSettings(Recipe):
    """A training job: model, method, recipe and cards."""

    model: str
    method: str = ADAPTER
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32, gt=0)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    adapter: Literal["fp32", "bf16"] = "fp32"
    gpus: int = Field(default=1, ge=1)
    sharding: Literal["none", "fsdp"] = "none"
    gpu: str = "a100-80gb"

    @classmethod
    def of(cls, model: str, method: MethodSettings, **recipe: Any) -> ForecastSettings:
        """The job that trains a model with a method's own numbers; `recipe` has all the others."""
        numbers = {"rank": method.rank or 1, "alpha": method.alpha or 1, "targets": method.targets}
        recipe = {"adapter": method.adapter_dtype, **numbers, **recipe}
        return cls(model=model, method=method.name, **recipe)

    @property
    def method_settings(self) -> MethodSettings:
        if self.method not in trained_names():
            raise StudyError(
                self.method, "this method cannot be trained", nearest(self.method, trained_names())
            )
        row, numbers = METHODS[self.method], self.model_dump(include={"rank", "alpha", "targets"})
        taken = {name: value for name, value in numbers.items() if name in row.takes}
        if row.adapter:
            taken["adapter_dtype"] = self.adapter
        return MethodSettings(name=self.method, **taken)

    @property
    def step(self) -> StepSettings:
        method = self.method_settings
        numbers: dict[str, Any] = {name: getattr(self, name) for name in Recipe.model_fields}
        if self.optimizer == Recipe.model_fields["optimizer"].default:  # not asked for
            numbers["optimizer"] = method.kind.optimizer or self.optimizer
        if self.fp32_shards:
            numbers |= {"weights": "bf16", "master_weights": False, "autocast": True}
        return StepSettings(method=method, **numbers)

    @property
    def in_words(self) -> str:
        """The job in a line: what its memory depends on most."""
        rows = f"{self.micro_batch} × {self.seq_len:,} tokens"
        masters = ", fp32 masters" if self.master_weights else ""
        saved = "checkpointing" if self.checkpointing else "no checkpointing"
        label = METHODS[self.method].in_words if self.method in METHODS else self.method
        return (
            f"{self.model}, {label}, {rows}, {LOSS_WORDS[self.loss]}, {saved}, "
            f"{'bf16' if self.step.half else 'fp32'}{masters}"
        )

    @property
    def fp32_shards(self) -> bool:
        """Whether FSDP keeps fp32 shards and gathers bf16 layers (its mixed precision)."""
        return self.sharding == "fsdp" and self.weights == "fp32" and self.master_weights


class Job(Frozen):
    """A whole training on the chosen cards; usd is null where nobody offers them."""

    tokens: int
    steps: int
    hours: Range
    usd: Range | None


class Forecast(Frozen):
    """What a job needs on each card, and what it costs. Bytes are one card's at its peak.

    peak_bytes is what the driver shows, on a card with room where settings.gpu has none;
    peak_allocated_bytes is what torch.cuda.max_memory_allocated shows; least_bytes is the least
    with which the steps still run, the allocator giving cached memory back, and what must fit.
    bytes_on_disk: adapter and checkpoint by dtype. fits: by card.
    jobs: the Alpaca-style run packed and padded, or the reader's own; none where the job does not
    fit settings.gpu. usd is the first one's: (low) fastest at the cheapest offer, (mid) expected at
    the median one, (high) slowest at the dearest.
    """

    settings: ForecastSettings
    peak_bytes: int
    peak_allocated_bytes: int
    least_bytes: int
    peak_stage: str
    parts: dict[str, int]
    paged_bytes: int
    trainable_params: int
    total_params: int
    adapter_bytes: int | None
    checkpoint_bytes: int
    bytes_on_disk: dict[str, dict[str, int]]
    flops_per_step: float
    moved_bytes_per_step: int
    dequantized_bytes_per_step: int
    seconds_per_step: Range
    efficiency: Efficiency
    context_source: str
    usd: Range | None
    jobs: dict[str, Job]
    fits: dict[str, Fit]
    smallest_gpu: str | None
    trace_seconds: float

    @property
    def fit(self) -> Fit:
        """On the card that was asked for."""
        return self.fits[self.settings.gpu]

    def fit_on(self, usable_bytes: int) -> Fit:
        """Where so much of a card is usable."""
        return judge_fit(self.peak_bytes, self.least_bytes, usable_bytes, self.settings.gpus)
