"""What a command does that forecasts and trains nothing: say what it traces, import less.

Not covered: forecasting (studylib.forecasting).
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from studylib.core.uncollected import uncollected

SWITCH = "TORCHDYNAMO_DISABLE"  # torch's own


def forecast_only(command: Callable[..., None]) -> Callable[..., None]:
    """The command, telling each step that is being traced on stderr, torch's compiler kept out.

    bitsandbytes decorates functions with torch.compile, which imports the whole compiler (a second)
    for what no forecast calls. Nor is garbage looked for: the libraries' million objects all stay,
    and looking through them takes a fifth of the time, and as long again when the process ends.
    """

    @wraps(command)
    def called(*args: Any, **values: Any) -> None:
        teller = logging.StreamHandler(sys.stderr)
        teller.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("studylib.forecasting")
        logger.handlers, logger.propagate = [teller], False
        logger.setLevel(logging.INFO)
        with uncompiled(), uncollected():
            try:
                command(*args, **values)
            finally:
                gc.freeze()  # or all of it is looked through when collecting is on again

    return called


@contextmanager
def uncompiled() -> Iterator[None]:
    """Keep torch's compiler out unless the user says otherwise; afterwards it is as before, for
    what else this process does and starts."""
    ours = SWITCH not in os.environ
    os.environ.setdefault(SWITCH, "1")
    try:
        yield
    finally:
        if ours:
            os.environ.pop(SWITCH, None)
