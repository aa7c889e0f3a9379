"""What the report notebook shows: the report's own blocks, as Markdown and pictures as SVG.

Each picture carries its caption as its text alternative.

Not covered: what the parts say (studylib.reporting.compose), the page (studylib.reporting.page).
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Iterable
from html import escape
from itertools import groupby

from studylib.reporting.appendix_files import appendix_title, turn_links
from studylib.reporting.blocks import Block, Heading, Picture, to_markdown
from studylib.reporting.compose import Report
from studylib.reporting.report import Sources

DOLLAR = "<span>&#36;</span>"
CODE_OR_DOLLAR = re.compile(r"(?<!\\)`[^`]*`|\\?\$")


def show_sources(sources: Sources) -> None:
    """Say it where the report is not of the results that were asked for."""
    if sources.instead_of is not None:
        show_markdown(f"**No run of yours lies in `{sources.instead_of}` yet:** these are the "
                      "shipped reference records. `make reproduce` makes your own.")  # fmt: skip


def show_part(report: Report, *names: str) -> None:
    """Display parts of a report in a notebook, in order."""
    for name in names:
        show_blocks(report, report.parts[name])


def show_appendices(report: Report) -> None:
    """Display all appendices."""
    for name, blocks in report.appendices.items():
        show_blocks(report, [Heading(2, appendix_title(name)), *blocks])


def show_blocks(report: Report, blocks: Iterable[Block]) -> None:
    """Pictures as they were drawn, all else as Markdown; links lead on from the notebook's
    folder."""
    from IPython.display import display

    way = os.path.relpath(report.folder).replace(os.sep, "/") + "/"
    for _, together in groupby(blocks, key=lambda block: isinstance(block, Picture) and block.path):
        first, *others = together
        if isinstance(first, Picture):
            shown = {"text/html": image(report.files[first.path], first.caption)}
            display(shown | {"text/plain": first.caption}, raw=True)
            show_markdown(f"*{first.caption}.*")
        else:
            show_markdown(turn_links(to_markdown([first, *others]), way))


def image(svg: bytes, caption: str) -> str:
    """No wider than its cell: JupyterLab 4 cuts what is shown as image/svg+xml and is wider."""
    data = b64encode(svg).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<img alt="{escape(caption)}" style="max-width:100%" src="{source}">'


def show_markdown(text: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown(dollar_signs(text)))


def dollar_signs(text: str) -> str:
    """Dollars that a notebook does not take for the marks of a formula.

    JupyterLab looks for formulas before and after Markdown is rendered: an entity passes the
    first look, an element of its own the second.
    """
    return CODE_OR_DOLLAR.sub(lambda found: found[0] if found[0][0] == "`" else DOLLAR, text)
