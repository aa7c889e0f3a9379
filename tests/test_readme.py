"""The README says what the report says, and nothing else of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from studylib.core.errors import StudyError
from studylib.reporting.readme import END, START, fill_findings

REPORT = """# Title

## The answer

LoRA is 12 points behind.

Tried on one machine.

### The claims

| method | accuracy |
|---|---|
| full | 85 |

![Accuracy against memory](figures/main.svg)

## Track main

| other | table |
"""


def test_findings_are_the_reports_first_screen():
    readme = f"# Study\n\n{START}\nold\n{END}\n\n## Two commands\n"
    filled = fill_findings(readme, REPORT)
    assert filled.startswith("# Study\n") and filled.endswith("## Two commands\n")
    for words in ("12 points behind", "one machine", "| full | 85 |", "figures/main.svg"):
        assert words in filled
    for words in ("old", "other", "## Track main", "# Title"):
        assert words not in filled
    assert fill_findings(filled, REPORT) == filled


def test_readme_without_its_marks_is_refused():
    with pytest.raises(StudyError, match="marks"):
        fill_findings("# Study", REPORT)


def test_readme_has_its_marks():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert readme.count(START) == readme.count(END) == 1
