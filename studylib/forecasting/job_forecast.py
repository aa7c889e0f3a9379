"""A run's training as the forecast of a step: on which machine, with which settings and model.

The machine is this one, or a card and a number of them that one thinks of renting.

Not covered: the forecast itself (studylib.forecasting.forecast), what follows for a study
(studylib.forecasting.prospects).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache, partial
from typing import Any, Literal

from studylib.core.errors import StudyError
from studylib.forecasting.calibration import learn_terms
from studylib.forecasting.fullest import find_fullest
from studylib.forecasting.job import Forecast, ForecastSettings
from studylib.forecasting.kept_forecasts import config_mark, keep_forecast, may_be_kept
from studylib.forecasting.side_by_side import make_ahead
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.data import row_multiple
from studylib.metering.devices import describe_devices, shows_no_card
from studylib.metering.environment import device_name
from studylib.modelling.attention import MASKED
from studylib.planning.catalog import Offer, find_gpu, load_prices, match_gpu, shape_of_hub
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import Efficiency
from studylib.schema.profile import RunSpec
from studylib.schema.settings import FULL, Frozen, MethodSettings, ModelRef, TrainSettings


class Machine(Frozen):
    """Where runs would be. memory_bytes: of one card; without cards (0), what the host has free.

    gpu: the catalog's name; None for a card that it lacks, of which nothing is assumed about speed.
    here: whether it is this machine.
    """

    gpu: str | None
    cards: int
    memory_bytes: int
    here: bool = True


class ModelSize(Frozen):
    """Parameters of a model without an adapter."""

    total_params: int


def this_machine() -> Machine:
    """The cards that torch sees, or the host. Leaves no context on a card, see device_name."""
    import psutil

    host = Machine(gpu=None, cards=0, memory_bytes=psutil.virtual_memory().available)
    if shows_no_card():
        return host
    import torch

    if not torch.cuda.is_available():
        return host
    gpu = match_gpu(device_name())
    first = next((c for c in describe_devices()[0] if c["cuda_ordinal"] == 0), {})
    total = first.get("memory_total_bytes")
    return Machine(
        gpu=gpu.name if gpu else None,
        cards=torch.cuda.device_count(),
        memory_bytes=total - (first.get("memory_reserved_bytes") or 0)
        if total
        else torch.cuda.get_device_properties(0).total_memory,
    )


def rented_machine(gpu: str, cards: int) -> Machine:
    """A machine of the catalog's card; StudyError for a card that it lacks."""
    if cards < 1:
        raise StudyError(f"{cards} cards", "a rented machine has 1 or more", "Write H100:1.")
    card = find_gpu(gpu)
    return Machine(gpu=card.name, cards=cards, memory_bytes=card.usable_bytes, here=False)


def job_settings(spec: RunSpec, machine: Machine, sure: bool = False) -> ForecastSettings:
    """The forecast's settings of a run: what studylib.training.train does with its recipe there.

    sure: raise StudyError where a processor's fullest micro-batch is not known, and do not take all
    tokens as learned.
    """
    gpus = max(spec.gpus, 1)
    sharding: Literal["none", "fsdp"] = (
        "none" if gpus == 1 or spec.hardware.sharding == "none" else "fsdp"
    )
    made = recipe_settings(spec.model, spec.method, spec.train, gpus, sharding, machine)
    if not machine.cards and sharding == "none" and spec.train.loss == "chunked":
        with nullcontext() if sure else suppress(StudyError):
            made = made.model_copy(update={"fullest": find_fullest(spec)})
    return made


