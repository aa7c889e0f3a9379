"""What a step makes and frees, in its order, and the same for a model of any depth.

A run is what happens while one layer's forward or backward is at work (or what comes before and
after all layers). A freed storage is named by its birth: the run that made it, and the how manieth
it was there. So layers that are alike have the same runs but for their number, and the runs of
two depths, a period of layers apart (Depths), give those of any. Frees between two makings have no
order here: whatever it is, an allocator is left the same.

Not covered: what exists before the step (Held), the optimizer's update
(studylib.forecasting.updates), which are known parameter by parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

Segment = tuple[str, int]  # (stage, layer; -1 before the first and after the last)
Birth = tuple[str, int, int, int]  # stage, layer, how often that segment came before, which making
Move = tuple[int, Birth | None]  # (bytes, None): a making; (0, birth): the free of a storage


class Depths(NamedTuple):
    """The models that stand for one of `layers` layers of which every `period`th is alike: both end
    as it does, and have a first period, a last layer, and once or twice a period between them, but
    for what the last layer ends, of which there is one less. The first of a kind may free what all
    of it share."""

    layers: int
    period: int = 1

    @property
    def short(self) -> int:
        least = 2 * self.period + (self.period == 1)
        return least + (self.layers - least) % self.period

    @property
    def long(self) -> int:
        return self.short + self.period

    @property
    def more(self) -> int:
        """Periods beyond the long one's."""
        return (self.layers - self.long) // self.period

    def twin(self, layer: int) -> int:
        """The layer of the second period that an inner layer is like."""
        return layer % self.period + self.period

    @property
    def twins(self) -> range:
        return range(self.period, 2 * self.period)

    @property
    def inner(self) -> range:
        return range(self.period, self.layers - 1)


class LayersDiffer(Exception):
    """The layers of this model are not alike, so that few of them do not stand for all."""


class Held(NamedTuple):
    """A storage that is there before the step, and the layer whose it is (-1: of none).

    is_divided: whether FSDP divides it among cards, as it does parameters."""

    layer: int
    count_bytes: int
    is_divided: bool = True


class Trained(NamedTuple):
    """A parameter that the optimizer updates."""

    layer: int
    shape: tuple[int, ...]
    dtype: Any
    is_embedding: bool


Item = TypeVar("Item", Held, Trained)


@dataclass
class SegmentMoves:
    """What happened during one segment, the `earlier`th of its name."""

    segment: Segment
    earlier: int
    moves: list[Move] = field(default_factory=list)
    makings: int = 0


class Ledger:
    """Writes down the runs of a step as it goes; `key` names a storage while it lives."""

    def __init__(self) -> None:
        self.runs: list[SegmentMoves] = []
        self._born: dict[int, Birth] = {}
        self._seen: dict[Segment, int] = {}

    def make(self, key: int, count_bytes: int, segment: Segment) -> None:
        run = self._run(segment)
        self._born[key] = (*segment, run.earlier, run.makings)
        run.makings += 1
        run.moves.append((count_bytes, None))

    def free(self, key: int, segment: Segment) -> None:
        """What was there before the step is no move of it."""
        if key in self._born:
            self._run(segment).moves.append((0, self._born.pop(key)))

    def _run(self, segment: Segment) -> SegmentMoves:
        if not self.runs or self.runs[-1].segment != segment:
            earlier = self._seen.get(segment, 0)
            self._seen[segment] = earlier + 1
            self.runs.append(SegmentMoves(segment, earlier))
        return self.runs[-1]


def ordered(moves: Sequence[Move]) -> list[Move]:
    """The same moves, frees between two makings by their birth."""
    groups = groupby(moves, key=lambda move: move[1] is None)
    return [
        move
        for making, group in groups
        for move in (group if making else sorted(group, key=lambda free: free[1] or ()))
    ]


def shifted(run: SegmentMoves, by: int) -> list[Move]:
    """A layer's moves as those of the layer `by` further on."""
    return [
        (size, birth and (birth[0], birth[1] + by if birth[1] >= 0 else -1, *birth[2:]))
        for size, birth in ordered(run.moves)
    ]


