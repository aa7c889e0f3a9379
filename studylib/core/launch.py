"""Which processes train one run together: what the study's own launcher says, and nothing else.

Launchers and schedulers leave WORLD_SIZE, RANK and LOCAL_RANK in the environments of the shells
that they start, and the libraries take them for one process of several: a run alone would then do
a part of each step, wait for others, or compute on another card.

Not covered: starting the processes (studylib.training.distributed).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from studylib.core.errors import StudyError

LAUNCHED = "STUDY_LAUNCHED"  # set for the processes of a training on several cards
# What torch, accelerate and transformers take for one process of several.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "LOCAL_RANK")
DIVIDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def mark_launched(environ: MutableMapping[str, str]) -> None:
    """Let processes that are started with this environment know whose they are."""
    environ[LAUNCHED] = "1"


def is_launched(environ: Mapping[str, str] = os.environ) -> bool:
    return LAUNCHED in environ


def processes(environ: Mapping[str, str] = os.environ) -> int:
    """How many processes train this run together, one a card."""
    return int(environ.get("WORLD_SIZE", "1")) if is_launched(environ) else 1


def local_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """The number, among its machine's, of a process that is one of several; else None."""
    rank = environ.get("LOCAL_RANK") if is_launched(environ) else None
    return None if rank is None else int(rank)


def sharded(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher divides the model over the processes."""
    return is_launched(environ) and bool(divisions(environ))


def divisions(environ: Mapping[str, str]) -> list[str]:
    return [name for name in DIVIDED if environ.get(name, "").lower() == "true"]


def refuse_left_over(environ: Mapping[str, str] = os.environ) -> None:
    """Raise StudyError where another launcher's variables would change what this process does."""
    if is_launched(environ):
        return
    found = [name for name in RANKS if name in environ]
    found += [name for name in SIZES if environ.get(name, "1") != "1"]
    found += divisions(environ)
    if found:
        raise StudyError(
            ", ".join(f"{name}={environ[name]}" for name in found),
            "another launcher left this in the environment, and the study starts the processes of "
            "a run itself",
            f"Start anew after: unset {' '.join(found)}",
        )
