"""Seconds of a traced step on a card: arithmetic or memory traffic, whichever takes longer.

Each operator takes max(flops / arithmetic, bytes / bandwidth, one launch) at the datasheet's
rates; their sum divided by an efficiency is the forecast. The efficiency comes from measured
records of the same card where there are any; otherwise it is an assumption with a range.

Not covered: communication between cards, the data loader, compiled (fused) operators.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from studylib.planning.catalog import Gpu
from studylib.schema.ranges import Range

LAUNCH_SECONDS = 5e-6  # an eager operator's least time: one kernel launch


class Efficiency(Range):
    """Share of the roofline's speed that a real step reaches, and where the figure comes from."""

    source: str


# Uncompiled PyTorch on one card. The one published step whose settings and time are both stated
# (torchtune's Llama-3.2-3B, full, packed 2 x 4096 on an A100, 7,075 tokens/s) reaches 0.67 with
# fewer operators a layer than transformers has; the range is a guess around it.
ASSUMED = Efficiency(low=0.4, mid=0.65, high=0.9, source="assumption, not measured on this card")


def ideal_seconds(
    operators: Mapping[tuple[str, float, int], float], gpu: Gpu, dtype: Literal["bf16", "fp32"]
) -> float:
    """Seconds at the datasheet's rates. operators: (stage, flops, bytes) -> how often."""
    rate, bandwidth = gpu.flops_per_second(dtype), gpu.bytes_per_second
    return sum(
        count * max(flops / rate, moved / bandwidth, LAUNCH_SECONDS)
        for (_, flops, moved), count in operators.items()
    )


def repeat_passes(
    operators: Counter[tuple[str, float, int]], times: float
) -> dict[tuple[str, float, int], float]:
    """The operators of a step with `times` as many passes as were traced, and one update."""
    return {key: n if key[0] == "optimizer" else n * times for key, n in operators.items()}


def count_runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def calibrate(pairs: Iterable[tuple[str, float, float]], gpu: Gpu) -> Efficiency:
    """Efficiency from measured steps. pairs: (card's name, ideal seconds, measured seconds).

    Steps of other cards are left out; with none left, the assumption stands.
    """
    shares = [ideal / seconds for name, ideal, seconds in pairs if name == gpu.name and seconds > 0]
    return spread_of_shares(shares, gpu.label) if shares else ASSUMED


def spread_of_shares(shares: Sequence[float], device: str) -> Efficiency:
    """What the runs on a device reached: the least, the median and the most."""
    return Efficiency(
        low=min(shares), mid=statistics.median(shares), high=max(shares),
        source=f"by {count_runs(len(shares))} on {device}",
    )  # fmt: skip
