"""Where things lie in a checkout of the study."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
REFERENCE = ROOT / "results" / "reference"
