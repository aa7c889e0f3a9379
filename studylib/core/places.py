"""Where things lie in a checkout of the study."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "studylib"  # its data files lie here: profiles, claims, prices, shapes
NOTEBOOKS = ROOT / "notebooks"
REFERENCE = ROOT / "results" / "reference"


def cache_folder(name: str) -> Path:
    """A folder of what can be made or fetched again: below STUDY_CACHE, else the user's cache."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "studylib"
    folder = Path(os.environ.get("STUDY_CACHE") or usual) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def python_path() -> str:
    """PYTHONPATH for another process that is to find this package, from wherever it starts."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
