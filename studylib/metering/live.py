"""Count the bytes of tensors that are alive, operator by operator, on real or on fake tensors.

A storage counts from the operator that made it (or that first read it) until it is freed, views
count once. The same counter watches a real CPU step and a traced one, which is what lets a
forecast be checked without a GPU.

Not covered: memory outside PyTorch's tensors (context, libraries, Python), and storages that are
resized in place.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Every tensor in an operator's arguments or results, lists and tuples unfolded."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


class LiveBytes(TorchDispatchMode):
    """Live tensor bytes by category, and their peak; use it as `with LiveBytes() as live:`.

    `category` names what is made next; `move` renames what exists. `block_bytes` rounds every
    storage up, as an allocator would (512 for PyTorch's on CUDA); what that adds is a category
    of its own, "allocator". Read `peak_bytes` afterwards, `peak_parts` for its categories.
    """

    def __init__(self, block_bytes: int = 1) -> None:
        super().__init__()
        self.block_bytes = block_bytes
        self.category = "tensors"
        self.parts: dict[str, int] = {}
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_parts: dict[str, int] = {}
        self._storages: dict[int, tuple[int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        grew = self.track(tensors_in(args))
        grew |= self.track(tensors_in(out))
        if grew:
            self.note_peak(0)
        return out

    def track(self, tensors: Iterable[torch.Tensor], category: str | None = None) -> bool:
        """Count the storages of tensors that exist; True if one was new."""
        grew = False
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._storages:
                self._add(storage, key, category or self.category)
                grew = True
        return grew

    def move(self, tensors: Iterable[torch.Tensor], category: str) -> None:
        """Let storages count under another category from now on; new ones are tracked."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._storages:
                self._add(storage, key, category)
                continue
            size, old = self._storages[key]
            self._storages[key] = (size, category)
            self.parts[old] -= size
            self.parts[category] = self.parts.get(category, 0) + size

    def note_peak(self, scratch_bytes: int) -> None:
        """Compare what is alive now, and an operator's own buffers, with the peak so far."""
        if self.live_bytes + scratch_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes + scratch_bytes
            self.peak_parts = dict(self.parts)

    def _add(self, storage: Any, key: int, category: str) -> None:
        size = storage.nbytes()
        weakref.finalize(storage, self._free, key).atexit = False
        self._storages[key] = (size, category)
        self._count(size, category, 1)

    def _free(self, key: int) -> None:
        size, category = self._storages.pop(key)
        self._count(size, category, -1)

    def _count(self, size: int, category: str, sign: int) -> None:
        padding = -size % self.block_bytes
        self.parts[category] = self.parts.get(category, 0) + sign * size
        if padding:
            self.parts["allocator"] = self.parts.get("allocator", 0) + sign * padding
        self.live_bytes += sign * (size + padding)
