"""What a profile asks of serving: batch sizes, prompts, repeats, adapters.

Not covered: the runs that follow from it and what they find (studylib.schema.serving).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from studylib.schema.settings import Settings

FEWEST_PAIRS = 3  # what an interval of a paired ratio needs

Count = Annotated[int, Field(ge=1)]
Decoding = Literal["eager", "static", "compiled"]
Dtype = Literal["fp32", "bf16"]


class ServeSettings(Settings):
    """What is asked of each model and method. The defaults suit the bundled models on one core.

    Each pair of variants is timed for its share of `budget_seconds`, in `rounds` pairs at most and
    3 at least, at every batch size and prompt length. dtype: null is the training's. adapter_dtype:
    null is the served model's. decoding: eager (a cache that grows), static (a cache of fixed size)
    or compiled (static, its step compiled).
    """

    batch_sizes: tuple[Count, ...] = (1, 8, 32)
    prompt_tokens: tuple[Count, ...] = (128, 1024)
    new_tokens: int = Field(default=16, ge=2)
    decoding: tuple[Decoding, ...] = ("eager",)
    rounds: int = Field(default=20, ge=FEWEST_PAIRS)
    budget_seconds: float = Field(default=3.0, gt=0)
    adapters: int = Field(default=4, ge=2, le=1000)
    switches: int = Field(default=40, ge=2)
    mixed_batch: int = Field(default=8, ge=2)
    mixed_prompt_tokens: int = Field(default=32, ge=1)
    mixed_new_tokens: int = Field(default=8, ge=2)
    variants: tuple[Count, ...] = (1, 10, 100, 1000)
    dtype: Dtype | None = None
    adapter_dtype: Dtype | None = None
    write_limit_bytes: int = Field(default=2_000_000_000, ge=0)

    @field_validator("batch_sizes", "prompt_tokens", "decoding", "variants")
    @classmethod
    def distinct(cls, values: tuple) -> tuple:
        if not values or len(set(values)) != len(values):
            raise ValueError("the list is empty or an entry stands twice in it")
        return values