def continue_runs(
    short: Sequence[SegmentMoves], long: Sequence[SegmentMoves], depths: Depths
) -> list[SegmentMoves]:
    """The runs of the whole model; LayersDiffer where the short and the long do not fix them."""
    layers, period = depths.layers, depths.period
    before, after = by_name(short), by_name(long)
    whole: list[SegmentMoves] = []
    for run in long:
        (stage, layer), earlier = run.segment, run.earlier
        if layer < 0:
            moves = of_no_layer(before.get((stage, layer, earlier)), run, depths)
            whole.append(SegmentMoves(run.segment, earlier, moves))
        elif layer < period or layer == depths.long - 1:
            twin, target = (layer, layer) if layer < period else (depths.short - 1, layers - 1)
            match(before.get((stage, twin, earlier)), layer - twin, run)
            whole.append(SegmentMoves((stage, target), earlier, shifted(run, target - layer)))
        elif layer == (period if stage == "forward" else depths.long - 2):
            first: dict[int, SegmentMoves] = {}
            for inner in depths.twins:
                found = after.get((stage, inner, earlier))
                if inner < depths.short - 1:
                    match(before.get((stage, inner, earlier)), 0, found)
                    match(found, period, after.get((stage, inner + period, earlier)))
                if found is None:
                    raise LayersDiffer(f"no {stage} of layer {inner}")
                first[inner] = found
            for index in depths.inner if stage == "forward" else reversed(depths.inner):
                inner = depths.twin(index)
                moves = shifted(first[inner], index - inner)
                whole.append(SegmentMoves((stage, index), earlier, moves))
    return whole


def by_name(runs: Sequence[SegmentMoves]) -> dict[tuple[str, int, int], SegmentMoves]:
    return {(*run.segment, run.earlier): run for run in runs}


def match(run: SegmentMoves | None, by: int, twin: SegmentMoves | None) -> None:
    if run is None or twin is None or shifted(run, by) != ordered(twin.moves):
        name = (twin or run or SegmentMoves(("no stage", -1), 0)).segment
        raise LayersDiffer(f"{name[0]} of layer {name[1]} makes or frees other storages")


def of_no_layer(short: SegmentMoves | None, long: SegmentMoves, depths: Depths) -> list[Move]:
    """The moves outside the layers, which may free what the first and the last two made."""

    def named(moves: list[Move], depth: int, last: int) -> Iterator[Move]:
        for size, birth in moves:
            if birth is not None and birth[1] > 0:
                if birth[1] < depth - 2:
                    raise LayersDiffer(f"{long.segment[0]} frees what layer {birth[1]} made")
                birth = (birth[0], birth[1] - depth + 1 + last, *birth[2:])
            yield size, birth

    last = depths.layers - 1
    moves = [] if short is None else ordered(list(named(short.moves, depths.short, last)))
    grown = ordered(list(named(long.moves, depths.long, last)))
    if moves != grown:
        raise LayersDiffer(f"{long.segment[0]} outside the layers depends on the depth")
    return grown


def stretch(items: Sequence[Item], depths: Depths) -> list[Item]:
    """What layers hold, in the whole model, by that of the long one."""
    found: list[Item] = []
    for block in split_blocks(items):
        if -1 in block:
            found += block[-1]
            continue
        for inner in depths.twins:
            later = inner + depths.period
            moved = [item._replace(layer=later) for item in block.get(inner, [])]
            if moved != block.get(later, []):
                raise LayersDiffer("layers hold other storages than their neighbours")
        for index in range(depths.period):
            found += block.get(index, [])
        for index in depths.inner:
            found += [item._replace(layer=index) for item in block.get(depths.twin(index), [])]
        last = depths.layers - 1
        found += [item._replace(layer=last) for item in block.get(depths.long - 1, [])]
    return found


def split_blocks(items: Sequence[Item]) -> Iterator[dict[int, list[Item]]]:
    """Items by layer, a block for each time that the layers are gone through; those of no layer in
    blocks of their own."""
    block: dict[int, list[Item]] = {}
    for layer, group in groupby(items, key=lambda item: item.layer):
        if block and (layer < 0 or -1 in block or layer <= max(block)):
            yield block
            block = {}
        block[layer] = list(group)
    if block:
        yield block