def recipe_settings(
    model: str,
    method: MethodSettings,
    recipe: TrainSettings,
    gpus: int,
    sharding: Literal["none", "fsdp"],
    machine: Machine,
) -> ForecastSettings:
    """The same of a model, a method and a recipe. gpus: cards that share the training."""
    masters = recipe.master_weights and not method.kind.adapter
    half = recipe.dtype == "bf16"
    optimizer: str = method.kind.optimizer or recipe.optimizer
    if not machine.cards:  # what PyTorch chooses on a CPU; there, nothing is paged
        optimizer = "adamw-loop" if optimizer == "adamw" else optimizer.removeprefix("paged-")
    return ForecastSettings.of(
        model,
        method,
        micro_batch=recipe.micro_batch,
        seq_len=recipe.seq_len + -recipe.seq_len % row_multiple(machine.cards > 0),
        accumulation=max(1, recipe.accumulation // gpus),
        attention=recipe.attention,
        masked=recipe.attention in MASKED,  # the others keep examples apart without a mask
        weights="fp32" if masters else recipe.dtype,
        master_weights=masters,
        autocast=half,
        optimizer=optimizer,
        checkpointing=recipe.checkpointing,
        loss="full" if recipe.loss == "full" else "chunked",
        gpus=gpus,
        sharding=sharding,
        gpu=machine.gpu or "a100-80gb",
        kernels="cuda" if machine.cards else "cpu",
    )


def trace_once(
    settings: ForecastSettings,
    here: bool,
    efficiency: Efficiency | None = None,
    cuda: CudaTerms | None = None,
    tokens: int | None = None,
    prices: tuple[Offer, ...] | None = None,
) -> Forecast:
    """The forecast of a job, kept on disk; a model that is elsewhere is not asked for if known.

    here: whether the model's own configuration is read, for a published shape's hub model too.
    The others: as studylib.forecasting.forecast.forecast has them.
    """
    learned, terms = learn_terms(settings.gpu)
    return trace_with(settings, here, efficiency or learned, cuda or terms, tokens, prices)


@lru_cache(maxsize=256)
def trace_with(
    settings: ForecastSettings,
    here: bool,
    efficiency: Efficiency,
    cuda: CudaTerms,
    tokens: int | None,
    prices: tuple[Offer, ...] | None,
) -> Forecast:
    """The same with terms that are known."""

    def make() -> Forecast:
        logging.getLogger(__name__).info("tracing a step: %s", settings.in_words)
        from studylib.forecasting.forecast import forecast

        config = find_config(settings.model, here)
        offers = None if prices is None else list(prices)
        return forecast(settings, offers, efficiency, cuda, config, tokens)

    question = forecast_question(settings, here, efficiency, cuda, tokens, prices)
    return keep_forecast(question, Forecast, make)


def forecast_question(
    settings: ForecastSettings,
    here: bool,
    efficiency: Efficiency,
    cuda: CudaTerms,
    tokens: int | None = None,
    prices: Sequence[Offer] | None = None,
) -> dict[str, Any]:
    """All that the answer of trace_with follows from."""
    offers = load_prices() if prices is None else prices
    return {
        "settings": settings.model_dump(mode="json"),
        "config": config_mark(settings.model, here),
        "efficiency": efficiency.model_dump(),
        "cuda": cuda.model_dump(),
        "tokens": tokens,
        "offers": [o.model_dump(mode="json") for o in offers if o.gpu == settings.gpu],
    }


def trace_ahead(jobs: Iterable[ForecastSettings], here: bool) -> None:
    """Make the forecasts of these jobs that are not kept yet, on all cores."""
    new = [
        job
        for job in dict.fromkeys(jobs)
        if may_be_kept(forecast_question(job, here, *learn_terms(job.gpu)), Forecast)
    ]
    make_ahead([partial(trace_once, job, here) for job in new])


def find_config(model: str, here: bool) -> Any:
    """The model's configuration; a published shape stands in where the hub's is not at hand."""
    from studylib.modelling.skeleton import config_of, read_config

    ref = ModelRef.parse(model)
    shape = shape_of_hub(ref.name) if ref.kind == "hub" else None
    if shape is not None and not here:
        return config_of(shape)
    try:
        return read_config(ref)
    except StudyError:
        if shape is None:
            raise
        return config_of(shape)


@lru_cache(maxsize=64)
def count_params(model: str, here: bool) -> int:
    """Parameters of a model of which no training was forecast; a rung's stand beside it."""
    ref = ModelRef.parse(model)
    if ref.kind == "ladder":
        return json.loads((ladder_folder(ref.name) / "ladder.json").read_bytes())["parameters"]
    question = {"model": model, "config": config_mark(model, here)}
    return keep_forecast(question, ModelSize, lambda: count_anew(model, here)).total_params


def count_anew(model: str, here: bool) -> ModelSize:
    from studylib.forecasting.trace import count_base
    from studylib.modelling.skeleton import build_meta

    built = build_meta(find_config(model, here), FULL, "bf16", "eager")
    return ModelSize(total_params=count_base(built)[1])
