"""The optimizers of a traced step and the states that they keep.

AdamW is PyTorch's own: fused, foreach, or (loop) one parameter after the other. Two more update
each parameter in place with states laid out by hand: bitsandbytes' 8-bit AdamW (it writes through
pointers, which fake tensors lack; the layout is that of its init_state), and bf16 weights with an
fp32 copy in the optimizer (as DeepSpeed's and Apex's fused mixed-precision Adam: 16-bit gradients,
12 bytes of state a weight).

Not covered: learning-rate schedules, weight-decay groups (neither takes memory).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from studylib.core.errors import StudyError
from studylib.metering.live import tensors_in
from studylib.schema.settings import nearest

OPTIMIZERS = ("adamw", "adamw-foreach", "adamw-loop", "adamw-8bit", "paged-adamw-8bit")
BLOCK = 256  # values that share one constant in bitsandbytes' 8-bit states
SMALLEST_8BIT = 4096  # smaller tensors keep fp32 states
SMALLEST_PAGED = 100_000  # smaller tensors are never paged


@dataclass
class Optimizer:
    """`step` updates; `states` lists what lives on the card; paged states may leave it."""

    step: Callable[[], None]
    states: Callable[[], list[torch.Tensor]]
    paged_bytes: int = 0


def make_optimizer(
    name: str,
    parameters: list[nn.Parameter],
    master_weights: bool,
    embeddings: Collection[torch.Tensor] = (),
) -> Optimizer:
    """An optimizer over fake parameters; `master_weights` adds fp32 copies of 16-bit ones.

    embeddings: those among the parameters whose 8-bit states transformers' Trainer keeps in fp32.
    """
    if name not in OPTIMIZERS:
        raise StudyError(name, "this is not an optimizer", nearest(name, list(OPTIMIZERS)))
    halves = [p for p in parameters if p.dtype != torch.float32]
    if "8bit" in name:
        whole = {id(parameter) for parameter in embeddings}
        return bits_adamw(parameters, name.startswith("paged"), master_weights, whole)
    if master_weights and halves:
        return master_adamw(parameters)
    adam = torch.optim.AdamW(
        parameters, lr=1e-4, fused=name == "adamw", foreach=name == "adamw-foreach"
    )
    return Optimizer(adam.step, lambda: adam_states(adam))  # type: ignore[arg-type]


def adam_states(adam: Any) -> list[torch.Tensor]:
    return [t for state in adam.state.values() for t in tensors_in(list(state.values()))]


def master_adamw(parameters: list[nn.Parameter]) -> Optimizer:
    """Per parameter: an fp32 copy where it is 16-bit, and two fp32 moments."""
    kept = [fp32_states(p, p.dtype != torch.float32) for p in parameters]
    return Optimizer(
        lambda: update_in_place(parameters, kept), lambda: [t for states in kept for t in states]
    )


def fp32_states(parameter: nn.Parameter, master: bool) -> list[torch.Tensor]:
    copies = 3 if master else 2
    return [torch.zeros(parameter.shape, dtype=torch.float32) for _ in range(copies)]


def bits_adamw(
    parameters: list[nn.Parameter], paged: bool, masters: bool, whole: Collection[int]
) -> Optimizer:
    """bitsandbytes: one byte a moment and an fp32 constant per block; small tensors in fp32, and
    those whose id is in `whole`."""
    tables = [torch.zeros(256, dtype=torch.float32) for _ in range(2)]
    kept, paged_bytes = [], 0
    for p in parameters:
        small = p.numel() < SMALLEST_8BIT or id(p) in whole
        dtype = torch.float32 if small else torch.uint8
        states = []
        if paged and p.numel() >= SMALLEST_PAGED:  # managed memory, not the allocator's
            paged_bytes += 2 * p.numel() * dtype.itemsize
        else:
            states = [torch.zeros(p.numel(), dtype=dtype) for _ in range(2)]
        if dtype is torch.uint8:
            states += [torch.zeros(-(-p.numel() // BLOCK)) for _ in range(2)]
        if masters and p.dtype != torch.float32:
            states.append(torch.zeros(p.shape, dtype=torch.float32))
        kept.append(states)
    return Optimizer(
        lambda: update_in_place(parameters, kept),
        lambda: [t for states in kept for t in states] + tables,
        paged_bytes,
    )


def update_in_place(parameters: list[nn.Parameter], kept: list[list[torch.Tensor]]) -> None:
    """Read each gradient, read and write each state and parameter, allocate nothing."""
    with torch.no_grad():
        for parameter, states in zip(parameters, kept, strict=True):
            for state in states:
                state.zero_()
            parameter.add_(parameter.grad)  # type: ignore[arg-type]
