"""A model of PyTorch's caching allocator on a CUDA card: what it asks of the driver, and keeps.

A step's makings and frees go through the rules by which the allocator rounds a request, chooses
among the free blocks that it holds, cuts one in two, joins freed neighbours, and asks the driver
for more (PyTorch's notes on CUDA semantics, "Memory management"; c10/cuda/CUDACachingAllocator.cpp
of 2.4 to 2.11, its defaults). What it then holds is what torch counts as reserved; blocks in use,
with rests too small to be cut off, are what torch counts as allocated.

Not covered: expandable segments, graphs' private pools, limits on splitting, and the time until a
block that another stream used is free.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable

MIB = 1024**2
BLOCK_BYTES = 512  # requests are rounded up to these
SMALL_BYTES = MIB  # requests up to here share segments of their own
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB  # for requests below OWN_SEGMENT_BYTES
OWN_SEGMENT_BYTES = 10 * MIB
SEGMENT_STEP = 2 * MIB  # a segment for one request is rounded up to these


class NoRoom(Exception):
    """The card has no room for a segment, cached ones being given back."""


class Stretch:
    """A stretch of a segment, in use or free, between its neighbours there."""

    __slots__ = ("address", "free", "next", "pool", "previous", "size")

    def __init__(self, address: int, size: int, pool: Pool):
        self.address, self.size, self.pool = address, size, pool
        self.previous: Stretch | None = None
        self.next: Stretch | None = None
        self.free = True


Pool = list[tuple[int, int, Stretch]]  # free blocks by size, then address


class CachingAllocator:
    """One card's. `make` and `free` take any key that names a storage.

    limit_bytes: what the card has for segments (None: no end). stream: a block is used again on
    its own stream alone. Read the bytes reserved and allocated, and their peaks.
    """

    def __init__(self, limit_bytes: int | None = None):
        self.limit_bytes = limit_bytes
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self._pools: dict[tuple[bool, int], Pool] = defaultdict(list)
        self._in_use: dict[Hashable, Stretch] = {}
        self._next_address = 0

    def make(self, key: Hashable, count_bytes: int, stream: int = 0) -> None:
        """Give a storage its block; NoRoom where even giving back what is cached does not help."""
        size = -(-count_bytes // BLOCK_BYTES) * BLOCK_BYTES or BLOCK_BYTES
        small = size <= SMALL_BYTES
        pool = self._pools[small, stream]
        place = bisect_left(pool, (size, -1))
        block = pool.pop(place)[2] if place < len(pool) else self._ask_driver(pool, size)
        rest = block.size - size
        if rest >= BLOCK_BYTES if small else rest > SMALL_BYTES:
            self._cut(block, size)
        block.free = False
        self._in_use[key] = block
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes

    def free(self, key: Hashable) -> None:
        """Take a storage's block back, joined with its free neighbours."""
        block = self._in_use.pop(key)
        self.allocated_bytes -= block.size
        before, after = block.previous, block.next
        if after is not None and after.free:
            self._take_out(after)
            self._swallow(block, after)
        if before is not None and before.free:
            self._take_out(before)
            self._swallow(before, block)
            block = before
        block.free = True
        insort(block.pool, (block.size, block.address, block))

    def _take_out(self, block: Stretch) -> None:
        del block.pool[bisect_left(block.pool, (block.size, block.address))]

    def _swallow(self, block: Stretch, after: Stretch) -> None:
        block.size += after.size
        block.next = after.next
        if after.next is not None:
            after.next.previous = block

    def _cut(self, block: Stretch, size: int) -> None:
        """Leave the block's first bytes, and its rest as a free block of its own."""
        rest = Stretch(block.address + size, block.size - size, block.pool)
        rest.previous, rest.next = block, block.next
        if block.next is not None:
            block.next.previous = rest
        block.next, block.size = rest, size
        insort(block.pool, (rest.size, rest.address, rest))

    def _ask_driver(self, pool: Pool, size: int) -> Stretch:
        segment = segment_bytes(size)
        limit = self.limit_bytes
        if limit is not None and self.reserved_bytes + segment > limit:
            self._give_back()
            if self.reserved_bytes + segment > limit:
                raise NoRoom(size)
        self.reserved_bytes += segment
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        block = Stretch(self._next_address, segment, pool)
        self._next_address += segment
        return block

    def _give_back(self) -> None:
        """Return to the driver every segment that is free as a whole."""
        for pool in self._pools.values():
            whole = [b for _, _, b in pool if b.previous is None and b.next is None]
            self.reserved_bytes -= sum(block.size for block in whole)
            for block in whole:
                self._take_out(block)


def segment_bytes(size: int) -> int:
    """What is asked of the driver for a rounded request that no free block holds."""
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT
    return -(-size // SEGMENT_STEP) * SEGMENT_STEP
