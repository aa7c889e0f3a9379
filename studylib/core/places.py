"""Where things lie in a checkout of the study."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "studylib"  # its data files lie here: profiles, claims, prices, shapes
NOTEBOOKS = ROOT / "notebooks"
REFERENCE = ROOT / "results" / "reference"


def python_path() -> str:
    """PYTHONPATH for another process that is to find this package, from wherever it starts."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
