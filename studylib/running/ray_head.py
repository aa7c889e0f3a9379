"""The head of a Ray cluster: whether it answers, and the messages where it does not.

Not covered: other machines that are lost (studylib.running.ray_executor sends their runs again).
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from studylib.core.errors import StudyError

ANSWER_SECONDS = 10.0
# Ray itself ends a process that has had no answer from the head for a minute, in its own words.
LOST_SECONDS = 20.0


class Head:
    """The process that a cluster hangs on, by HOST:PORT."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard = time.monotonic()

    def is_lost(self) -> bool:
        """Asks it. True once it has been silent for LOST_SECONDS."""
        with suppress(OSError):
            knock(self.address)
            self.heard = time.monotonic()
        return time.monotonic() - self.heard > LOST_SECONDS


def knock(address: str) -> None:
    """OSError where nobody answers at HOST:PORT; other forms of an address are Ray's to find."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


def refuse_silent(address: str) -> None:
    """Raise where nobody answers: Ray itself would try for minutes."""
    try:
        knock(address)
    except OSError as error:
        raise not_taken(address, error.strerror or str(error)) from None


def not_taken(address: str, reason: str) -> StudyError:
    return StudyError(
        address,
        f"no Ray cluster takes this study there ({reason})",
        "Start Ray with `ray start --head`, and on other machines `ray start --address HOST:6379`, "
        "with the same versions of Python and Ray everywhere.",
    )


def head_lost(address: str | None) -> StudyError:
    return StudyError(
        address or "Ray",
        f"the cluster's head is lost: it has been silent for {LOST_SECONDS:.0f} seconds",
        "Start the cluster again, then the same command: what came home is kept.",
    )
