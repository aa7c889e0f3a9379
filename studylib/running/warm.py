"""Start a study's runs as forks of one process that has imported everything, or as ever.

The study tells that process (studylib.running.stand_by) each command, and hears of its end. Where
it cannot be had, or is lost, runs are started anew each (studylib.running.executor.launch), and
the reason is told once. A run whose process was lost with it is started again, when nothing of it
is left.

Not covered: other systems than Linux, whose libraries do not all survive a fork; other machines.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from studylib.metering.devices import visible_cards
from studylib.running.executor import Process, Start, launch, open_log, run_environment, share_cores
from studylib.running.stand_by import MOST_BYTES
from studylib.schema.settings import Hardware

Say = Callable[[str], None]
ENTRY = "studylib.commands.stand_by"


@contextmanager
def warm_starts(hardware: Hardware, say: Say) -> Iterator[Start]:
    """How a study's executor starts its runs; the process behind it ends with the block.

    say: told the reason, once, where runs are started anew each.
    """
    if not sys.platform.startswith("linux"):
        yield launch
        return
    stem = Stem(share_cores(hardware), bool(visible_cards()), say)
    try:
        yield stem.start
    finally:
        stem.close()


def wait_until_ready(start: Start, seconds: float) -> None:
    """Wait until the process behind `start` has imported all and tried the card, if it has one."""
    stem = getattr(start, "__self__", None)
    if isinstance(stem, Stem) and not stem.ready:
        stem.hear(seconds)


class Stem:
    """The study's end of the process that its runs are forked from."""

    def __init__(self, threads: int, card: bool, say: Say) -> None:
        self.threads, self.say = threads, say
        self.lost = self.ready = False
        self.codes: dict[int, int] = {}  # of the ended: the order's number to its exit code
        self._orders = 0
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self.channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environ = run_environment(threads) | {
            # So that whether CUDA is there is asked without starting it.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            # A thread of pyarrow's allocator, which is not the one in use, would be in the way.
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
            # As the kernel sets it, before what it has imported reads it.
            "MPLBACKEND": os.environ.get("MPLBACKEND")
            or "module://matplotlib_inline.backend_inline",
        }
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", ENTRY, str(other.fileno()), str(int(card))],
                stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors, env=environ,
                pass_fds=[other.fileno()], start_new_session=True,
            )  # fmt: skip

    def start(
        self,
        words: Sequence[str],
        folder: Path,
        threads: int,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """As `launch`, which it is for another number of threads and once the process is lost."""
        again = Again(words, folder, threads, environ, cwd)
        self.hear()
        if self.lost or threads != self.threads:
            return again()
        self._orders += 1
        order = {
            "number": self._orders,
            "words": list(words),
            "environ": run_environment(threads, environ),
            "cwd": None if cwd is None else str(cwd),
        }
        life, held = os.pipe()
        try:
            with open_log(folder) as log:
                socket.send_fds(self.channel, [json.dumps(order).encode()], [log.fileno(), held])
        except OSError as error:
            os.close(life)
            self.lose(f"its process cannot be told: {error}")
            return again()
        finally:
            os.close(held)
        return Forked(self, self._orders, life, again)

    def hear(self, seconds: float = 0.0) -> None:
        """Take in what was told; wait for it up to so many seconds."""
        while not self.lost and select.select([self.channel], [], [], seconds)[0]:
            seconds = 0.0
            try:
                told = self.channel.recv(MOST_BYTES)
            except OSError:
                told = b""
            message: dict[str, Any] = json.loads(told) if told else {"unfit": self.last_error()}
            self.ready |= "ready" in message
            if "ended" in message:
                self.codes[message["ended"]] = message["code"]
            elif "unfit" in message:
                self.lose(message["unfit"])

    def signal(self, number: int, kind: int) -> None:
        try:
            self.channel.send(json.dumps({"number": number, "signal": kind}).encode())
        except OSError:
            self.hear()

    def lose(self, reason: str) -> None:
        self.lost = True
        self.say(f"  each run starts a new Python, which takes seconds longer: {reason}")

    def last_error(self) -> str:
        """How the process ended, in its own last line if it left one."""
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            return "the process that they were forked from closed its channel"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"the process that they were forked from ended with {code}"
        return f"{how}: {said}" if code > 0 and said else how

    def close(self) -> None:
        """It ends its forks and itself when the channel is closed; in its imports it is killed."""
        self.hear()
        self.channel.close()
        if not self.ready:
            self.process.kill()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()


class Again:
    """The same command in a new process."""

    def __init__(self, *asked: Any) -> None:
        self.asked = asked

    def __call__(self) -> Process:
        return launch(*self.asked)


class Forked:
    """A forked run, as the executor sees a subprocess.Popen.

    life: a pipe whose other end is open in the run's process and its kernel, and nowhere else.
    """

    def __init__(self, stem: Stem, number: int, life: int, again: Again) -> None:
        self.returncode: int | None = None
        self._stem, self._number, self._life, self._again = stem, number, life, again
        self._anew: Process | None = None
        self._terminated = False

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._find_out()
            if self.returncode is not None and self._life >= 0:
                os.close(self._life)
                self._life = -1
        return self.returncode

    def _find_out(self) -> int | None:
        if self._anew is not None:
            return self._anew.poll()
        self._stem.hear()
        if self._terminated and not self._stem.ready and not self._stem.lost:
            return -signal.SIGTERM  # told to start it, and to end it, that process has read neither
        code = self._stem.codes.pop(self._number, None)
        if code is None and self._stem.lost and select.select([self._life], [], [], 0)[0]:
            if self._terminated:
                return -signal.SIGTERM
            self._anew = self._again()
        return code

    def terminate(self) -> None:
        self._terminated = True
        if self._anew is not None:
            self._anew.terminate()
        else:
            self._stem.signal(self._number, signal.SIGTERM)

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code
