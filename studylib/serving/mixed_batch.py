"""One batch whose rows use different adapters, against other ways to answer the same rows.

The ways: all rows with one adapter (what mixing costs), each adapter's rows by its merged model in
turn, and each adapter's rows after a switch in turn. One merged model stands in for all: they take
the same time, and this keeps a large model's copies out of memory.

Not covered: kernels made for mixed adapters, which engines such as vLLM bring
(studylib.serving.engines).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from studylib.modelling.variants import ready
from studylib.schema.serve_settings import FEWEST_PAIRS
from studylib.schema.serving import Equality, MixedRow
from studylib.serving.abilities import NotPossible
from studylib.serving.hot_swap import answer, equality, timed
from studylib.serving.latency import (
    Served,
    decode,
    make_prompt,
    paired_ratio,
    take_turns,
    undisturbed,
)


def name_rows(names: list[str], batch: int) -> list[str]:
    """The adapter of each row: all in turn, so that each has as many rows as possible."""
    return [names[row % len(names)] for row in range(batch)]


def split_rows(prompt: torch.Tensor, rows: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in dict.fromkeys(rows):
        yield name, prompt[[index for index, row in enumerate(rows) if row == name]]


def measure_mixed(
    dynamic: Any,
    merged: nn.Module | None,
    names: list[str],
    size: tuple[int, int],
    new_tokens: int,
    rounds: int,
    budget_seconds: float,
    dtype: str,
) -> MixedRow:
    """Whole replies in each way, paired with the mixed batch in turn. size: (rows, tokens).

    merged: None leaves the merged models out. Raises NotPossible.
    """
    batch, prompt_tokens = size
    prompt = make_prompt(dynamic.config.vocab_size, batch, prompt_tokens)
    rows = name_rows(names, batch)
    refuse_unmixed(dynamic, prompt, rows)
    checks = check_rows(dynamic, prompt, rows, dtype)
    mixed = Served("mixed", dynamic, extra={"adapter_names": rows})
    one = Served("dynamic", dynamic)

    def in_turn(served: Served, named: list[str]) -> None:
        """Each adapter's rows, one adapter after the other."""
        for name, part in split_rows(prompt, named):
            if served is one:
                dynamic.set_adapter(name)
            decode(served, part, new_tokens)

    ways = {"one adapter": partial(in_turn, one, names[:1] * batch)}
    if merged is not None:
        ways["merged models in turn"] = partial(in_turn, Served("merged", merged), rows)
    ways["switched in turn"] = partial(in_turn, one, rows)
    ratios, speeds = {}, {}
    for way, other in ways.items():
        pair = time_ways(
            [other, lambda: decode(mixed, prompt, new_tokens)], rounds, budget_seconds / len(ways)
        )
        ratios[way] = paired_ratio(*pair)
        speeds[way], speeds["mixed batch"] = (
            batch * new_tokens * len(seconds) / sum(seconds) for seconds in pair
        )
    ready(dynamic, names[0])
    return MixedRow(
        batch=batch,
        adapters=len(set(rows)),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        tokens_per_second=speeds,
        ratio_to_one_adapter=ratios["one adapter"],
        ratio_to_merged_in_turn=ratios.get("merged models in turn"),
        ratio_to_swapped_in_turn=ratios["switched in turn"],
        checks=tuple(checks),
    )


def refuse_unmixed(dynamic: Any, prompt: torch.Tensor, rows: list[str]) -> None:
    """Raise NotPossible where peft gives every row the active adapter, whatever was asked: only
    some of its methods look at the rows' names."""
    ready(dynamic, rows[0])
    mixed = answer(dynamic, prompt, adapter_names=rows)
    if len(set(rows)) > 1 and torch.equal(mixed, answer(dynamic, prompt)):
        raise NotPossible("peft gives all rows of a batch the same adapter")


def check_rows(dynamic: Any, prompt: torch.Tensor, rows: list[str], dtype: str) -> list[Equality]:
    """Each row of the mixed batch against the same row with its adapter alone."""
    mixed = answer(dynamic, prompt, adapter_names=rows)
    checks = []
    for name in dict.fromkeys(rows):
        ready(dynamic, name)
        alone = answer(dynamic, prompt)
        own = [index for index, row in enumerate(rows) if row == name]
        what = f"rows of {name} in a mixed batch, {name} alone"
        checks.append(equality(what, mixed[own], alone[own], dtype))
    return checks


def time_ways(
    ways: list[Callable[[], Any]], rounds: int, budget_seconds: float
) -> list[list[float]]:
    """Seconds of each way, in turn after a warm-up."""
    seconds: list[list[float]] = [[] for _ in ways]

    def clock(index: int) -> None:
        seconds[index].append(timed(ways[index])[0])

    for way in ways:
        way()
    with undisturbed():
        turns = [partial(clock, index) for index in range(len(ways))]
        take_turns(turns, FEWEST_PAIRS, rounds, budget_seconds)
    return seconds
