"""The search for what fits finds the edge, with few traces."""

from __future__ import annotations

import numpy as np
import pytest

from studylib.forecasting.fitting import (
    cache_bytes,
    forecast_evaluation,
    forecast_serving,
    largest_that_fits,
    last_fitting,
    least_bytes,
)
from studylib.forecasting.forecast import ForecastSettings
from studylib.metering.live import LiveBytes
from studylib.modelling.models import load_model
from studylib.modelling.skeleton import shape_config
from studylib.planning.cuda_terms import NO_CUDA
from studylib.schema.settings import BASE, ModelRef
from studylib.scoring.evaluate import build_lm


@pytest.mark.parametrize("limit", [0, 9, 10, 57, 58, 409, 410, 10_000])
def test_last_fitting_is_the_edge_of_a_growing_peak(limit):
    peaks = {value: max(10, value * value // 10 + 5) for value in range(1, 65)}
    asked = []

    def peak(value: int) -> int:
        asked.append(value)
        return peaks[value]

    fitting = [value for value, bytes_ in peaks.items() if bytes_ <= limit]
    assert last_fitting(range(1, 65), peak, limit) == (max(fitting) if fitting else None)
    assert len(asked) < 25


def test_the_largest_micro_batch_fits_and_one_more_does_not():
    settings = ForecastSettings(model="shape:pythia-70m", method="full", seq_len=2048)
    found = largest_that_fits(settings, "l4-24gb")
    assert found.limited_by_positions and found.seq_len == 2048
    assert found.micro_batch is not None
    usable = 22.03 * 1024**3
    for rows, fits in ((found.micro_batch, True), (found.micro_batch + 1, False)):
        need = least_bytes(settings.model_copy(update={"micro_batch": rows}))
        assert (need <= usable) == fits


def test_cache_of_llama_2_13b_is_its_textbook_size():
    assert cache_bytes(shape_config("llama-2-13b"), 1) == 2 * 40 * 5120 * 2
    assert cache_bytes(shape_config("llama-2-70b"), 1) == 2 * 80 * 1024 * 2


def test_evaluation_and_serving_need_less_than_training():
    settings = ForecastSettings(model="shape:smollm2-135m", method="full", checkpointing=False)
    trained = least_bytes(settings)
    scored = forecast_evaluation(settings, 2048)
    assert scored.peak_bytes < trained
    cache, logits = cache_bytes(shape_config("smollm2-135m"), 2048), 2048 * 49_152 * 2
    assert scored.allocated_bytes == pytest.approx(269e6 + cache + 2 * logits, rel=0.04)
    served = forecast_serving(settings, context_tokens=1024, requests=4)
    assert served.parts["kv_cache"] == cache_bytes(shape_config("smollm2-135m"), 4096)
    assert served.peak_bytes == sum(served.parts.values()) < trained


def test_an_embedding_that_was_trained_in_fp32_is_scored_in_the_models_16_bits():
    peaks = [
        forecast_evaluation(
            ForecastSettings(model="shape:llama-3.2-1b", method=method), 512, NO_CUDA
        ).allocated_bytes
        for method in ("lora", "lora-embed")
    ]
    assert peaks[1] - peaks[0] == pytest.approx(2 * 128_256 * 2_048, rel=0.01)


def test_a_scoring_pass_needs_what_the_engine_that_scores_takes():
    """On a processor, whose trace leaves the masks out (a seventh here), tensor by tensor."""
    loaded = load_model(ModelRef.parse("ladder:0.4m"), BASE, "fp32", 0)
    lm = build_lm(loaded.model, loaded.tokenizer)
    lm.tokens_per_pass, lm._is_checked = 512, True
    ids = np.random.default_rng(0).integers(0, 1024, (12, 128)).tolist()
    with LiveBytes() as live:
        lm._loglikelihood_tokens([(None, row[:1], row[1:]) for row in ids], disable_tqdm=True)
    settings = ForecastSettings(
        model="ladder:0.4m", method="full", weights="fp32", autocast=False, kernels="cpu"
    )
    assert 0.8 < forecast_evaluation(settings, 512).allocated_bytes / live.peak_bytes < 1
