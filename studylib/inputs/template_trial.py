"""A chat template's first conversation, rendered where it can do no harm.

A template comes with a model and is a program, if one without files or a network: transformers
runs it in Jinja's sandbox, which bounds neither time nor memory. So the first text that it writes
is written in a fork that may take so long and so much, and ends with it.

Not covered: what a template writes (studylib.inputs.templates); one that turns greedy at a later
conversation.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from studylib.core.errors import StudyError

MOST_SECONDS = 20
MOST_BYTES = 2 << 30
TOO_MUCH = 3  # the fork's exit code where it was refused more memory
_tried: set[str] = set()


def try_template(template: str, write: Callable[[], object]) -> None:
    """Raise StudyError where a template takes too much; tried once each, and nothing is kept of
    what it wrote. Faults of other kinds are left to the caller, who meets them too."""
    if template in _tried:
        return
    pid = os.fork()
    if pid == 0:
        write_bounded(write)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == -signal.SIGALRM:
        raise too_greedy(f"more than {MOST_SECONDS} seconds")
    if code in (TOO_MUCH, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT):
        raise too_greedy(f"more than {MOST_BYTES / 1e9:.1f} GB")
    _tried.add(template)


def write_bounded(write: Callable[[], object]) -> None:
    """In the fork: never returns."""
    code = 0
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(MOST_SECONDS)
        write()
    except MemoryError:
        code = TOO_MUCH
    except BaseException:  # whatever it is, the parent meets it too: no handler may run twice
        pass
    finally:
        os._exit(code)


def too_greedy(how: str) -> StudyError:
    return StudyError(
        "data.template = chat",
        f"the model's chat template takes {how} for one conversation",
        "Do not use this template: write data.template: alpaca or plain.",
    )
