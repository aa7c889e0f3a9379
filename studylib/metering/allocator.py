"""torch's own account of card memory, read without importing torch or waking a card.

A process that never imported torch, or never used CUDA, holds nothing there; asking must not change
that, because the context alone takes hundreds of megabytes and the import slows the start.

Not covered: memory that other libraries take on the card (NVML sees it); peaks at one instant
across cards (torch keeps a peak a card, so the sum is an upper bound with several cards).
"""

from __future__ import annotations

import gc
import sys
from typing import Any


def _live_cuda() -> Any:
    """torch.cuda if this process has started it, else None; copes with a half-done import."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    return cuda if is_initialized is not None and is_initialized() else None


def release_leftovers() -> None:
    """Give back what earlier work has left over, so that it does not count for what comes next.

    A trainer and its optimizer hold each other until they are collected, and freed memory stays in
    torch's cache, where NVML sees it.
    """
    gc.collect()
    cuda = _live_cuda()
    if cuda is not None:
        cuda.empty_cache()


def reset_peaks() -> None:
    """Set every card's peaks back to what is held now."""
    cuda = _live_cuda()
    if cuda is not None:
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def read_allocated_bytes() -> int | None:
    """Bytes in live tensors now, over all cards; None where torch has not started CUDA."""
    cuda = _live_cuda()
    if cuda is None:
        return None
    return sum(cuda.memory_allocated(device) for device in range(cuda.device_count()))


def read_peaks() -> tuple[int | None, int | None, str | None]:
    """(peak allocated, peak reserved, None) in bytes over all cards, or (None, None, reason)."""
    cuda = _live_cuda()
    if cuda is None:
        torch = sys.modules.get("torch")
        if torch is None:
            return None, None, "this process has not imported torch"
        if not torch.cuda.is_available():
            return None, None, "torch sees no CUDA card"
        return 0, 0, None  # a card that was never used has a true peak of nothing
    devices = range(cuda.device_count())
    allocated_bytes = sum(cuda.max_memory_allocated(device) for device in devices)
    reserved_bytes = sum(cuda.max_memory_reserved(device) for device in devices)
    return allocated_bytes, reserved_bytes, None
