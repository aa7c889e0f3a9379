"""What N variants of a model need: bytes on disk and on the device, cards, dollars a month.

Arithmetic on bytes that were measured (studylib.modelling.serve) or counted from a published shape
here, so that a laptop without torch can say what a 13B model's variants cost.

Not covered: the memory of requests under way beyond the reserve, and the price of storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from studylib.planning.catalog import Gpu, Shape
from studylib.planning.counts import (
    ATTENTION,
    BYTES_OF,
    checkpoint_bytes,
    count_adapter,
    count_parameters,
    linear_layers,
)
from studylib.schema.serving import BreakEven, VariantsRow

HOURS_A_MONTH = 365 * 24 / 12
RESERVE_SHARE = 0.2  # of a card, for requests under way (key-value cache, activations)
# QLoRA's storage (Dettmers et al., 2023, section 3, as bitsandbytes lays it out): two weights a
# byte, a byte a block of 64, four bytes for 256 of those, and a layer's tables.
NF4_BLOCK, ABSMAX_BLOCK = 64, 256
TABLE_BYTES = 4 * 16 + 4 * 256 + 4  # NF4's code, the code of the constants, their offset


@dataclass(frozen=True)
class WayToKeep:
    """One way to keep variants: bytes once (the base) and bytes for each variant."""

    way: str
    base_disk_bytes: int
    base_memory_bytes: int
    disk_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class CountedRow:
    """One line of the counted footprint table of a shape."""

    what: str
    dtype: str
    parameters: int
    size_bytes: int


def four_bit_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of a shape's base in NF4 with double quantization; the rest stays in `dtype`."""
    quantized = total = 0
    for inputs, outputs in linear_layers(shape).values():
        weights = inputs * outputs
        blocks = math.ceil(weights / NF4_BLOCK)
        constants = blocks + 4 * math.ceil(blocks / ABSMAX_BLOCK) + TABLE_BYTES
        total += math.ceil(weights / 2) + constants
        quantized += weights
    layers = shape.num_hidden_layers
    rest = count_parameters(shape) - layers * quantized
    return layers * total + rest * BYTES_OF[dtype]


def count_footprint(shape: Shape, rank: int = 16, dtype: str = "bf16") -> list[CountedRow]:
    """The article's row by arithmetic: checkpoint, 4-bit base, adapters in fp32 and bf16."""
    total = count_parameters(shape)
    rows = [
        CountedRow("checkpoint", dtype, total, checkpoint_bytes(total, dtype)),
        CountedRow("4-bit base", "nf4", total, four_bit_bytes(shape, dtype)),
    ]
    for name, targets in (("q,k,v,o", ATTENTION), ("all linear layers", None)):
        count = count_adapter(shape, rank, targets)
        for adapter_dtype in ("fp32", "bf16"):
            size = checkpoint_bytes(count, adapter_dtype)
            what = f"adapter r={rank} on {name}"
            rows.append(CountedRow(what, adapter_dtype, count, size))
    return rows


def tabulate_variants(ways: Iterable[WayToKeep], counts: Sequence[int]) -> tuple[VariantsRow, ...]:
    """Bytes of N variants for each way, the ways in their order, N rising."""
    return tuple(
        VariantsRow(
            variants=n,
            way=kept.way,
            disk_bytes=kept.base_disk_bytes + n * kept.disk_bytes,
            memory_bytes=kept.base_memory_bytes + n * kept.memory_bytes,
        )
        for kept in ways
        for n in sorted(counts)
    )


def find_break_even(adapters: WayToKeep, whole: WayToKeep) -> BreakEven:
    """From how many variants on adapters take less than whole models; null where never.

    base + N·a < N·c is N > base / (c - a); an adapter as large as a checkpoint never pays.
    """
    return BreakEven(
        way=adapters.way,
        disk_variants=first_paying(adapters.base_disk_bytes, adapters.disk_bytes, whole.disk_bytes),
        memory_variants=first_paying(
            adapters.base_memory_bytes, adapters.memory_bytes, whole.memory_bytes
        ),
    )


def first_paying(base_bytes: int, adapter_bytes: int, whole_bytes: int) -> int | None:
    saved = whole_bytes - adapter_bytes
    return None if saved <= 0 else base_bytes // saved + 1


def count_cards(kept: WayToKeep, variants: int, card: Gpu) -> int:
    """Cards that hold N variants ready at once; a base is repeated on each card of adapters.

    What is larger than a card is spread over several, as tensor parallelism would.
    """
    room = int(card.usable_bytes * (1 - RESERVE_SHARE))
    left = room - kept.base_memory_bytes
    if kept.base_memory_bytes and left <= 0:  # the base alone needs several cards
        return math.ceil((kept.base_memory_bytes + variants * kept.memory_bytes) / room)
    if kept.memory_bytes > left:
        return variants * math.ceil((kept.base_memory_bytes + kept.memory_bytes) / room)
    return math.ceil(variants / (left // kept.memory_bytes))


def monthly_usd(kept: WayToKeep, variants: int, card: Gpu, usd_per_hour: float) -> float:
    """Dollars a month to keep N variants on cards around the clock (730 hours)."""
    return count_cards(kept, variants, card) * usd_per_hour * HOURS_A_MONTH


def shape_ways(shape: Shape, rank: int = 16, dtype: str = "bf16") -> list[WayToKeep]:
    """The ways to keep variants of a published shape: checkpoints, adapters on two kinds of base.

    Adapters on all linear layers, in `dtype`.
    """
    whole = checkpoint_bytes(count_parameters(shape), dtype)
    adapter = checkpoint_bytes(count_adapter(shape, rank), dtype)
    four_bit = four_bit_bytes(shape, dtype)
    return [
        WayToKeep("checkpoints", 0, 0, whole, whole),
        WayToKeep(f"adapters r={rank} on one {dtype} base", whole, whole, adapter, adapter),
        WayToKeep(f"adapters r={rank} on one 4-bit base", four_bit, four_bit, adapter, adapter),
    ]
