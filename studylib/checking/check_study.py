"""Do the study's own stages hold on this device: forecasts, and answers without repeated prefixes.

A training of each method, a few steps by studylib.training.train, against its forecast; and
lm-eval's own path against the shared prefixes on a bundled model. Nothing is downloaded.

Not covered: accuracy, several cards, real weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from studylib.checking.model_subject import checked_spec
from studylib.forecasting.job_forecast import job_settings, this_machine, trace_once
from studylib.inputs.data import prepare_data
from studylib.metering.allocator import release_leftovers
from studylib.modelling.methods import attach
from studylib.modelling.models import load_model
from studylib.schema.checks import CheckedFigure, Found, apply_rules
from studylib.schema.methods import ADAPTER, QUANTIZED, WHOLE
from studylib.schema.settings import (
    BASE,
    EvaluateSettings,
    LoraSettings,
    ModelRef,
    TrainSettings,
    parse_method,
)
from studylib.schema.spec import RunSpec

METHODS = (WHOLE, ADAPTER, QUANTIZED)
FORECAST_MODEL = "shape:Qwen2.5-0.5B"
FORECAST_STEPS = 8  # of which a run's warm-up takes 3
SEQ_LEN = 2048
FORECAST_TOLERANCE = 0.10
FORECAST_RULE = (
    f"each forecast peak within {100 * FORECAST_TOLERANCE:.0f} % of what the card shows (torch "
    "allocated, torch reserved, NVML); parts and the step's time beside their forecast, not judged"
)
ANSWERS_MODEL = "ladder:1.4m"
ANSWERS_TOLERANCE = 1e-3
ANSWERS_QUESTIONS = "almanac:old"
ANSWERS_LIMIT = 20
ANSWERS_RULE = (
    f"shared prefixes are used, no answer changes, log-likelihoods within {ANSWERS_TOLERANCE:g} "
    "of lm-eval's own path, in fp32"
)


def forecast_recipe(method: str, model: str, seq_len: int, dtype: str) -> RunSpec:
    recipe = TrainSettings(steps=FORECAST_STEPS, seq_len=seq_len, dtype=dtype)  # type: ignore
    return checked_spec(model, parse_method(method, LoraSettings()), recipe, 1e-5, "gpu-check")


def check_forecast(
    device: torch.device,
    method: str,
    model: str = FORECAST_MODEL,
    seq_len: int = SEQ_LEN,
    dtype: str = "bf16",
) -> Found:
    """A few real steps of one method against their forecast; on a CPU, live tensors stand in."""
    spec = forecast_recipe(method, model, seq_len, dtype)
    machine = this_machine()
    made = trace_once(job_settings(spec, machine), machine.here)
    measured = measure_training(spec, device)
    context = made.parts["cuda_context"]
    forecasts = {
        "live tensors": made.peak_bytes,
        "torch allocated": made.peak_allocated_bytes,
        "torch reserved": made.peak_bytes - context,
        "NVML": made.peak_bytes,
    }
    figures, rules = [], []
    for name, seen in measured["peaks"].items():
        error = forecasts[name] / seen - 1
        figures += [
            CheckedFigure(what=f"{name}, measured", value=seen, unit="bytes"),
            CheckedFigure(what=f"{name}, forecast", value=forecasts[name], unit="bytes"),
            CheckedFigure(what=f"{name}, forecast's error", value=error, unit="share"),
        ]
        rules.append((abs(error) <= FORECAST_TOLERANCE,
                      f"{name}: the forecast is {100 * error:+.0f} % off"))  # fmt: skip
    rules.append((bool(measured["peaks"]), "no peak could be read"))
    figures += part_figures(made.parts, measured)
    figures += time_figures(made.seconds_per_step if machine.gpu else None, measured["seconds"])
    return apply_rules(figures, *rules)


def part_figures(parts: dict[str, int], measured: dict[str, Any]) -> list[CheckedFigure]:
    """The parts that lie still and so can be measured: what is held between two steps."""
    held = sum(parts[name] for name in ("weights", "quantization_constants", "adapter"))
    known = {
        "weights and adapter": (held, measured["weights_bytes"]),
        "optimizer states": (parts["optimizer_states"], measured["states_bytes"]),
    }
    if measured["context_bytes"] is not None:
        known["CUDA context"] = (parts["cuda_context"], measured["context_bytes"])
    return [
        CheckedFigure(what=f"{name}, forecast's error", value=ours / seen - 1, unit="share")
        for name, (ours, seen) in known.items()
        if seen
    ]


def time_figures(expected: Any, seconds: float | None) -> list[CheckedFigure]:
    if seconds is None:
        return []
    figures = [CheckedFigure(what="clean step", value=seconds, unit="seconds")]
    if expected is None:
        words = "none: nothing is assumed about this device"
    else:
        place = "within" if expected.low <= seconds <= expected.high else "outside"
        words = f"{expected.low:.3g} to {expected.high:.3g} s, {place}"
    return [*figures, CheckedFigure(what="clean step, forecast", value=words)]


def measure_training(spec: RunSpec, device: torch.device) -> dict[str, Any]:
    """Peaks of one training by name, bytes held between its steps, and its clean step's seconds."""
    from studylib.metering.meter import Meter
    from studylib.training.train import StepLog, summarise_steps, train_model

    release_leftovers()
    recipe = spec.train
    loaded = load_model(
        spec.model_ref, spec.method, recipe.dtype, spec.seed, attention=recipe.attention
    )
    model = attach(loaded.model, spec.method, spec.seed)
    data = prepare_data(spec.data, spec.train, loaded.tokenizer, spec.seed)
    log, on_card = StepLog(), device.type == "cuda"
    with (
        tempfile.TemporaryDirectory() as folder,
        Meter(devices=[device.index or 0] if on_card else []) as meter,
        meter.stage("train"),
    ):
        train_model(model, data, spec, Path(folder), log, checkpoints=False)
    measure = meter.stages["train"]
    peaks = {
        "live tensors": log.memory.get("live_tensor_peak_bytes"),
        "torch allocated": measure.torch_peak_allocated_bytes if on_card else None,
        "torch reserved": measure.torch_peak_reserved_bytes if on_card else None,
        "NVML": measure.nvml_process_peak_bytes or measure.nvml_peak_bytes,
    }
    known = {name: peak for name, peak in peaks.items() if peak}
    context = known["NVML"] - known["torch reserved"] if "NVML" in known else None
    return {
        "peaks": known,
        "weights_bytes": log.memory["weights_bytes"],
        "states_bytes": log.memory["optimizer_states_bytes"],
        "context_bytes": context,
        "seconds": summarise_steps(log)["clean_step_seconds"],
    }


