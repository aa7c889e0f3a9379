"""The command `study forecast-article`: the forecasts that the report shows, made again.

Not covered: what is forecast (studylib.forecasting.article_forecasts).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def forecast_article(
    out: Annotated[
        Path | None, typer.Option(help="Where to write; results/reference/forecasts.json.")
    ] = None,
) -> None:
    """Forecast the article's 13B jobs, a 24 GB card and published peaks for the report."""
    from studylib.core.places import REFERENCE
    from studylib.forecasting.article_forecasts import make_article_forecasts
    from studylib.schema.forecast_book import FORECASTS

    print(make_article_forecasts(out or REFERENCE / FORECASTS))
