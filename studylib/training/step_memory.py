"""What a training holds between two steps, and on a CPU the peak of live tensors within one.

A card's peaks come from its allocator and from NVML (studylib.metering.meter); what of them is
weights and optimizer states is counted here, so that a forecast can be held to its parts.

Not covered: a model divided over several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from studylib.metering.live import LiveBytes, tensors_in
from studylib.modelling.four_bit import quantization_constants

WATCHED_STEP = 2  # of a session: by then the optimizer has its states
CARD_BLOCK_BYTES = 512  # what PyTorch's allocator on CUDA rounds every tensor up to


class StepMemory:
    """Counts bytes at the second step of a session: what is held, and on a CPU the step's peak.

    There every operator of forward, backward and update is watched; that step is slower and is
    left out of clean times with the others of the warm-up. found: weights_bytes (parameters,
    buffers and quantization constants), optimizer_states_bytes, live_tensor_peak_bytes.
    """

    def __init__(self, found: dict[str, int]):
        self.found = found
        self.mode: LiveBytes | None = None

    def begin(self, model: nn.Module, optimizer: Any) -> None:
        on_card = torch.cuda.is_available()
        live = LiveBytes(block_bytes=CARD_BLOCK_BYTES if on_card else 1)
        live.track([*model.parameters(), *model.buffers(), *quantization_constants(model)])
        self.found["weights_bytes"] = live.live_bytes
        live.track(state_tensors(optimizer, on_card))
        self.found["optimizer_states_bytes"] = live.live_bytes - self.found["weights_bytes"]
        if not on_card:
            live.note_peak(0)
            self.mode = live
            live.__enter__()

    def end(self) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.found["live_tensor_peak_bytes"] = self.mode.peak_bytes
            self.mode = None


def state_tensors(optimizer: Any, on_card: bool) -> Iterator[torch.Tensor]:
    """An optimizer's states; of a card's only those that its allocator holds.

    Paged states lie in memory that card and host share, step counters may lie on the host.
    """
    for state in optimizer.state.values():
        for tensor in tensors_in(list(state.values())):
            if not on_card or (tensor.is_cuda and not getattr(tensor, "is_paged", False)):
                yield tensor
