"""Which checkpoint a training goes on from: the newest one that is whole, and holds no stranger.

A kill or a full disk can fall into its writing, and a machine that loses its power can cut files
that were closed long before. Trainer keeps the states of optimizer, schedule and random numbers as
pickles inside archives; torch reads them with numbers and tensors alone allowed.

Not covered: folders inside a checkpoint, where the parts of a divided model lie that several
processes read for themselves.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch

from studylib.core.errors import StudyError
from studylib.inputs.sources import is_whole

STATE = "trainer_state.json"  # the last file that Trainer writes
PICKLED = ("*.pt", "*.pth")
SETTINGS = "training_args.bin"  # beside every checkpoint, and never read again
# What transformers itself allows: the state of numpy's random numbers, by numpy's old and new name.
KNOWN_GLOBALS = frozenset(
    {"numpy.ndarray", "numpy.dtype", "numpy.dtypes.UInt32DType", "_codecs.encode"}
    | {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
)


def checkpoint_step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0


def newest_checkpoint(folder: Path, logged_steps: int) -> Path | None:
    """The newest whole checkpoint that is not ahead of the step log.

    A kill can fall between the checkpoint and the log. StudyError where that checkpoint holds a
    pickle that would do more than give numbers.
    """
    found = sorted(folder.glob("checkpoint-*"), key=checkpoint_step, reverse=True)
    behind = (path for path in found if checkpoint_step(path) <= logged_steps)
    newest = next((path for path in behind if is_whole_checkpoint(path)), None)
    if newest is not None:
        refuse_strangers(newest)
    return newest


def is_whole_checkpoint(folder: Path) -> bool:
    """Whether every file of a checkpoint is as long as it says, and its last one is there."""
    try:
        json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError):
        return False
    return all(map(is_whole, folder.glob("*.safetensors"))) and all(
        zipfile.is_zipfile(path) for path in find_pickled(folder)
    )


def find_pickled(folder: Path) -> list[Path]:
    return sorted(path for form in PICKLED for path in folder.glob(form))


def refuse_strangers(folder: Path) -> None:
    """Raise StudyError that names weights kept as a pickle, or a pickle with anything but tensors
    and numbers in it; none of it is carried out."""
    again = "It is not as the study wrote it: remove the run's folder `work` and start again."
    for path in sorted(folder.glob("*.bin")):
        if path.name != SETTINGS:
            raise StudyError(path, "weights are read from safetensors, never from pickles", again)
    for path in find_pickled(folder):
        strange = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - KNOWN_GLOBALS
        if strange:
            raise StudyError(
                path,
                f"this checkpoint asks for code ({sorted(strange)[0]})",
                again,
            )
