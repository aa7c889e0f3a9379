"""The command `study forecasts`: what the reference report shows as forecast, traced again.

Not covered: what is forecast (studylib.forecasting.article_forecasts, run_forecasts).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def forecasts(
    reference: Annotated[
        Path | None, typer.Option(help="The reference results; results/reference.")
    ] = None,
) -> None:
    """Trace the article's 13B jobs, published peaks and the reference's own runs once more."""
    from studylib.core.places import REFERENCE
    from studylib.forecasting.article_forecasts import make_article_forecasts
    from studylib.forecasting.run_forecasts import refresh_forecasts
    from studylib.schema.forecast_book import FORECASTS
    from studylib.schema.records import read_records

    root = reference or REFERENCE
    print(make_article_forecasts(root / FORECASTS))
    for folder in sorted(path.parent for path in root.glob("*/runs")):
        print(refresh_forecasts(folder, read_records(folder / "runs")))
