"""What one card of several holds: FSDP's shards and what it gathers, or DDP's full copy.

FSDP (fully_shard on every layer, one group for the rest): parameters, gradients and optimizer
states are divided; the layer at work and the one fetched ahead are whole, and so is the rest
(embedding, last norm, output layer) from the forward to the end of the backward. In the backward
one layer's gradients are whole beside the copy being reduced. Activations are each card's own.

What the allocator sees: a layer's whole parameters are made when the layer before it begins, and
freed at the layer's end; those outside the layers live for the whole pass. A layer's whole
gradients are freed once they are in a bucket to be reduced, and a share of them stays. Gathered
parameters and buckets are made on streams of their own, whose blocks nothing else uses. DDP:
buckets of all gradients, made before the first step.

Not covered: tensor and pipeline parallelism, offloading, padding of uneven shards, gathering that
runs further ahead, buffers of NCCL.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from studylib.forecasting.job import StepSettings
from studylib.forecasting.moves import Birth, SegmentMoves
from studylib.forecasting.replay import Demand, flatten_moves
from studylib.forecasting.trace import PARTS, Trace
from studylib.forecasting.updates import FlatMove, trace_updates

DIVIDED = ("weights", "quantization_constants", "adapter", "gradients", "optimizer_states")
GATHERED = "gathered_layers_and_buckets"
DDP_BUCKET = 25 * 1024**2  # PyTorch's bucket_cap_mb
GATHER, REDUCE = 1, 2  # streams


def card_events(
    trace: Trace, gpus: int, sharding: Literal["none", "fsdp"], fp32_shards: bool = False
) -> np.ndarray:
    """Bytes by part at every event on one of `gpus` cards: [events, PARTS and GATHERED].

    fp32_shards: the trace's 16-bit parameters are what FSDP's mixed precision gathers; what each
    card keeps of them (with their gradients and states) is fp32.
    """
    parts = np.array([parts for _, parts in trace.events], dtype=np.int64)
    stage = np.array([segment[0] for segment, _ in trace.events])
    if gpus == 1:
        extra = np.zeros(len(parts), dtype=np.int64)
    elif sharding == "none":  # DDP reduces gradients in buckets: a second copy of them
        buckets = trace.layers * trace.layer.gradients + trace.rest.gradients
        extra = np.full(len(parts), buckets)
    else:
        if fp32_shards:
            keep_in_fp32(parts, trace)
        divide_among_cards(parts, stage, gpus)
        backward = (stage == "backward") | (stage == "loss")
        whole = 2 * trace.layer.parameters + trace.rest.parameters
        reduced = 2 * trace.layer.gradients + trace.rest.gradients
        extra = np.where(stage == "optimizer", 0, whole + np.where(backward, reduced, 0))
    return np.column_stack([parts, extra])


def divide_among_cards(parts: np.ndarray, stage: np.ndarray, gpus: int) -> None:
    """Leave each card its share, in place; the optimizer's temporaries are shares as well."""
    for name in DIVIDED:
        column = PARTS.index(name)
        parts[:, column] = -(-parts[:, column] // gpus)
    optimizer, column = stage == "optimizer", PARTS.index("temporaries")
    parts[optimizer, column] = -(-parts[optimizer, column] // gpus)


def keep_in_fp32(parts: np.ndarray, trace: Trace) -> None:
    """Double what is 16-bit among the kept parts, in place; adapters are fp32 already."""
    doubled = ["weights"]
    if trace.trainable_params == trace.total_params:
        doubled += ["gradients", "optimizer_states"]
    parts[:, [PARTS.index(name) for name in doubled]] *= 2


def card_demand(
    trace: Trace, step: StepSettings, gpus: int, sharding: Literal["none", "fsdp"],
    fp32_shards: bool = False,
) -> Demand:  # fmt: skip
    """What the steps ask of one card's allocator. fp32_shards: see card_events."""
    if gpus == 1 or sharding == "none":
        first, later = trace_updates(trace.trained, step)
        held = [item.count_bytes for item in trace.held]
        left = trace.layers * trace.layer.gradients + trace.rest.gradients if gpus > 1 else 0
        while left > 0:
            held.append(min(left, DDP_BUCKET))
            left -= DDP_BUCKET
        return Demand(held, flatten_moves(trace.runs), first, later)
    widened = 2 if fp32_shards else 1
    held = [
        -(-item.count_bytes * widened // gpus) if item.is_divided else item.count_bytes
        for item in trace.held
    ]
    first, later = trace_updates(trace.trained, step, gpus)
    moves = ShardedMoves(trace, gpus, widened)
    return Demand(held, moves.moves, first, later, moves.streams)


class ShardedMoves:
    """The moves of the passes with FSDP's own among them, and the streams of those."""

    def __init__(self, trace: Trace, gpus: int, widened: int):
        self.trace, self.gpus, self.widened = trace, gpus, widened
        self.moves: list[FlatMove] = []
        self.streams: dict[int, int] = {}
        self._keys: dict[Birth, int] = {}
        self._sizes: dict[Birth, int] = {}
        self._gathered: dict[int, int] = {}  # layer (-1: the rest) -> key
        self._bucket: int | None = None
        self._next = 0
        freed = {birth for run in trace.runs for _, birth in run.moves if birth is not None}
        for run in trace.runs:
            self._follow(run, freed)
        self._scatter([], 0)
        for layer in list(self._gathered):
            self._reshard(layer)

    def _make(self, count_bytes: int, stream: int = 0) -> int:
        key, self._next = self._next, self._next + 1
        self.moves.append((key, count_bytes))
        if stream:
            self.streams[key] = stream
        return key

    def _follow(self, run: SegmentMoves, freed: set[Birth]) -> None:
        (stage, layer), layers = run.segment, self.trace.layers
        if stage == "forward":
            self._gather(-1)
        if layer >= 0:
            ahead = layer + (1 if stage == "forward" else -1)
            for wanted in (layer, ahead):
                if 0 <= wanted < layers:
                    self._gather(wanted)
        made, kept = 0, []
        for count_bytes, birth in run.moves:
            if birth is None:
                born = (stage, layer, run.earlier, made)
                made += 1
                self._keys[born] = self._make(count_bytes)
                if born not in freed:
                    kept.append((self._keys[born], count_bytes))
            else:
                self.moves.append((self._keys[birth], -1))
        if kept and stage != "forward":
            self._scatter(kept, sum(size for _, size in kept))
        if layer >= 0 and (stage, layer) != ("forward", layers - 1):
            self._reshard(layer)
        if (stage, layer) == ("backward", 0):
            self._reshard(-1)

    def _gather(self, layer: int) -> None:
        whole = self.trace.layer if layer >= 0 else self.trace.rest
        if layer not in self._gathered:
            self._gathered[layer] = self._make(whole.parameters, GATHER)

    def _reshard(self, layer: int) -> None:
        if layer in self._gathered:
            self.moves.append((self._gathered.pop(layer), -1))

    def _scatter(self, kept: Iterable[tuple[int, int]], count_bytes: int) -> None:
        """Whole gradients go into a bucket, in place of the one before, and shares are left."""
        if self._bucket is not None:
            self.moves.append((self._bucket, -1))
            self._bucket = None
        if count_bytes:
            self._bucket = self._make(count_bytes, REDUCE)
        for key, size in kept:
            self.moves.append((key, -1))
            self._make(-(-size * self.widened // self.gpus))
