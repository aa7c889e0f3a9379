"""What one card of several holds: FSDP's shards and what it gathers, or DDP's full copy.

FSDP (fully_shard on every layer, one group for the rest): parameters, gradients and optimizer
states are divided; the layer at work and the one fetched ahead are whole, and so is the rest
(embedding, last norm, output layer) from the forward to the end of the backward. In the backward
one layer's gradients are whole beside the copy being reduced. Activations are each card's own.

Not covered: tensor and pipeline parallelism, offloading, padding of uneven shards.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from studylib.forecasting.trace import PARTS, Trace

DIVIDED = ("weights", "quantization_constants", "adapter", "gradients", "optimizer_states")
GATHERED = "gathered_layers_and_buckets"


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
