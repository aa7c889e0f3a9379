"""What the report notebook shows: the report's own parts, text as Markdown and pictures as SVG.

Each picture carries its caption as its text alternative; report.html is made of these outputs.

Not covered: what the parts say (studylib.reporting.compose), the page (studylib.reporting.page).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from studylib.reporting.appendix_files import turn_links
from studylib.reporting.compose import Report
from studylib.reporting.made_from import Files
from studylib.reporting.notebook_text import dollar_signs
from studylib.reporting.report import Sources

PICTURE = re.compile(r"^!\[(?P<caption>.*)\]\((?P<path>.*)\)\n\n\*.*\*$", re.M)
SVG, MARKDOWN = "image/svg+xml", "text/markdown"
CAPTION = "caption"  # the metadata under which a picture and its caption carry the words


def show_sources(sources: Sources) -> None:
    """Say it where the report is not of the results that were asked for."""
    if sources.instead_of is not None:
        show_markdown(f"**No run of yours lies in `{sources.instead_of}` yet:** these are the "
                      "shipped reference records. `make reproduce` makes your own.")  # fmt: skip


def show_part(report: Report, *names: str) -> None:
    """Display parts of a report in a notebook, in order."""
    for name in names:
        show_text(report, report.parts[name])


def show_appendices(report: Report) -> None:
    """Display all appendices."""
    for text in report.appendices.values():
        show_text(report, text)


def show_text(report: Report, text: str) -> None:
    """Markdown with its pictures as they were drawn; links lead on from the notebook's folder."""
    from IPython.display import display

    way = os.path.relpath(report.folder).replace(os.sep, "/") + "/"
    for piece in split_pictures(text):
        if isinstance(piece, str):
            show_markdown(piece, way=way)
            continue
        caption, path = piece
        data = {SVG: read_picture(report.files, path), "text/plain": caption}
        display(data, metadata={SVG: {CAPTION: caption}}, raw=True)
        show_markdown(f"*{caption}.*", {CAPTION: caption})


def show_markdown(text: str, metadata: dict[str, str] | None = None, way: str = "") -> None:
    """Text for the notebook; as plain text it is the report's own, of which the page is made."""
    from IPython.display import display

    display({MARKDOWN: dollar_signs(turn_links(text, way)), "text/plain": text},
            metadata={MARKDOWN: metadata or {}}, raw=True)  # fmt: skip


def split_pictures(text: str) -> Iterator[str | tuple[str, str]]:
    """A part's pieces: Markdown, and for each picture its caption and path."""
    start = 0
    for found in PICTURE.finditer(text):
        if before := text[start : found.start()].strip("\n"):
            yield before
        yield found["caption"], found["path"]
        start = found.end()
    if rest := text[start:].strip("\n"):
        yield rest


def read_picture(files: Files, path: str) -> str:
    return files[Path(path).as_posix()].decode()
