"""Two processes that train together, forked from one that has imported torch already.

The study's launcher takes ten seconds of a processor to start two; what they then do is the same.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from studylib.core.launch import LAUNCHED

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["accelerate", "bitsandbytes", "studylib.training.train_worker"])


class Pair:
    """Both run target(*words) with a launcher's variables, as far as the first that fails."""

    def __init__(self, target: Callable[..., None], *words: Any, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.both = [
            FORKS.Process(target=begin, args=(rank, port, log, target, words)) for rank in (0, 1)
        ]
        for process in self.both:
            process.start()

    def poll(self) -> int | None:
        codes = [process.exitcode for process in self.both]
        if any(codes):
            self.terminate()
        return None if None in codes else max(codes, key=abs)

    def terminate(self) -> None:
        for process in self.both:
            process.terminate()

    def wait(self) -> int | None:
        """The first bad exit code, once both have ended."""
        while running := [p.sentinel for p in self.both if p.exitcode is None]:
            wait(running)
            self.poll()
        return self.poll()


def begin(rank: int, port: int, log: Path, target: Callable[..., None], words: Any) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LAUNCHED: 1}  # fmt: skip
    os.environ.update({name: str(value) for name, value in told.items()})
    with log.open("ab") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    target(*words)
