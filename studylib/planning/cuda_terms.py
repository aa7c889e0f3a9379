"""What a card holds beside what PyTorch's allocator reserves: the context, and cuBLAS' workspaces.

Not covered: other processes on the card, NCCL's buffers in runs of several cards.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from studylib.planning.catalog import GIB, find_gpu
from studylib.planning.roofline import count_runs
from studylib.schema.settings import Frozen


class CudaTerms(Frozen):
    """Terms that no trace can see; `fit_cuda_terms` replaces the defaults by measured ones.

    context_bytes: driver, kernels and libraries; 0.49 GiB in two public out-of-memory messages
    that state what is in use, allocated and reserved (TianheWu/CoSeR issue 10, A100;
    3DTopia/Phidias-Diffusion issue 8, RTX 4090).
    """

    context_bytes: int = int(0.49 * GIB)
    source: str = "public out-of-memory messages"


NO_CUDA = CudaTerms(context_bytes=0, source="no CUDA card")
LARGE_WORKSPACES = ("h100", "gh200", "h200", "b200")  # by the catalog's names


def workspace_bytes(gpu: str) -> int:
    """What PyTorch lets cuBLAS have for each of its handles, of which every thread has one.

    32 MiB on data-centre cards from Hopper on, 8 MiB and 128 KiB on others
    (aten/src/ATen/cuda/CublasHandlePool.cpp, its defaults :4096:8 and :4096:2:16:8).
    """
    return 32 * 1024**2 if gpu.startswith(LARGE_WORKSPACES) else (2 * 4096 + 8 * 16) * 1024


class MeasuredPeaks(Frozen):
    """A device's peaks of one measured training, in bytes."""

    reserved_bytes: int
    process_bytes: int


def fit_cuda_terms(peaks: Mapping[str, Sequence[MeasuredPeaks]]) -> CudaTerms:
    """Terms from measured trainings by card, by medians; the defaults where there are none."""
    context = [p.process_bytes - p.reserved_bytes for found in peaks.values() for p in found]
    if not context:
        return CudaTerms()
    labels = sorted(find_gpu(gpu).label for gpu in peaks)
    return CudaTerms(
        context_bytes=max(0, int(statistics.median(context))),
        source=f"by {count_runs(len(context))} on {', '.join(labels)}",
    )
