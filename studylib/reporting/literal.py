"""Texts of the reader's data and of models, shown as they are and never obeyed.

A prompt may hold Markdown, HTML or a formula: a picture from elsewhere, a link, a heading. In a
report it is text: every mark that means something within a line is escaped, what begins an address
among them; bars are, by the table that they stand in (studylib.reporting.cells).

Not covered: escaping for other programs than readers of Markdown and of report.html.
"""

from __future__ import annotations

import re
import unicodedata

from studylib.core.plain import UNSEEN

MARKS = re.compile(r"([\\`*_\[\]<>!~$&#{}@:]|(?<=www)\.)")
LINE_END = " ⏎ "


def show_literally(text: str, most: int, keep_end: bool = False) -> str:
    """Text in one line of Markdown, at most so many characters of it. keep_end: its end is shown
    where it is too long, not its beginning."""
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    line = LINE_END.join(part for part in lines if part)
    line = "".join("�" if unicodedata.category(c) in UNSEEN else c for c in line)
    if len(line) > most:
        line = f"…{line[-most + 1 :]}" if keep_end else f"{line[: most - 1]}…"
    return MARKS.sub(r"\\\1", line)
