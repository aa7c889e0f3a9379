"""What a card holds beside live tensors: the CUDA context and what the allocator keeps.

Not covered: other processes on the card, NCCL's buffers in runs of several cards.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from pydantic import Field

from studylib.planning.catalog import GIB
from studylib.schema.settings import Frozen


class CudaTerms(Frozen):
    """Terms that no trace can see; `fit_cuda_terms` replaces the defaults by measured ones.

    context_bytes: driver, kernels and libraries; 0.49 GiB in two public out-of-memory messages
    that state what is in use, allocated and reserved (TianheWu/CoSeR issue 10, A100;
    3DTopia/Phidias-Diffusion issue 8, RTX 4090).
    workspace_bytes: cuBLAS (PyTorch's default on Hopper; 8 MiB on older cards).
    unused_share: reserved but not allocated, as a share of what is allocated; 0.6 to 8 % in
    public out-of-memory messages, mostly below 1.5 %.
    """

    context_bytes: int = int(0.49 * GIB)
    workspace_bytes: int = 32 * 1024**2
    unused_share: float = Field(default=0.015, ge=0)
    source: str = "public out-of-memory messages"

    def unused_bytes(self, allocated_bytes: int) -> int:
        return int(self.unused_share * allocated_bytes)


NO_CUDA = CudaTerms(context_bytes=0, workspace_bytes=0, unused_share=0, source="no CUDA card")


class Measured(Frozen):
    """A device's peaks of one measured stage, in bytes."""

    allocated_bytes: int
    reserved_bytes: int
    process_bytes: int


def fit_cuda_terms(peaks: Iterable[Measured]) -> CudaTerms:
    """Terms from measured stages, by medians; the defaults where nothing was measured."""
    peaks = list(peaks)
    if not peaks:
        return CudaTerms()
    unused = [p.reserved_bytes / p.allocated_bytes - 1 for p in peaks]
    context = [p.process_bytes - p.reserved_bytes for p in peaks]
    return CudaTerms(
        context_bytes=max(0, int(statistics.median(context))),
        unused_share=max(0.0, statistics.median(unused)),
        source=f"{len(peaks)} measured stages",
    )
