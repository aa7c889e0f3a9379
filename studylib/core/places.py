"""Where things lie in a checkout of the study."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "studylib"  # its data files lie here: profiles, claims, prices, shapes
NOTEBOOKS = ROOT / "notebooks"
REFERENCE = ROOT / "results" / "reference"
