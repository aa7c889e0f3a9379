"""The report's appendices: their titles, where they lie, and how a link leads there.

Links of a report's text are written as they lie from REPORT.md's folder. An appendix lies in a
folder of its own, so that its links are turned when it is written; on the page all stands in one
file, and a link to an appendix becomes one to its place there.

Not covered: what the appendices say (studylib.reporting.appendices).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from studylib.reporting.blocks import Block, Heading, Text, to_markdown

APPENDIX = "Appendix: "
FOLDER = "docs/report"
TITLES = {
    "claims": "the evidence for each claim",
    "details": "every figure of the trainings",
    "serving": "serving in detail",
    "forecasts": "forecasts in detail",
    "runs": "every run and where it came from",
}
LINK = re.compile(r"\]\((?!#|\w+:)([^)#]*)")


def path_of(name: str) -> str:
    """An appendix's path from the report's folder."""
    return f"{FOLDER}/{name}.md"


def link_to(name: str, heading: str = "") -> str:
    """A link's target: an appendix, or one of its headings."""
    return path_of(name) + (f"#{slug(heading)}" if heading else "")


def slug(title: str) -> str:
    """A heading's name in a link."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def appendix_title(name: str) -> str:
    return f"{APPENDIX}{TITLES[name]}"


def to_file(name: str, blocks: Sequence[Block]) -> bytes:
    """An appendix as a file: its title, the way back, links turned."""
    up = "../" * (FOLDER.count("/") + 1)
    head = (Heading(1, appendix_title(name)), Text("Belongs to [the report](REPORT.md)."))
    return turn_links(to_markdown([*head, *blocks]), up).encode()


def turn_links(text: str, way: str) -> str:
    """Text for a reader in another folder. way: from there to the report's, with its last slash."""
    return LINK.sub(lambda found: f"]({way}{found[1]}", text)
