"""What a command does that forecasts and trains nothing: say what it traces, import less.

Not covered: forecasting (studylib.forecasting).
"""

from __future__ import annotations

import logging
import os
import sys


def forecast_only() -> None:
    """Tell each step that is being traced on stderr, and keep torch's compiler out.

    bitsandbytes decorates functions with torch.compile, which imports the whole compiler (a second)
    for what no forecast calls.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    teller = logging.StreamHandler(sys.stderr)
    teller.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("studylib.forecasting")
    logger.handlers, logger.propagate = [teller], False
    logger.setLevel(logging.INFO)
