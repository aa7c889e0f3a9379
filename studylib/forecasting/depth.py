"""Continue a trace of few layers to any depth, exactly.

A transformer's layers are alike, so what lives at the same event of layer i in a model of L layers
is a + b·i + c·L bytes: b from one layer to the next, c from one depth to the next. Traces of three
and four layers fix a, b and c for the first, the inner and the last layers. Where two layers are
not alike (their events differ), the whole depth is traced instead.

Not covered: architectures whose layers alternate; they take the slow way.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

import numpy as np

from studylib.forecasting.moves import (
    LONG,
    SHORT,
    LayersDiffer,
    Segment,
    continue_runs,
    stretch,
)  # fmt: skip
from studylib.forecasting.step import StepSettings
from studylib.forecasting.trace import Trace, trace_step
from studylib.modelling.skeleton import text_config, with_depth
from studylib.schema.methods import LastLayers

Run = tuple[Segment, np.ndarray]  # consecutive events of one segment, [events, parts]


def trace_depth(config: Any, settings: StepSettings) -> Trace:
    """The trace of a step at the configuration's own depth, from two short ones where possible."""
    layers = text_config(config).num_hidden_layers
    alike = len(set(getattr(text_config(config), "layer_types", None) or [""])) == 1
    alike = alike and not isinstance(settings.method.kind.trained, LastLayers)
    if layers <= LONG or not alike:
        return trace_step(config, settings)
    short = trace_step(with_depth(config, SHORT), settings)
    long = trace_step(with_depth(config, LONG), settings)
    if long.shared:
        return trace_step(config, settings)
    try:
        return continue_trace(short, long, layers)
    except LayersDiffer:
        return trace_step(config, settings)


def continue_trace(short: Trace, long: Trace, layers: int) -> Trace:
    """The trace of `layers` layers that traces of three and of four fix."""
    if (short.layers, long.layers) != (SHORT, LONG):
        raise LayersDiffer(f"traced {short.layers} and {long.layers} layers")
    before, after = split_runs(short), split_runs(long)
    more = layers - LONG
    whole = Trace(
        layers=layers,
        trainable_params=linear(short.trainable_params, long.trainable_params, more),
        total_params=linear(short.total_params, long.total_params, more),
        saved_params=linear(short.saved_params, long.saved_params, more),
        layer=long.layer,
        rest=long.rest,
        held=stretch(long.held, layers),
        runs=continue_runs(short.runs, long.runs, layers),
        trained=stretch(long.trained, layers),
    )
    for i, (segment, parts) in enumerate(after):
        stage, layer = segment
        if layer < 0:
            grown = extend(before, segment, count_earlier(after, i), parts, more)
            add_events(whole, segment, grown)
        elif layer in (0, LONG - 1):
            twin = (stage, SHORT - 1 if layer else 0)
            grown = extend(before, twin, count_earlier(after, i), parts, more)
            add_events(whole, (stage, layers - 1 if layer else 0), grown)
        elif layer == (1 if stage == "forward" else LONG - 2):
            inner = find_run(after, (stage, 1), count_earlier(after, i))
            step = same_shape(find_run(after, (stage, 2), count_earlier(after, i)), inner) - inner
            base = extend(before, (stage, 1), count_earlier(after, i), inner, more)
            order = range(1, layers - 1)
            for index in order if stage == "forward" else reversed(order):
                add_events(whole, (stage, index), base + (index - 1) * step)
    whole.operators = continue_counts(short.operators, long.operators, more)
    whole.dequantized_bytes = linear(short.dequantized_bytes, long.dequantized_bytes, more)
    whole.paged_bytes = linear(short.paged_bytes, long.paged_bytes, more)
    return whole


def split_runs(trace: Trace) -> list[Run]:
    groups = groupby(trace.events, key=lambda event: event[0])
    return [(segment, np.array([parts for _, parts in events])) for segment, events in groups]


def count_earlier(runs: list[Run], index: int) -> int:
    """How often this run's segment came before it (accumulation visits every layer twice)."""
    return sum(runs[i][0] == runs[index][0] for i in range(index))


def find_run(runs: list[Run], segment: Segment, earlier: int) -> np.ndarray:
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
    """The same events in a model that is `more` layers deeper."""
    return parts + more * (parts - same_shape(find_run(before, twin, earlier), parts))


def add_events(trace: Trace, segment: Segment, parts: np.ndarray) -> None:
    trace.events += [(segment, tuple(int(b) for b in row)) for row in parts]


def linear(short: int, long: int, more: int) -> int:
    return long + more * (long - short)


def continue_counts(short: Counter, long: Counter, more: int) -> Counter:
    """How often each operator runs. A count below zero cancels one that grows with the depth."""
    keys = set(short) | set(long)
    return Counter({key: linear(short[key], long[key], more) for key in keys})
