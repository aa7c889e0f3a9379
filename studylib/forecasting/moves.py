"""What a step makes and frees, in its order, and the same for a model of any depth.

A run is what happens while one layer's forward or backward is at work (or what comes before and
after all layers). A freed storage is named by its birth: the run that made it, and the how manieth
it was there. So layers that are alike have the same runs but for their number, and the runs of
three and of four layers give those of any depth. Frees between two makings have no order here:
whatever it is, an allocator is left the same.

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
SHORT, LONG = 3, 4  # layers of the two models that stand for all depths


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
class Run:
    """What happened during one segment, the `earlier`th of its name."""

    segment: Segment
    earlier: int
    moves: list[Move] = field(default_factory=list)
    makings: int = 0


class Ledger:
    """Writes down the runs of a step as it goes; `key` names a storage while it lives."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
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

    def _run(self, segment: Segment) -> Run:
        if not self.runs or self.runs[-1].segment != segment:
            earlier = self._seen.get(segment, 0)
            self._seen[segment] = earlier + 1
            self.runs.append(Run(segment, earlier))
        return self.runs[-1]


def ordered(moves: Sequence[Move]) -> list[Move]:
    """The same moves, frees between two makings by their birth."""
    groups = groupby(moves, key=lambda move: move[1] is None)
    return [
        move
        for making, group in groups
        for move in (group if making else sorted(group, key=lambda free: free[1] or ()))
    ]


def shifted(run: Run, by: int) -> list[Move]:
    """A layer's moves as those of the layer `by` further on."""
    return [
        (size, birth and (birth[0], birth[1] + by if birth[1] >= 0 else -1, *birth[2:]))
        for size, birth in ordered(run.moves)
    ]


def continue_runs(short: Sequence[Run], long: Sequence[Run], layers: int) -> list[Run]:
    """The runs of a model of `layers` layers; LayersDiffer where three and four do not fix them."""
    before, after = by_name(short), by_name(long)
    whole: list[Run] = []
    for run in long:
        (stage, layer), earlier = run.segment, run.earlier
        if layer < 0:
            moves = of_no_layer(before.get((stage, layer, earlier)), run, layers)
            whole.append(Run(run.segment, earlier, moves))
        elif layer in (0, LONG - 1):
            twin = SHORT - 1 if layer else 0
            match(before.get((stage, twin, earlier)), layer - twin, run)
            target = layers - 1 if layer else 0
            whole.append(Run((stage, target), earlier, shifted(run, target - layer)))
        elif layer == (1 if stage == "forward" else LONG - 2):
            first = after.get((stage, 1, earlier))
            match(before.get((stage, 1, earlier)), 0, first)
            match(first, 1, after.get((stage, 2, earlier)))
            assert first is not None
            order = range(1, layers - 1)
            for index in order if stage == "forward" else reversed(order):
                whole.append(Run((stage, index), earlier, shifted(first, index - 1)))
    return whole


def by_name(runs: Sequence[Run]) -> dict[tuple[str, int, int], Run]:
    return {(*run.segment, run.earlier): run for run in runs}


def match(run: Run | None, by: int, twin: Run | None) -> None:
    if run is None or twin is None or shifted(run, by) != ordered(twin.moves):
        name = (twin or run or Run(("no stage", -1), 0)).segment
        raise LayersDiffer(f"{name[0]} of layer {name[1]} makes or frees other storages")


def of_no_layer(short: Run | None, long: Run, layers: int) -> list[Move]:
    """The moves outside the layers, which may free what the first and the last two made."""

    def named(moves: list[Move], depth: int, last: int) -> Iterator[Move]:
        for size, birth in moves:
            if birth is not None and birth[1] > 0:
                if birth[1] < depth - 2:
                    raise LayersDiffer(f"{long.segment[0]} frees what layer {birth[1]} made")
                birth = (birth[0], birth[1] - depth + 1 + last, *birth[2:])
            yield size, birth

    moves = [] if short is None else ordered(list(named(short.moves, SHORT, layers - 1)))
    grown = ordered(list(named(long.moves, LONG, layers - 1)))
    if moves != grown:
        raise LayersDiffer(f"{long.segment[0]} outside the layers depends on the depth")
    return grown


def stretch(items: Sequence[Item], layers: int) -> list[Item]:
    """What layers hold, in a model of `layers` layers, by that of four."""
    laps = [(layer, list(group)) for layer, group in groupby(items, key=lambda item: item.layer)]
    found: list[Item] = []
    for place, (layer, group) in enumerate(laps):
        if layer == 1:
            twin = laps[place + 1] if place + 1 < len(laps) else (-1, [])
            if [item._replace(layer=2) for item in group] != twin[1]:
                raise LayersDiffer("layers hold other storages than their neighbours")
            found += [item._replace(layer=i) for i in range(1, layers - 1) for item in group]
        elif layer != LONG - 2:
            found += [
                item._replace(layer=layers - 1 if layer == LONG - 1 else layer) for item in group
            ]
    return found
