"""Sweep learning rates for one model and method: the same number for each, on validation only.

Every rate trains anew from the same weights, adapter and data order, through the study's own
training and evaluation. A rate whose loss is not finite, or whose trained model's answers are not
numbers, stays in the curve without an accuracy.

Where it is asked, a rate is stopped at half of its steps if it has learned less than half of what a
lower rate had by then, on the same batches, and its loss is a tenth higher: it is unstable, and
would only cost as much again.
Lower rates are never stopped: a slow one may generalise better than a quick one that learns by
heart.

Not covered: which rates (the profile), choosing among them (studylib.schema.tuning).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.inputs.data import TrainingData, prepare_data
from studylib.inputs.questions import count_overlap
from studylib.metering import allocator
from studylib.metering.code_files import code_sha256
from studylib.metering.devices import hold_cards
from studylib.metering.environment import describe_environment, device_name, now
from studylib.modelling.weights import bring_in, settle_weights
from studylib.planning.stale import hash_question_folder, held_out_sha256, question_sources
from studylib.schema.measures import figures_of
from studylib.schema.profile import RunSpec
from studylib.schema.records import Scalar
from studylib.schema.settings import EvaluateSettings
from studylib.schema.tuning import TunePoint, TuneRecord, next_rate, sweep_name
from studylib.scoring.evaluate import NotANumber, build_lm, evaluate_model
from studylib.scoring.held_out import measure_held_out
from studylib.training.train import Diverged, StepLog, summarise_steps, train_model

CLEARLY = 0.1  # of the lower rate's loss: early on, all rates have learned little


def run_sweep(
    spec: RunSpec,
    rates: Sequence[float],
    limit: int | None,
    extend: int = 0,
    earlier: TuneRecord | None = None,
    jobs: int = 1,
    on_point: Any = lambda rate: None,
    keep: Any = lambda record: None,
    stop_early: bool = False,
) -> TuneRecord:
    """Train at each rate and ask the validation questions; returns the whole curve.

    extend: while the best rate lies at the grid's edge, add up to so many rates beyond it.
    earlier: a sweep of the same settings whose points are kept instead of made again.
    keep: given the sweep so far after each of its rates, so that one that is ended leaves them.
    stop_early: rates that have clearly lost by half of their steps go no further.
    """
    if spec.gpus > 1:
        raise StudyError(
            f"{spec.run_id}: {spec.gpus} cards",
            "a sweep trains on one card",
            "State this method's rate in train.learning_rates instead.",
        )
    hold_cards(spec.gpus)
    started_at = now()
    code_sha256()  # what runs now, whatever is edited while it runs
    asked = spec.evaluate.for_validation(limit)
    if earlier is not None and earlier.validation != name_validation(spec, asked):
        raise StudyError(
            f"{earlier.sweep_id}: judged by {earlier.validation}",
            f"its other rates would be judged by {name_validation(spec, asked)}",
            "Move the sweep away and tune again.",
        )
    points = list(earlier.points) if earlier else []
    marks: dict[str, Scalar] = dict(earlier.fingerprint) if earlier else {}
    data: TrainingData | None = None

    def add(rate: float) -> None:
        nonlocal data
        on_point(rate)
        point, data, model_sha256 = try_rate(
            spec.model_copy(update={"learning_rate": rate}),
            asked,
            data,
            [point for point in points if point.learning_rate < rate] if stop_early else [],
        )
        points.append(point)
        marks.update({"data.sha256": data.sha256, "model.sha256": model_sha256})
        marks.update(name_recipe(spec, asked))
        keep(build_record(spec, asked, points, started_at, jobs, False, marks))

    for rate in rates:
        if rate not in {point.learning_rate for point in points}:
            add(rate)
    marks.update(name_recipe(spec, asked))
    record = build_record(spec, asked, points, started_at, jobs, False, marks)
    for _ in range(extend):
        if not record.at_edge:
            break
        add(next_rate([p.learning_rate for p in points], record.best.learning_rate))
        record = build_record(spec, asked, points, started_at, jobs, True, marks)
    return record


def try_rate(
    spec: RunSpec,
    asked: EvaluateSettings,
    data: TrainingData | None,
    lower: Sequence[TunePoint] = (),
) -> tuple[TunePoint, TrainingData, str]:
    """Train from the beginning at spec's rate and judge it; (point, examples, the model's hash).

    lower: points of lower rates that this one is held to at half of its steps.
    """
    allocator.release_leftovers()  # the model of the rate before, and its optimizer's states
    started = time.monotonic()
    loaded, model = bring_in(spec, None)
    data = data or prepare_data(spec.data, spec.train, loaded.tokenizer, spec.seed)
    log = StepLog()
    judged: dict[str, Any] = {"correct": None, "questions": 0}
    loss = stopped = None

    def look(row: dict[str, Any]) -> None:
        if row["step"] == spec.train.steps // 2:
            refuse_lost(log, lower)

    try:
        with tempfile.TemporaryDirectory() as folder:
            train_model(model, data, spec, Path(folder), log, look, checkpoints=False)
        settle_weights(spec, loaded.model, model)
        judged = score_validation(
            model, loaded.tokenizer, spec.model_copy(update={"evaluate": asked})
        )
        loss = summarise_steps(log)["last_loss"]
    except (Diverged, NotANumber):
        pass
    except Stopped as end:
        stopped = str(end)
    point = TunePoint(
        learning_rate=spec.learning_rate,
        last_loss=loss,
        seconds=time.monotonic() - started,
        halfway_loss=halfway_loss(log, spec.train.steps),
        stopped=stopped,
        **judged,
    )
    return point, data, loaded.sha256


class Stopped(Exception):
    """A rate that has clearly lost; says when and to what."""


def halfway_loss(log: StepLog, steps: int) -> float | None:
    """Mean loss of the second quarter of the steps; None where they were not reached."""
    losses = [row["loss"] for row in log.rows if steps // 4 < row["step"] <= steps // 2]
    return statistics.fmean(losses) if losses and len(log.rows) >= steps // 2 else None


def refuse_lost(log: StepLog, lower: Sequence[TunePoint]) -> None:
    """Raise Stopped where a lower rate had learned more than twice as much on the same batches, and
    its loss was clearly lower.

    The first loss, before any update, is the same for all of them.
    """
    step, first = log.rows[-1]["step"], log.rows[0]["loss"]
    own = halfway_loss(log, 2 * step)
    for point in lower:
        if own is None or point.halfway_loss is None or point.halfway_loss >= first:
            continue
        behind = own - point.halfway_loss
        if behind > max((first - point.halfway_loss) / 2, CLEARLY * point.halfway_loss):
            raise Stopped(
                f"stopped at step {step}: its loss was {own:.3g}, that of "
                f"{point.learning_rate:g} {point.halfway_loss:.3g}"
            )


def score_validation(model: Any, tokenizer: Any, spec: RunSpec) -> dict[str, Any]:
    """What a trained model came to on the validation part: its measure, else its right answers."""
    asked = spec.evaluate
    if not asked.measures:
        [score] = evaluate_model(model, tokenizer, asked, "validation").scores
        return {"correct": score.correct, "questions": score.questions}
    name = asked.measures[0]
    figure = measure_held_out(build_lm(model, tokenizer), tokenizer, spec, "validation").first(name)
    key = figures_of(name)[0].key
    return {"correct": None, "questions": figure.items, "measure": key, "value": figure.value}


def name_recipe(spec: RunSpec, asked: EvaluateSettings) -> dict[str, Scalar]:
    """What identifies a sweep beside its examples and its model."""
    return {
        "code.sha256": code_sha256(),
        "device.name": device_name(),
        "recipe.steps": spec.train.steps,
        "recipe.seq_len": spec.train.seq_len,
        "recipe.micro_batch": spec.train.micro_batch,
        "recipe.accumulation": spec.train.accumulation,
        "recipe.dtype": spec.train.dtype,
        "evaluate.limit": asked.held_out_limit if asked.measures else asked.limit,
        "data.source": spec.data.source,
        **({"held_out.sha256": held_out_sha256(spec.data, asked)} if asked.measures else {}),
        **{key: hash_question_folder(source, asked) for key, source in question_sources(asked)},
    }


def build_record(
    spec: RunSpec,
    asked: EvaluateSettings,
    points: list[TunePoint],
    started_at: str,
    jobs: int,
    extended: bool,
    marks: dict[str, Scalar],
) -> TuneRecord:
    return TuneRecord(
        sweep_id=sweep_name(spec.model_ref.slug, spec.method.slug, spec.track),
        profile=spec.profile,
        track=spec.track,
        model=spec.model,
        method=spec.method.slug,
        seed=spec.seed,
        validation=name_validation(spec, asked),
        overlap_dropped=count_overlap(asked.questions) if asked.questions else 0,
        points=tuple(sorted(points, key=lambda point: point.learning_rate)),
        extended=extended,
        environment=describe_environment(started_at, now(), jobs, 1),
        fingerprint=dict(marks),
    )


def name_validation(spec: RunSpec, asked: EvaluateSettings) -> str:
    """What judged the rates, in words."""
    if asked.questions is not None:
        return f"{asked.questions} validation"
    return f"{asked.measures[0]} on the validation part of {spec.data.source}"
