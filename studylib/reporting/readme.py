"""The README's first screen: the report's.

It is made of the report's own blocks, so the two cannot differ.

Not covered: the report (studylib.reporting.compose).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.core.errors import StudyError
from studylib.reporting.blocks import Block, to_markdown

START = "<!-- findings: written by `make report` from the reference records -->"
END = "<!-- /findings -->"


def fill_findings(readme: str, findings: Sequence[Block]) -> str:
    """The README with what stands between its two marks made anew from the report's blocks."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise StudyError("README.md", "the marks around its findings are missing",
                         f"Put {START} and {END} on lines of their own.")  # fmt: skip
    return f"{before}{START}\n{to_markdown(findings)}{END}{after}"
