"""What a command said when nothing was left to do, said again at once while nothing has changed.

To find that all runs of a study are done, its records, models and data are read. What was said then
is kept with the path, size and time of every file below the places that were read: a file more,
less or changed, another word or folder, another card, environment or package, and the command looks
again.

Not covered: whether nothing is left to do (studylib.running.runner).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from studylib.core.files import write_atomically
from studylib.core.places import NOTEBOOKS, PACKAGE, REFERENCE, cache_folder

FOLDER = "said"
OWN_PLACES = (PACKAGE, NOTEBOOKS, REFERENCE)
ENVIRONMENT = ("CUDA_", "HF_", "HOME", "OMP_", "PYTHON", "STUDY_", "XDG_")


def say_again() -> list[str] | None:
    """The lines of the same command's last answer; None where it has to look."""
    with suppress(OSError, ValueError, KeyError):
        kept = json.loads(kept_file().read_bytes())
        if kept["marks"] == mark_places(kept["places"]):
            return [str(line) for line in kept["lines"]]
    return None


def keep_said(lines: Iterable[str], places: Iterable[Path]) -> None:
    """Keep what this command said of these files and folders, and of the study's own."""
    with suppress(OSError):  # a full or read-only disk, a file just gone: the next one looks again
        named = [str(place.resolve()) for place in (*OWN_PLACES, *places)]
        content = {"lines": list(lines), "places": named, "marks": mark_places(named)}
        write_atomically(kept_file(), json.dumps(content).encode())


def kept_file() -> Path:
    """By the command's words and all around it that may change what they mean."""
    cards = sorted(path.name for path in Path("/dev").glob("nvidia*"))
    packages = Path(sysconfig.get_path("purelib")).stat().st_mtime_ns  # one more, or another
    values = sorted(one for one in os.environ.items() if one[0].startswith(ENVIRONMENT))
    around = [sys.argv[1:], str(Path.cwd()), sys.version, packages, cards, values]
    name = hashlib.sha256(json.dumps(around).encode()).hexdigest()
    return cache_folder(FOLDER) / f"{name}.json"


def mark_places(places: Iterable[str]) -> str:
    """A hash of path, size and time of each file."""
    found = sorted(mark for place in places for mark in mark_files_below(Path(place)))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def mark_files_below(place: Path) -> Iterator[tuple[str, int, int]]:
    """Of a file itself, or of all in a folder; what Python compiled is none of them."""
    files = [place] if not place.is_dir() else []
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if name != "__pycache__"]
        files += [Path(folder, name) for name in names]
    for file in files:
        stat = file.stat()
        yield str(file), stat.st_size, stat.st_mtime_ns
