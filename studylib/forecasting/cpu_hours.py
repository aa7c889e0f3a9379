"""How long runs take on this machine's processor, before anything alike was measured there.

A short product tells how fast the processor multiplies now. Tokens that are trained, scored and
measured are counted, their products by two operations a weight, and both are divided with a share
of that speed that is assumed. Sweeps of learning rates are counted the same way.

Not covered: cards (studylib.forecasting.prospects), time from records (studylib.planning.plan).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from studylib.forecasting.calibration import learn_share
from studylib.forecasting.kept_forecasts import keep_forecast
from studylib.forecasting.side_by_side import count_cores
from studylib.metering.environment import device_name
from studylib.planning.estimate import asked_tokens
from studylib.schema.frozen import Frozen
from studylib.schema.profile import Profile, RunSpec
from studylib.schema.ranges import NOTHING, Range, exactly
from studylib.schema.settings import EvaluateSettings

# Of the product's speed that whole passes reach. One thread on an AMD EPYC with bf16 units took
# 2.8 s for a step of SmolLM2-135M with LoRA over 1,024 tokens: 0.4 of it.
SHARE = Range(low=0.2, mid=0.4, high=0.6)
# A process and its imports; then its data, loading and the record: 0.3 to 4.6 s of 112 runs of toy
# models (results/reference), 5 to 15 s with the process.
PROCESS_SECONDS = Range(low=3.5, mid=7.5, high=50)
OWN_SECONDS = Range(low=0.5, mid=2.5, high=10)
# Forward and backward; a frozen weight needs no gradient of its own, a quantized one is read anew.
FULL_PASSES, FROZEN_PASSES, QUANTIZED_PASSES = 3, 2, 3
SHAPE, TRIES = (1024, 576, 1536), 8


class ProductSpeed(Frozen):
    """Operations by second of one product of matrices on this processor."""

    per_second: float


@lru_cache(maxsize=8)
def product_speed(dtype: str, threads: int | None = None) -> float:
    """Operations by second of one product of matrices here, kept on disk once it was taken.

    threads: None takes as many as torch does.
    """
    question = {
        "config": device_name(),
        "cores": count_cores(),
        "asked_threads": os.environ.get("OMP_NUM_THREADS"),
        "threads": threads,
        "dtype": dtype,
    }
    take = partial(take_product_speed, dtype, threads)
    return keep_forecast(question, ProductSpeed, lambda: ProductSpeed(per_second=take())).per_second


def take_product_speed(dtype: str, threads: int | None) -> float:
    """The fastest of a few tries. Processor time is taken: others may be at work."""
    import torch

    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    rows, inner, columns = SHAPE
    a, b = torch.ones(rows, inner, dtype=kind), torch.ones(columns, inner, dtype=kind).t()
    seconds = []
    for _ in range(TRIES + 1):
        started = time.process_time()
        torch.mm(a, b)
        seconds.append((time.process_time() - started) / threads)
    torch.set_num_threads(before)
    return 2 * rows * inner * columns / min(seconds[1:])


def learned_speed(stage: str, params: int) -> tuple[Range, str]:
    """The share of the product's speed that a stage reaches with a model of so many parameters, by
    runs on this processor where there are any like it, and how it is known."""
    found = learn_share(device_name(), stage, params)
    if found is None:
        return SHARE, "assumption, not measured on this processor"
    return found * SHARE.mid, found.source


def expect_runs(
    specs: Sequence[RunSpec], params: Mapping[str, int], speed: Any = product_speed
) -> dict[str, Range]:
    """Run id -> seconds. params: parameters of each model; one that is missing has no runs here."""
    known = lru_cache(learned_speed)  # it looks at the machine, which is the same for all of them
    return {
        spec.run_id: PROCESS_SECONDS
        + OWN_SECONDS
        + work_seconds(spec, spec.evaluate, params[spec.model], speed, known)
        for spec in specs
        if spec.model in params
    }


def work_seconds(
    spec: RunSpec, asked: EvaluateSettings, params: int, speed: Any, known: Any = learned_speed
) -> Range:
    """Of training and scoring, with what earlier runs teach."""
    trained, scored = (known(stage, params)[0] for stage in ("train", "evaluate"))
    training = forecast_train_seconds(spec, params, speed, trained)
    return training + scoring_seconds(spec, asked, params, speed, scored)


def expect_sweeps(
    profile: Profile, params: Mapping[str, int], speed: Any = product_speed
) -> tuple[int, Range]:
    """(trainings, seconds) of the sweeps whose rates the profile has not yet."""
    trainings, total = 0, NOTHING
    for spec, rates in profile.sweeps():
        key = f"{spec.track} {spec.model} {spec.method.slug}"
        if key in profile.tuned or spec.model not in params:
            continue
        limit = next(t.tune.limit for t in profile.tracks if t.name == spec.track and t.tune)
        size, asked = params[spec.model], spec.evaluate.for_validation(limit)
        one = work_seconds(spec, asked, size, speed)
        trainings += len(rates)
        total += one * len(rates)
    return trainings, total


def forecast_train_seconds(
    spec: RunSpec, params: int, speed: Any = product_speed, share: Range = SHARE
) -> Range:
    kind, recipe = spec.method.kind, spec.train
    if not kind.trains:
        return NOTHING
    passes = FROZEN_PASSES if kind.adapter else FULL_PASSES
    passes = QUANTIZED_PASSES if kind.quantized else passes
    tokens = recipe.steps * recipe.accumulation * recipe.micro_batch * recipe.seq_len
    return exactly(2.0 * params * passes * tokens / speed(recipe.dtype)) / share


def scoring_seconds(
    spec: RunSpec, asked: EvaluateSettings, params: int, speed: Any = product_speed,
    share: Range = SHARE,
) -> Range:  # fmt: skip
    """Of questions and measures; a quantized model is asked twice, merged as well."""
    twice = spec.method.kind.quantized and asked.part == "test"
    operations = 2.0 * params * (2 if twice else 1)
    return asked_tokens(spec.data, asked) * (operations / speed(spec.train.dtype)) / share
