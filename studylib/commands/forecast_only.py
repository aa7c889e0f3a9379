"""What a command does that trains nothing: say what it traces, import less.

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
    """The command, telling each step that is being traced on stderr, and `quick`."""

    @wraps(command)
    def called(*args: Any, **values: Any) -> None:
        teller = logging.StreamHandler(sys.stderr)
        teller.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("studylib.forecasting")
        logger.handlers, logger.propagate = [teller], False
        logger.setLevel(logging.INFO)
        with quick():
            command(*args, **values)

    return called


@contextmanager
def quick() -> Iterator[None]:
    """Keep torch's compiler out, look for no garbage, read the parts of each source once.

    bitsandbytes decorates functions with torch.compile, which imports the whole compiler (a second)
    for what no forecast calls. The libraries' million objects all stay: looking through them takes
    a fifth of the time, and as long again at every later collection, so none looks at them.
    """
    from studylib.inputs.parts import read_once

    with uncompiled(), uncollected(), read_once():
        try:
            yield
        finally:
            gc.freeze()


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
