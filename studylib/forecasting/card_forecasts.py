"""One traced step a model and method, read for every card and number of cards: what advice needs.

The trace does not depend on the card, so that all cards together take hardly longer than one
forecast. Every figure equals studylib.forecasting.forecast's for the same settings. They are kept
on disk.

Not covered: prices and records.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from studylib.core.errors import StudyError
from studylib.forecasting.calibration import learn_terms
from studylib.forecasting.job import ForecastSettings, StepSettings
from studylib.forecasting.job_forecast import find_config
from studylib.forecasting.kept_forecasts import config_mark, keep_forecast
from studylib.forecasting.usual_recipe import usual_settings
from studylib.planning.case import Case, JobForecast, LeftOut, Sizes
from studylib.planning.catalog import Gpu, find_gpu, load_gpus, load_shapes
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.fit import judge_fit
from studylib.planning.roofline import ideal_seconds, repeat_passes
from studylib.schema.methods import METHODS, WHOLE
from studylib.schema.ranges import exactly
from studylib.schema.settings import Frozen, ModelRef

if TYPE_CHECKING:
    from studylib.forecasting.trace import Trace

Forecasts = tuple[list[JobForecast], list[Sizes], list[LeftOut]]
COUNTS = (1, 2, 4, 8)


class MethodForecast(Frozen):
    """One model and method on some cards, and its bytes."""

    jobs: tuple[JobForecast, ...]
    sizes: Sizes


def trace_model(settings: ForecastSettings) -> Trace:
    """The step of a job; that of another card, or of more of them, is mostly the same one."""
    return trace_once_each(settings.model, settings.step)


@lru_cache(maxsize=64)
def trace_once_each(model: str, step: StepSettings) -> Trace:
    from studylib.forecasting.depth import trace_depth

    label = METHODS[step.method.name].in_words
    logging.getLogger(__name__).info("tracing a step: %s, %s", model, label)
    return trace_depth(find_config(model, True), step)


def foresee_jobs(
    models: Iterable[str],
    methods: Sequence[str],
    cards: Iterable[Gpu] | None = None,
    most_cards: int = 8,
) -> Forecasts:
    """Forecasts by the usual recipe, sizes, and what could not be forecast.

    Of each card 1, 2, 4, 8 and the most allowed, up to the first number that holds the job.
    """
    jobs: list[JobForecast] = []
    sizes: list[Sizes] = []
    failed: list[LeftOut] = []
    chosen = tuple(load_gpus().values() if cards is None else cards)
    counts = tuple(sorted({n for n in COUNTS if n <= most_cards} | {most_cards}))
    for model in models:
        for method in methods:
            try:
                found = foresee_method(model, method, chosen, counts)
            except StudyError as error:
                command = f"study forecast --model {model} --method {method}"
                failed.append(LeftOut(what=f"{method} of {model}", why=str(error), command=command))
                continue
            jobs += found.jobs
            sizes.append(found.sizes)
    return jobs, sizes, failed


def foresee_method(
    model: str, method: str, cards: Sequence[Gpu], counts: Sequence[int]
) -> MethodForecast:
    """One model and method on all cards, kept on disk."""
    usual = {card.name: usual_settings(model, method, card.name) for card in cards}
    learned = {card.name: learn_terms(card.name) for card in cards}

    def make() -> MethodForecast:
        jobs = [j for card in cards for j in foresee_card(usual[card.name], card, counts)]
        first = next(iter(usual.values()))
        return MethodForecast(jobs=tuple(jobs), sizes=count_sizes(first, trace_model(first)))

    question = {
        "settings": [settings.model_dump(mode="json") for settings in usual.values()],
        "terms": [[term.model_dump() for term in terms] for terms in learned.values()],
        "counts": list(counts),
        "config": config_mark(model, True),
    }
    return keep_forecast(question, MethodForecast, make)


def foresee_card(settings: ForecastSettings, card: Gpu, counts: Sequence[int]) -> list[JobForecast]:
    """One forecast for each number of cards, up to the first that holds the job for sure."""
    from studylib.forecasting.forecast import TRACED_PASSES
    from studylib.forecasting.peaks import find_peak

    trace = trace_model(settings)
    dtype = "bf16" if settings.step.half else "fp32"
    efficiency, cuda = learn_terms(card.name)
    passes = settings.accumulation / min(settings.accumulation, TRACED_PASSES)
    operators = repeat_passes(trace.operators, passes)
    step = exactly(ideal_seconds(operators, card, dtype)) / efficiency  # type: ignore
    found = []
    for gpus in counts:
        sharding = "fsdp" if gpus > 1 else "none"
        sharded = settings.model_copy(update={"gpus": gpus, "sharding": sharding})
        peak = find_peak(trace_model(sharded), sharded, cuda)
        fit = judge_fit(peak.peak_bytes, peak.least_bytes, card.usable_bytes, gpus)
        tokens = settings.micro_batch * settings.seq_len * settings.accumulation * gpus
        found.append(
            JobForecast(
                id=f"forecast:{settings.model}/{settings.method}/{gpus}x{card.name}",
                model=settings.model,
                method=settings.method,
                gpu=card.name,
                gpus=gpus,
                fit=fit,
                speed_source=efficiency.source,
                seconds_per_token=step / tokens,
            )
        )
        if fit.word == "fits":
            break
    return found


def count_sizes(settings: ForecastSettings, trace: Trace) -> Sizes:
    """A whole variant and an adapter in bf16, as they are served; the base as it is kept."""
    from studylib.forecasting.forecast import bytes_on_disk
    from studylib.forecasting.peaks import find_peak

    disk = bytes_on_disk(trace, settings)
    adapter = disk["adapter"]["bf16"] if "adapter" in disk else None
    params = trace.total_params  # without the adapter's
    parts = find_peak(trace, settings, CudaTerms()).parts
    quantized = settings.method_settings.kind.quantized
    kept = parts["weights"] + parts["quantization_constants"]
    return Sizes(
        id=f"count:{settings.model}/{settings.method}",
        model=settings.model,
        method=settings.method,
        params=params,
        whole_bytes=2 * params,
        base_bytes=kept if quantized else 2 * params,
        adapter_bytes=adapter,
    )


def smaller_sibling(model: str) -> str | None:
    """The next smaller model of the same series, or None: a shape, or a bundled model."""
    ref = ModelRef.parse(model)
    if ref.kind == "ladder":
        from studylib.inputs.almanac import ladder_names

        names = sorted(ladder_names(), key=lambda name: float(name.rstrip("m")))
        at = names.index(ref.name) if ref.name in names else 0
        return f"ladder:{names[at - 1]}" if at else None
    name = ref.name.rstrip("/").rsplit("/", 1)[-1].lower()
    shapes = load_shapes()
    own = max((s for s in shapes if name.startswith(s)), key=len, default=None)
    if own is None:
        return None
    series = own.rpartition("-")[0]
    total = shapes[own].total_params
    smaller = [
        key for key, s in shapes.items()
        if key.rpartition("-")[0] == series and s.total_params < total
    ]  # fmt: skip
    best = max(smaller, key=lambda key: shapes[key].total_params, default=None)
    return f"shape:{best}" if best else None


def foresee_case(case: Case) -> Forecasts:
    """All that the reader's model needs with each method, and its smaller sibling in full.

    StudyError: the model's configuration cannot be read.
    """
    if config_mark(case.model, True) is None:
        from studylib.modelling.skeleton import read_config

        read_config(ModelRef.parse(case.model))
    cards = list(load_gpus().values()) if case.gpu is None else [find_gpu(case.gpu)]
    most = 8 if case.gpu is None else case.gpus
    jobs, sizes, failed = foresee_jobs([case.model], case.weighed, cards, most)
    if sibling := smaller_sibling(case.model):
        more = foresee_jobs([sibling], [WHOLE], cards, most)
        jobs, sizes, failed = [*jobs, *more[0]], [*sizes, *more[1]], [*failed, *more[2]]
    return jobs, sizes, failed
