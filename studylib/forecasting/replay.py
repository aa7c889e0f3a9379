"""Replay training steps through the model of the caching allocator: what the card is asked for.

The weights come first, then step after step: forward and backward passes, and the update, whose
first makes the optimizer's states in what the passes left cached. So the passes of the second step
find their blocks taken, and the reserve grows beyond what is ever in use at once. It is followed
until a step adds nothing.

Not covered: what loading and warming up leave cached, rows of changing lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from studylib.forecasting.caching_allocator import CachingAllocator, NoRoom
from studylib.forecasting.moves import Birth, SegmentMoves
from studylib.forecasting.updates import FlatMove

MOST_STEPS = 8
NO_STREAMS: Mapping[int, int] = MappingProxyType({})
LEAST_TOLERANCE = 0.02  # of the least memory, to which it is searched


class Demand(NamedTuple):
    """What training asks of an allocator, storage by storage, in bytes and in order.

    held: what is there before the first step. passes: of each step. first, later: of its update,
    the first of which makes the states. streams: of the passes' keys that have one of their own.
    """

    held: list[int]
    passes: list[FlatMove]
    first: list[FlatMove]
    later: list[FlatMove]
    streams: Mapping[int, int] = NO_STREAMS


@dataclass(frozen=True)
class Replayed:
    """Peaks over all steps: in blocks that are in use, and in segments that the card gave."""

    allocated_bytes: int
    reserved_bytes: int


def flatten_moves(runs: Iterable[SegmentMoves]) -> list[FlatMove]:
    """Runs as moves with a key for every storage."""
    keys: dict[Birth, int] = {}
    moves: list[FlatMove] = []
    for run in runs:
        stage, layer = run.segment
        made = 0
        for count_bytes, birth in run.moves:
            if birth is None:
                key = keys[stage, layer, run.earlier, made] = len(keys)
                moves.append((key, count_bytes))
                made += 1
            else:
                moves.append((keys[birth], -1))
    return moves


def replay(demand: Demand, limit_bytes: int | None = None) -> Replayed:
    """Peaks of steps on a card with room for limit_bytes of segments; NoRoom where they fail."""
    card = CachingAllocator(limit_bytes)
    replay_moves(
        card, [(-1 - number, count_bytes) for number, count_bytes in enumerate(demand.held)]
    )
    left = remaining(demand.passes)
    states = [(key + len(demand.passes), count_bytes) for key, count_bytes in demand.first]
    free = len(demand.passes) + len(demand.first)
    update = [(key + free, count_bytes) for key, count_bytes in demand.later]
    for step in range(MOST_STEPS):
        before = card.reserved_bytes
        replay_moves(card, demand.passes, demand.streams)
        replay_moves(card, update if step else states)
        for key in left:  # gradients: let go of after the update
            card.free(key)
        if step and card.reserved_bytes == before:
            break
    return Replayed(card.peak_allocated_bytes, card.peak_reserved_bytes)


def replay_moves(
    card: CachingAllocator, moves: Iterable[FlatMove], streams: Mapping[int, int] = NO_STREAMS
) -> None:
    make, free = card.make, card.free
    for key, count_bytes in moves:
        if count_bytes < 0:
            free(key)
        else:
            make(key, count_bytes, streams.get(key, 0))


def remaining(moves: Iterable[FlatMove]) -> list[int]:
    """What is made and not freed."""
    left: dict[int, None] = {}
    for key, count_bytes in moves:
        if count_bytes < 0:
            del left[key]
        else:
            left[key] = None
    return list(left)


def least_memory(demand: Demand, found: Replayed) -> int:
    """The least room for segments with which the steps still run, to within 2 %.

    The allocator gives cached segments back before it fails, so that this lies between what is in
    use and what is reserved where there is room.
    """
    low, high = found.allocated_bytes, found.reserved_bytes
    guess = low + int(LEAST_TOLERANCE * low)  # most jobs need hardly more than what is in use
    while high - low > LEAST_TOLERANCE * low:
        try:
            high = min(guess, replay(demand, guess).reserved_bytes)
        except NoRoom:
            low = guess
        guess = (low + high) // 2
    return high
