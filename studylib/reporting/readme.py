"""The README's first screen: the report's.

It is taken from the report's own text, so the two cannot differ.

Not covered: the report (studylib.reporting.compose).
"""

from __future__ import annotations

from itertools import dropwhile, takewhile

from studylib.core.errors import StudyError

START = "<!-- findings: written by `make report` from the reference records -->"
END = "<!-- /findings -->"


def fill_findings(readme: str, report: str) -> str:
    """The README with what stands between its two marks made anew from REPORT.md's text."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise StudyError("README.md", "the marks around its findings are missing",
                         f"Put {START} and {END} on lines of their own.")  # fmt: skip
    return "\n".join([before + START, *findings(report), END]) + after


def findings(report: str) -> list[str]:
    """What stands below the answer's heading, as lines."""
    lines = report.split("\n")
    answer = list(dropwhile(lambda line: line != "## The answer", lines))[1:]
    return strip(list(takewhile(lambda line: not line.startswith("## "), answer)))


def strip(lines: list[str]) -> list[str]:
    return "\n".join(lines).strip("\n").split("\n")
