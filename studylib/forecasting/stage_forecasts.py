"""What a plan says of each stage of a run or serving run on record: seconds, and bytes on a card.

The seconds are those of `study plan`: on a card by its datasheet, without one by the speed of a
product of matrices on as many threads as the run had. The bytes are those of a traced step and of a
traced scoring pass. Nothing that was measured of the run goes in.

Not covered: the comparison (studylib.reporting.stage_errors).
"""

from __future__ import annotations

from contextlib import suppress

from studylib.core.errors import StudyError
from studylib.forecasting import cpu_hours
from studylib.forecasting.job import Forecast, ForecastSettings
from studylib.forecasting.job_forecast import count_params
from studylib.planning.catalog import Gpu
from studylib.planning.cuda_terms import NO_CUDA
from studylib.planning.estimate import load_hours, scoring_hours, serving_hours
from studylib.schema.methods import WHOLE
from studylib.schema.ranges import Range
from studylib.schema.run_forecasts import HELD, PlannedStage
from studylib.schema.serving import ServeSpec
from studylib.schema.settings import FULL
from studylib.schema.spec import RunSpec
from studylib.scoring.token_tree import ACCELERATOR_TOKENS_PER_PASS

Stages = dict[str, PlannedStage]


def plan_card_stages(spec: RunSpec, settings: ForecastSettings, made: Forecast, gpu: Gpu) -> Stages:
    """Load (with all around it but the process), train and evaluate, on a card of the catalog."""
    size = made.total_params
    stages = {
        "load": PlannedStage(
            seconds=in_seconds(load_hours(spec, size)),
            allocated_bytes=sum(made.parts.get(name, 0) for name in HELD),
        ),
        "train": PlannedStage(
            seconds=(made.seconds_per_step * spec.train.steps).rounded(),
            allocated_bytes=made.peak_allocated_bytes,
        ),
    }
    if spec.model_ref.kind == "shape":  # random weights are not asked
        return stages
    seconds = allocated = None
    with suppress(StudyError):  # questions or examples that are not here
        seconds = in_seconds(scoring_hours(spec, size, gpu))
    with suppress(StudyError):
        allocated = scored_bytes(spec, settings, stages["load"].allocated_bytes or 0)
    stages["evaluate"] = PlannedStage(seconds=seconds, allocated_bytes=allocated)
    return stages


def scored_bytes(spec: RunSpec, settings: ForecastSettings, loaded: int) -> int:
    """The fullest moment of scoring; a 4-bit base stays beside the merged model, in 16 bits, that
    is asked after it. loaded: bytes of the model as it was trained."""
    from studylib.forecasting.fitting import forecast_evaluation  # torch, which few need

    recipe = {"weights": spec.train.dtype, "master_weights": False}
    own = settings.model_copy(update=recipe)
    tokens = ACCELERATOR_TOKENS_PER_PASS
    peak = forecast_evaluation(own, tokens, NO_CUDA).allocated_bytes
    if not spec.method.kind.quantized:
        return peak
    merged = settings.model_copy(update=recipe | {"method": WHOLE})
    also = loaded + forecast_evaluation(merged, tokens, NO_CUDA).allocated_bytes
    return max(peak, also)


def plan_host_stages(spec: RunSpec, made: Forecast, speed: float) -> Stages:
    """The same on a processor of `speed` operations by second, in seconds."""
    size, at = made.total_params, lambda dtype: speed
    stages = {
        "load": PlannedStage(seconds=cpu_hours.OWN_SECONDS.rounded()),
        "train": PlannedStage(
            seconds=cpu_hours.forecast_train_seconds(spec, size, at).rounded(),
            allocated_bytes=made.peak_allocated_bytes,
        ),
    }
    with suppress(StudyError):
        seconds = cpu_hours.scoring_seconds(spec, spec.evaluate, size, at)
        stages["evaluate"] = PlannedStage(seconds=seconds.rounded())
    return stages


def plan_serving(spec: ServeSpec, gpu: Gpu) -> PlannedStage:
    """A serving run on a card: all its stages, and its fullest case beside another whole copy, with
    which every variant is compared in turns."""
    from studylib.forecasting.fitting import forecast_serving

    asked = spec.settings
    method = spec.method if spec.method.kind.trains else FULL
    settings = ForecastSettings.of(
        spec.model, method, adapter=spec.adapter_dtype, weights=spec.dtype, gpu=gpu.name
    )
    context, most = max(asked.prompt_tokens) + asked.new_tokens, max(asked.batch_sizes)
    with suppress(StudyError):
        served = forecast_serving(settings, context, most, NO_CUDA)
        copy = sum(served.parts.get(name, 0) for name in HELD[:2])
        return PlannedStage(
            seconds=in_seconds(serving_hours(spec, count_params(spec.model, False))),
            allocated_bytes=served.allocated_bytes + copy,
        )
    return PlannedStage()


def in_seconds(hours: Range) -> Range:
    return (hours * 3600).rounded()
