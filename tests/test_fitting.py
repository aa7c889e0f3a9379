"""The search for what fits finds the edge, with few traces."""

from __future__ import annotations

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
from studylib.modelling.skeleton import shape_config


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
    scored = forecast_evaluation(settings)
    assert scored.peak_bytes < trained
    assert scored.tokens == 3440
    served = forecast_serving(settings, context_tokens=1024, requests=4)
    assert served.parts["kv_cache"] == cache_bytes(shape_config("smollm2-135m"), 4096)
    assert served.peak_bytes == sum(served.parts.values()) < trained
