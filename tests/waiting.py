"""Waiting for what other processes and threads do: by a condition, never by a guess of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# No promise: a busy machine may take ten minutes for what takes half a one.
LONG_SECONDS = 900.0


def wait_for(condition: Callable[[], Any], seconds: float = LONG_SECONDS) -> Any:
    """The first true answer of `condition`; AssertionError if there is none within `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found
