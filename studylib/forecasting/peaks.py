"""The fullest moment of a traced step on one card, in three figures.

What torch counts as allocated, what the driver shows (segments that the allocator holds, and the
context), and the least with which the steps still run, all by replaying the step
(studylib.forecasting.replay).

Not covered: the trace (studylib.forecasting.trace), the driver's context
(studylib.planning.cuda_terms).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from studylib.forecasting.job import StepSettings
from studylib.forecasting.replay import Replayed, least_memory, replay
from studylib.forecasting.sharding import GATHERED, card_demand, card_events
from studylib.forecasting.trace import PARTS, Trace
from studylib.planning.cuda_terms import CudaTerms, workspace_bytes

THREADS = 2  # with a cuBLAS handle each: the forward's, and autograd's for the backward


class PeakSettings(Protocol):
    """What of a forecast's settings a peak depends on, beside the trace."""

    @property
    def step(self) -> StepSettings: ...
    @property
    def fp32_shards(self) -> bool: ...
    @property
    def gpus(self) -> int: ...
    @property
    def sharding(self) -> Literal["none", "fsdp"]: ...
    @property
    def gpu(self) -> str: ...
    @property
    def kernels(self) -> Literal["cuda", "cpu"]: ...


@dataclass(frozen=True)
class Peak:
    """One card's, in bytes. parts: at the moment when most is allocated, with what the allocator
    holds beside and the context; they add up to peak_bytes, what the driver shows at most."""

    stage: str
    parts: dict[str, int]
    allocated_bytes: int
    least_bytes: int

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())

    def on_card(self, usable_bytes: int) -> Peak:
        """The same where the allocator fills a card before it gives cached memory back: the driver
        shows no more than the card has. As it is, where the steps do not fit at all."""
        over = self.peak_bytes - usable_bytes
        if over <= 0 or self.least_bytes > usable_bytes:
            return self
        return replace(self, parts=self.parts | {"allocator": self.parts["allocator"] - over})


def find_peak(trace: Trace, settings: PeakSettings, cuda: CudaTerms) -> Peak:
    """The stage and the parts of the fullest moment, and the figures that follow from a replay."""
    events = card_events(trace, settings.gpus, settings.sharding, settings.fp32_shards)
    top = int(np.argmax(events.sum(axis=1)))
    parts = {name: int(b) for name, b in zip([*PARTS, GATHERED], events[top], strict=True)}
    if settings.gpus == 1:
        del parts[GATHERED]
    live = sum(parts.values())
    parts["cuda_context"] = cuda.context_bytes
    stage = trace.events[top][0][0]
    if settings.kernels == "cpu":
        return Peak(stage, parts, live, live)
    found, least = replay_on(trace, settings)
    reserved = max(found.reserved_bytes, live)
    parts["allocator"] += reserved - live
    return Peak(stage, parts, found.allocated_bytes, least + cuda.context_bytes)


def replay_on(trace: Trace, settings: PeakSettings) -> tuple[Replayed, int]:
    """The replayed peaks, and the least room for segments; replayed once a kind of card."""
    workspace = workspace_bytes(settings.gpu)
    key = (settings.gpus, settings.sharding, settings.fp32_shards, workspace)
    if key not in trace.replayed:
        demand = card_demand(trace, settings.step, *key[:3])
        demand.held.extend([workspace] * THREADS)
        found = replay(demand)
        trace.replayed[key] = found, least_memory(demand, found)
    return trace.replayed[key]
