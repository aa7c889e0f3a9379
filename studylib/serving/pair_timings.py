"""The timings behind a variant's ratios, pair by pair, as a table beside the record.

Anyone can work out the ratios and their intervals again from it (studylib.core.stats'
compare_timings). The whole reply's follow: a prompt pass and `new_tokens - 1` steps of one number.

Not covered: timing (studylib.serving.latency), vLLM's replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from studylib.schema.serving import LatencyRow

TIMINGS = "timings.parquet"
CASE = ("variant", "against", "decoding", "batch", "prompt_tokens", "new_tokens")


class Seconds(Protocol):
    """One variant's: each prompt pass, and the median step of each round."""

    @property
    def first(self) -> Sequence[float]: ...
    @property
    def medians(self) -> Sequence[float]: ...


def list_pairs(row: LatencyRow, base: Seconds, variant: Seconds) -> list[dict[str, Any]]:
    """One entry a pair, of "first token" and of "between tokens"."""
    case = {name: getattr(row, name) for name in CASE}
    columns = ("pair", "base_seconds", "variant_seconds")
    return [
        case | {"what": what} | dict(zip(columns, (pair, *seconds), strict=True))
        for what, pairs in (
            ("first token", zip(base.first, variant.first, strict=True)),
            ("between tokens", zip(base.medians, variant.medians, strict=True)),
        )
        for pair, seconds in enumerate(pairs)
    ]
