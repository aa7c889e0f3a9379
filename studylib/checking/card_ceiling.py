"""What a card gives at most: bf16 matrix products and copies within its memory, in three seconds.

    python -m studylib.checking.card_ceiling

In a process of its own, which ends: whoever starts measured runs must hold nothing on their card.
Datasheets state what no program reaches; shares of a training are taken of this figure as well.

Not covered: whether the card computes rightly (studylib.checking.gpu_check).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from studylib.schema.card_study import Ceiling

SIZE, CPU_SIZE = 8192, 512  # rows and columns of the factors
COPY_BYTES, CPU_COPY_BYTES = 2**31, 2**26
SECONDS = 1.0  # of each of the two; a card's clock has settled by then
WARM_UP = 3


def measure_ceiling(device: torch.device, seconds: float = SECONDS) -> Ceiling:
    """Both figures; random factors, since a card that multiplies zeros draws less and runs faster.

    A product is 2 × size³ operations; a copy reads and writes its bytes, which counts twice.
    """
    on_card = device.type == "cuda"
    size, count = (SIZE, COPY_BYTES) if on_card else (CPU_SIZE, CPU_COPY_BYTES)
    torch.manual_seed(0)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    products = time_calls(lambda: torch.mm(left, right, out=out), device, seconds)
    source = torch.empty(count, device=device, dtype=torch.uint8)
    goal = torch.empty_like(source)
    copies = time_calls(lambda: goal.copy_(source), device, seconds)
    return Ceiling(
        size=size,
        products=len(products),
        bf16_flops_per_second=2 * size**3 / statistics.median(products),
        copy_bytes_per_second=2 * count / statistics.median(copies),
    )


def time_calls(call: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of single calls, for so long, after a few that do not count; by events on a card."""
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        found, end = list[float](), time.perf_counter() + seconds
        while not found or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return found
    torch.cuda.synchronize(device)
    events, end = list[tuple[Any, Any]](), time.perf_counter() + seconds
    while not events or time.perf_counter() < end:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        events.append((first, last))
        if len(events) % 16 == 0:  # no more of them wait than a fraction of a second takes
            torch.cuda.synchronize(device)
    torch.cuda.synchronize(device)
    return [first.elapsed_time(last) / 1000 for first, last in events]


if __name__ == "__main__":
    where = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    print(measure_ceiling(where).model_dump_json())
