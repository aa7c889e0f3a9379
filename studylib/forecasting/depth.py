"""Continue a trace of few layers to any depth, exactly.

A transformer's layers are alike, or begin anew after a period of several kinds, so what lives at
the same event of layer i in a model of L layers is a + b·i + c·L bytes: b from one period to the
next, c from one depth to the next. Traces of two depths a period apart (three and four layers,
where all are alike) fix a, b and c for the first, the inner and the last layers. Where they are not
alike (their events differ), the whole depth is traced instead.

Not covered: kinds of layers that a configuration does not list; they take the slow way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from studylib.forecasting.job import StepSettings
from studylib.forecasting.moves import (
    Depths,
    LayersDiffer,
    Segment,
    continue_runs,
    stretch,
)  # fmt: skip
from studylib.forecasting.trace import Trace, trace_step
from studylib.modelling.skeleton import text_config, with_depth
from studylib.schema.methods import LastLayers

Run = tuple[Segment, np.ndarray]  # consecutive events of one segment, [events, parts]


def trace_depth(config: Any, settings: StepSettings) -> Trace:
    """The trace of a step at the configuration's own depth, from two short ones where possible."""
    text = text_config(config)
    depths = Depths(text.num_hidden_layers, find_period(getattr(text, "layer_types", None)))
    few = depths.short + depths.long > depths.layers + depths.period
    if few or isinstance(settings.method.kind.trained, LastLayers):
        return trace_step(config, settings)
    short = trace_step(with_depth(config, depths.short), settings)
    long = trace_step(with_depth(config, depths.long), settings)
    if long.shared:
        return trace_step(config, settings)
    try:
        return continue_trace(short, long, depths)
    except LayersDiffer:
        return trace_step(config, settings)


def find_period(kinds: Sequence[str] | None) -> int:
    """After how many layers their kinds begin anew: 6 where five slide and one does not."""
    kinds = kinds or [""]
    return next(
        period
        for period in range(1, len(kinds) + 1)
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds))
    )


def continue_trace(short: Trace, long: Trace, depths: Depths) -> Trace:
    """The trace of the whole depth that those of two depths fix."""
    if (short.layers, long.layers) != (depths.short, depths.long):
        raise LayersDiffer(f"traced {short.layers} and {long.layers} layers")
    before, after = split_runs(short), split_runs(long)
    before, after = alike_updates(before, after)
    layers, more = depths.layers, depths.more
    whole = Trace(
        layers=layers,
        trainable_params=linear(short.trainable_params, long.trainable_params, more),
        total_params=linear(short.total_params, long.total_params, more),
        saved_params=linear(short.saved_params, long.saved_params, more),
        layer=long.layer,
        rest=long.rest,
        held=stretch(long.held, depths),
        runs=continue_runs(short.runs, long.runs, depths),
        trained=stretch(long.trained, depths),
    )
    for i, (segment, parts) in enumerate(after):
        stage, layer = segment
        earlier = count_earlier(after, i)
        if layer < 0:
            grown = extend(before, segment, earlier, parts, more)
            add_events(whole, segment, grown)
        elif layer < depths.period or layer == depths.long - 1:
            first = layer < depths.period
            twin, target = (layer, layer) if first else (depths.short - 1, layers - 1)
            grown = extend(before, (stage, twin), earlier, parts, more)
            add_events(whole, (stage, target), grown)
        elif layer == (depths.period if stage == "forward" else depths.long - 2):
            add_inner(whole, before, after, stage, earlier, depths)
    whole.operators = continue_counts(short.operators, long.operators, more)
    whole.dequantized_bytes = linear(short.dequantized_bytes, long.dequantized_bytes, more)
    whole.paged_bytes = linear(short.paged_bytes, long.paged_bytes, more)
    return whole


def add_inner(
    whole: Trace, before: list[Run], after: list[Run], stage: str, earlier: int, depths: Depths
) -> None:
    """The events of all layers between the first period and the last layer."""
    bases, steps, deeper = {}, {}, {}
    for inner in depths.twins:
        parts = bases[inner] = find_segment_run(after, (stage, inner), earlier)
        if inner < depths.short - 1:
            later = find_segment_run(after, (stage, inner + depths.period), earlier)
            steps[inner] = same_shape(later, parts) - parts
            shallow = find_segment_run(before, (stage, inner), earlier)
            deeper[inner] = parts - same_shape(shallow, parts)
        else:  # the last layer of the short one: as the others of its period
            steps[inner], deeper[inner] = one_row(steps.values()), one_row(deeper.values())
    for index in depths.inner if stage == "forward" else reversed(depths.inner):
        inner = depths.twin(index)
        periods = (index - inner) // depths.period
        grown = bases[inner] + depths.more * deeper[inner] + periods * steps[inner]
        add_events(whole, (stage, index), grown)


def one_row(changes: Iterable[np.ndarray]) -> np.ndarray:
    """The change that all events of all these layers have."""
    rows = np.unique(np.concatenate(list(changes)), axis=0)
    if len(rows) != 1:
        raise LayersDiffer("the layers of a period grow by other bytes")
    return rows


def alike_updates(before: list[Run], after: list[Run]) -> tuple[list[Run], list[Run]]:
    """The same, of an update that goes parameter by parameter its fullest moment alone: the others
    are as many as there are layers, and none of them is fuller."""

    def fullest(run: Run) -> Run:
        segment, parts = run
        return segment, parts[[int(np.argmax(parts.sum(axis=1)))]]

    updates = [[len(parts) for (stage, _), parts in runs if stage == "optimizer"]
               for runs in (before, after)]  # fmt: skip
    if updates[0] == updates[1]:
        return before, after
    short, long = (
        [fullest(run) if run[0][0] == "optimizer" else run for run in runs]
        for runs in (before, after)
    )
    return short, long


def split_runs(trace: Trace) -> list[Run]:
    groups = groupby(trace.events, key=lambda event: event[0])
    return [(segment, np.array([parts for _, parts in events])) for segment, events in groups]


def count_earlier(runs: list[Run], index: int) -> int:
    """How often this run's segment came before it (accumulation visits every layer twice)."""
    return sum(runs[i][0] == runs[index][0] for i in range(index))


def find_segment_run(runs: list[Run], segment: Segment, earlier: int) -> np.ndarray:
    found = [parts for name, parts in runs if name == segment]
    if len(found) <= earlier:
        raise LayersDiffer(f"no {segment[0]} of layer {segment[1]}")
    return found[earlier]


def same_shape(parts: np.ndarray, like: np.ndarray) -> np.ndarray:
    if parts.shape != like.shape:
        raise LayersDiffer(f"{len(parts)} events beside {len(like)}")
    return parts


def extend(
    before: list[Run], twin: Segment, earlier: int, parts: np.ndarray, more: int
) -> np.ndarray:
    """The same events in a model that is `more` periods deeper."""
    return parts + more * (parts - same_shape(find_segment_run(before, twin, earlier), parts))


def add_events(trace: Trace, segment: Segment, parts: np.ndarray) -> None:
    trace.events += [(segment, tuple(int(b) for b in row)) for row in parts]


def linear(short: int, long: int, more: int) -> int:
    return long + more * (long - short)


def continue_counts(short: Counter, long: Counter, more: int) -> Counter:
    """How often each operator runs. A count below zero cancels one that grows with the depth."""
    keys = dict.fromkeys([*short, *long])  # in one order, so that sums over them come out alike
    return Counter({key: linear(short[key], long[key], more) for key in keys})
