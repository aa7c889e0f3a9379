"""One traced step a model and method, read for every card and number of cards: what advice needs.

The trace does not depend on the card, so that all cards together take hardly longer than one
forecast. Every figure equals studylib.forecasting.forecast's for the same settings.

Not covered: prices and records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from studylib.core.errors import StudyError
from studylib.forecasting.calibration import learn_terms
from studylib.forecasting.depth import trace_depth
from studylib.forecasting.forecast import ForecastSettings, bytes_on_disk
from studylib.forecasting.peaks import Peak, find_peak, shown_bytes
from studylib.forecasting.trace import Trace
from studylib.modelling.skeleton import read_config, text_config
from studylib.planning.case import Case, JobForecast, LeftOut, Sizes, Span
from studylib.planning.catalog import Gpu, find_gpu, load_gpus, load_shapes
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import forecast_seconds, ideal_seconds
from studylib.schema.methods import ADVISED, WHOLE
from studylib.schema.settings import ModelRef

Forecasts = tuple[list[JobForecast], list[Sizes], list[LeftOut]]
COUNTS = (1, 2, 4, 8)
SEQ_LEN = 2048


@lru_cache(maxsize=64)
def trace_model(model: str, method: str) -> tuple[ForecastSettings, Trace]:
    """The usual recipe's step of a model and method: one full row of 2,048 tokens, or as many
    as the model has positions."""
    config = read_config(ModelRef.parse(model))
    positions = getattr(text_config(config), "max_position_embeddings", None) or SEQ_LEN
    settings = ForecastSettings(model=model, method=method, seq_len=min(SEQ_LEN, positions))
    return settings, trace_depth(config, settings.step)


def foresee_jobs(
    models: Iterable[str],
    methods: Sequence[str],
    cards: Iterable[Gpu] | None = None,
    most_cards: int = 8,
) -> Forecasts:
    """Forecasts, sizes, and what could not be forecast.

    Of each card 1, 2, 4, 8 and the most allowed, up to the first number that holds the job.
    """
    jobs: list[JobForecast] = []
    sizes: list[Sizes] = []
    failed: list[LeftOut] = []
    chosen = list(load_gpus().values() if cards is None else cards)
    for model in models:
        for method in methods:
            try:
                settings, trace = trace_model(model, method)
            except StudyError as error:
                command = f"study forecast --model {model} --method {method}"
                failed.append(LeftOut(what=f"{method} of {model}", why=str(error), command=command))
                continue
            counts = sorted({n for n in COUNTS if n <= most_cards} | {most_cards})
            jobs += [j for card in chosen for j in foresee_card(settings, trace, card, counts)]
            sizes.append(count_sizes(settings, trace))
    return jobs, sizes, failed


def foresee_card(
    settings: ForecastSettings, trace: Trace, card: Gpu, counts: Sequence[int]
) -> list[JobForecast]:
    """One forecast for each number of cards, up to the first that holds the job."""
    dtype = "bf16" if settings.step.half else "fp32"
    efficiency, cuda = learn_terms(card.name)
    step = forecast_seconds(ideal_seconds(trace.operators, card, dtype), efficiency)  # type: ignore
    found = []
    for gpus in counts:
        peak = peak_on(settings.model, settings.method, gpus, card.name, cuda)
        tokens = settings.micro_batch * settings.seq_len * gpus
        found.append(
            JobForecast(
                id=f"forecast:{settings.model}/{settings.method}/{gpus}x{card.name}",
                model=settings.model,
                method=settings.method,
                gpu=card.name,
                gpus=gpus,
                peak_bytes=shown_bytes(peak.peak_bytes, peak.least_bytes, card.usable_bytes),
                usable_bytes=card.usable_bytes,
                seconds_per_token=Span(
                    low=step.low / tokens, mid=step.mid / tokens, high=step.high / tokens
                ),
            )
        )
        if found[-1].fits:
            break
    return found


@lru_cache(maxsize=256)
def peak_on(model: str, method: str, gpus: int, gpu: str, cuda: CudaTerms) -> Peak:
    """The fullest moment of one of `gpus` cards; more than one means FSDP."""
    settings, trace = trace_model(model, method)
    sharding = "fsdp" if gpus > 1 else "none"
    sharded = settings.model_copy(update={"gpus": gpus, "gpu": gpu, "sharding": sharding})
    return find_peak(trace, sharded, cuda)


def count_sizes(settings: ForecastSettings, trace: Trace) -> Sizes:
    """A whole variant and an adapter in bf16, as they are served; the base as it is kept."""
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


def normal_model(model: str) -> str:
    """The same name for the same model: shapes in lower case."""
    ref = ModelRef.parse(model)
    return f"shape:{ref.name.lower()}" if ref.kind == "shape" else str(ref)


def foresee_case(case: Case) -> Forecasts:
    """All that the reader's model needs with each method, and its smaller sibling in full.

    StudyError: the model's configuration cannot be read.
    """
    read_config(ModelRef.parse(case.model))
    cards = list(load_gpus().values()) if case.gpu is None else [find_gpu(case.gpu)]
    return foresee_with_sibling(case.model, cards, 8 if case.gpu is None else case.gpus)


def foresee_with_sibling(model: str, cards: Sequence[Gpu], most_cards: int = 8) -> Forecasts:
    """A model's advised methods, and full fine-tuning of the next smaller one of its series."""
    jobs, sizes, failed = foresee_jobs([model], ADVISED, cards, most_cards)
    sibling = smaller_sibling(model)
    if sibling:
        more = foresee_jobs([sibling], [WHOLE], cards, most_cards)
        jobs, sizes, failed = [*jobs, *more[0]], [*sizes, *more[1]], [*failed, *more[2]]
    return jobs, sizes, failed
