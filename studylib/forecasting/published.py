"""Forecasts beside peaks that others measured and published, with the settings that they state.

Each case names its source. Some cannot be forecast: their settings are stated, but a step of
today's eager PyTorch is not what ran; the reason stands in `not_comparable`.

Not covered: published rows whose length, optimizer or batch is not stated.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Literal

from studylib.core.places import PACKAGE
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import ASSUMED
from studylib.schema.settings import Frozen

FILE = PACKAGE / "published_memory.json"


class Published(Frozen):
    """A published peak. counter: what torch counted as allocated, or as reserved."""

    case: str
    source: str
    model: str | None = None
    config: dict[str, Any] | None = None
    settings: dict[str, Any]
    published_bytes: int
    counter: Literal["allocated", "reserved"]
    not_comparable: str | None = None


class PublishedError(Frozen):
    """A forecast of a published case; error is relative, above 0 where the forecast is higher."""

    published: Published
    forecast_bytes: int

    @property
    def error(self) -> float:
        return self.forecast_bytes / self.published.published_bytes - 1


@lru_cache(maxsize=1)
def load_published() -> tuple[Published, ...]:
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(Published.model_validate(row) for row in rows)


def compare_published(published: Published) -> PublishedError:
    """Forecast a published case by the counter that its source used (2 to 4 seconds)."""
    from transformers import CONFIG_MAPPING

    from studylib.forecasting.forecast import ForecastSettings, forecast

    config = None
    if published.config is not None:
        numbers = dict(published.config)
        config = CONFIG_MAPPING[numbers.pop("model_type")](**numbers)
    settings = ForecastSettings.model_validate(
        {**published.settings, "model": published.model or f"path:{published.case}"}
    )
    made = forecast(settings, efficiency=ASSUMED, cuda=CudaTerms(), config=config)
    reserved = made.peak_bytes - made.parts["cuda_context"]
    counted = reserved if published.counter == "reserved" else made.peak_allocated_bytes
    return PublishedError(published=published, forecast_bytes=counted)