def check_answers(device: torch.device, limit: int = ANSWERS_LIMIT) -> Found:
    """lm-eval's own path and the shared prefixes over the same questions, the ladder's in fp32.

    limit: questions a subject.
    """
    from studylib.scoring.compare_lm import compare_wrappers
    from studylib.scoring.evaluate import build_lm
    from studylib.scoring.tasks import build_tasks

    asked = EvaluateSettings(questions=ANSWERS_QUESTIONS, scoring="text", shots=0)
    loaded = load_model(ModelRef.parse(ANSWERS_MODEL), BASE, "fp32")
    model = loaded.model.to(device)
    ours = build_lm(model, loaded.tokenizer)
    found = compare_wrappers(
        lambda: build_lm(model, loaded.tokenizer, stock=True),
        lambda: ours,
        build_tasks(ANSWERS_QUESTIONS, asked),
        limit,
    )
    apart = found.max_abs_loglikelihood_difference
    figures = [
        CheckedFigure(what="questions", value=found.items),
        CheckedFigure(what="answers changed", value=found.answers_changed),
        CheckedFigure(what="largest difference", value=apart),
        CheckedFigure(what="lm-eval's time over ours", value=found.time_ratio, unit="ratio"),
    ]
    return apply_rules(
        figures,
        (ours.fallback_reason is None, f"prefixes are not shared: {ours.fallback_reason}"),
        (found.answers_changed == 0, f"{found.answers_changed} answers changed"),
        (apart <= ANSWERS_TOLERANCE, f"a log-likelihood differs by {apart:.2g}"),
    )
