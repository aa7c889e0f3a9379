"""The README says what the report says, and nothing else of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from studylib.core.errors import StudyError
from studylib.reporting.blocks import Heading, Picture, Table, Text, to_markdown, words
from studylib.reporting.report import END, START, fill_findings

FINDINGS = [Text("LoRA is 12 points behind."), Heading(3, "The claims"),
            Table(words("method", "accuracy"), (("full", "85"),)),
            Picture("Accuracy against memory", "figures/main.svg")]  # fmt: skip


def test_findings_are_the_reports_first_screen():
    readme = f"# Study\n\n{START}\nold\n{END}\n\n## Two commands\n"
    filled = fill_findings(readme, FINDINGS)
    assert filled == readme.replace("old\n", to_markdown(FINDINGS))
    assert fill_findings(filled, FINDINGS) == filled


def test_readme_without_its_marks_is_refused():
    with pytest.raises(StudyError, match="marks"):
        fill_findings("# Study", FINDINGS)


def test_readme_has_its_marks():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert readme.count(START) == readme.count(END) == 1
