"""How long runs take on this machine's processor, before anything alike was measured there.

A short product tells how fast the processor multiplies now. Tokens that are trained, scored and
measured are counted, their products by two operations a weight, and both are divided with a share
of that speed that is assumed. Sweeps of learning rates are counted the same way.

Not covered: cards (studylib.forecasting.prospects), time from records (studylib.planning.plan).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from studylib.inputs.parts import read_part
from studylib.planning.answers import read_labels
from studylib.planning.estimate import CHARACTERS_PER_TOKEN, add, exactly, over, question_tokens
from studylib.planning.estimate import times as scaled
from studylib.planning.roofline import Range
from studylib.schema.profile import Profile, RunSpec
from studylib.schema.settings import DataSettings, EvaluateSettings

# Of the product's speed that whole passes reach. One thread on an AMD EPYC with bf16 units took
# 2.8 s for a step of SmolLM2-135M with LoRA over 1,024 tokens: 0.4 of it.
SHARE = Range(low=0.2, mid=0.4, high=0.6)
START_SECONDS = Range(low=10, mid=20, high=60)
# Forward and backward; a frozen weight needs no gradient of its own, a quantized one is read anew.
FULL_PASSES, FROZEN_PASSES, QUANTIZED_PASSES = 3, 2, 3
GREEDY_TOKENS, GREEDY_COST = 64, 8  # a generated answer, and its tokens by those of a prompt
SHAPE, TRIES = (1024, 576, 1536), 8


@lru_cache(maxsize=2)
def product_speed(dtype: str) -> float:
    """Operations by second of one product of matrices here, the fastest of a few tries."""
    import torch

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    rows, inner, columns = SHAPE
    a, b = torch.ones(rows, inner, dtype=kind), torch.ones(columns, inner, dtype=kind).t()
    seconds = []
    for _ in range(TRIES + 1):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(seconds[1:])


def expect_runs(
    specs: Sequence[RunSpec], params: Mapping[str, int], speed: Any = product_speed
) -> dict[str, Range]:
    """Run id -> seconds. params: parameters of each model; one that is missing has no runs here."""
    return {
        spec.run_id: add(
            START_SECONDS, train_seconds(spec, params[spec.model], speed),
            scoring_seconds(spec, spec.evaluate, params[spec.model], speed),
        )
        for spec in specs
        if spec.model in params
    }  # fmt: skip


def expect_sweeps(
    profile: Profile, params: Mapping[str, int], speed: Any = product_speed
) -> tuple[int, Range]:
    """(trainings, seconds) of the sweeps whose rates the profile has not yet."""
    trainings, total = 0, exactly(0.0)
    for spec, rates in profile.sweeps():
        key = f"{spec.track} {spec.model} {spec.method.slug}"
        if key in profile.tuned or spec.model not in params:
            continue
        limit = next(t.tune.limit for t in profile.tracks if t.name == spec.track and t.tune)
        size, asked = params[spec.model], spec.evaluate.for_validation(limit)
        one = add(train_seconds(spec, size, speed), scoring_seconds(spec, asked, size, speed))
        trainings += len(rates)
        total = add(total, scaled(one, len(rates)))
    return trainings, total


def train_seconds(spec: RunSpec, params: int, speed: Any = product_speed) -> Range:
    kind, recipe = spec.method.kind, spec.train
    if not kind.trains:
        return exactly(0.0)
    passes = FROZEN_PASSES if kind.adapter else FULL_PASSES
    passes = QUANTIZED_PASSES if kind.quantized else passes
    tokens = recipe.steps * recipe.accumulation * recipe.micro_batch * recipe.seq_len
    return over(2.0 * params * passes * tokens / speed(recipe.dtype), SHARE)


def scoring_seconds(
    spec: RunSpec, asked: EvaluateSettings, params: int, speed: Any = product_speed
) -> Range:
    """Of questions and measures; a quantized model is asked twice, merged as well."""
    twice = spec.method.kind.quantized and asked.part == "test"
    tokens = add(question_tokens(asked), measure_tokens(spec.data, asked))
    work = scaled(tokens, 2.0 * params * (2 if twice else 1) / speed(spec.train.dtype))
    return over(work, SHARE)


def measure_tokens(data: DataSettings, asked: EvaluateSettings) -> Range:
    """Tokens that all measures read on their examples."""
    if not asked.measures:
        return exactly(0.0)
    part: Any = "validation" if asked.part == "validation" else "test"
    characters, found = 0.0, limited(data, part, asked)
    for measure in asked.measures:
        characters += sum(map(sum_characters, found))
        if measure == "labels":
            labels = read_labels(data)
            characters += len(found) * sum(map(len, labels))
        elif measure != "loss":
            characters += 4.0 * len(found) * GREEDY_TOKENS * GREEDY_COST
    if asked.retention_data is not None:
        kept = limited(DataSettings(source=asked.retention_data), "train", asked)
        characters += sum(map(sum_characters, kept))
    return over(characters, CHARACTERS_PER_TOKEN)


def limited(data: DataSettings, part: Any, asked: EvaluateSettings) -> list[Any]:
    """The first examples of a part, as many as are measured: which ones hardly matters here."""
    return list(read_part(data, part))[: asked.held_out_limit]


def sum_characters(example: Any) -> int:
    """All text of an example."""
    if "messages" in example:
        return sum(len(str(message["content"])) for message in example["messages"])
    return sum(len(value) for value in example.values() if isinstance(value, str))
