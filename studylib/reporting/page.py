"""report.html: the executed report notebook without its code, as one file for a browser.

nbconvert fills a template of the study's own (page/): no script, font, style or picture comes from
elsewhere, and the same notebook outputs give the same bytes. Only what the notebook shows of the
report goes in, as Markdown and SVG; its own headings, messages and code do not.

Not covered: what the parts say (studylib.reporting.compose), running the notebook
(studylib.commands.cli_report).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from html import escape, unescape
from importlib.metadata import version
from pathlib import Path

from studylib.reporting.appendix_files import APPENDIX, TITLES, path_of, slug, title_of
from studylib.reporting.made_from import PAGE_FOLDER, REPORT
from studylib.reporting.notebook_text import DOLLAR, dollar_signs
from studylib.reporting.page_pictures import inline_picture, palette_css

MAKERS = ("nbconvert", "mistune", "matplotlib")  # on whose versions the bytes depend
HEADING = re.compile(r"<h([1-4])>(.*?)</h\1>")
TABLE = re.compile(r"<table>.*?</table>", re.S)
ROW = re.compile(r"<tr>(.*?)</tr>", re.S)
CELL = re.compile(r"<t([hd])>(.*?)</t\1>", re.S)
TAG = re.compile(r"<[^>]+>")
FIGURE = re.compile(r"[<±+−-]?\s?\$?\d")
TOGETHER = re.compile(r" (?=[±↓↑])|(?<=±) |(?<=\d) (?=(?:pp|%|×|[TGMk]B)(?!\w))|(?<=LoRA) (?=r=)")
BREAK = re.compile(r" (?![(\[])(?![^<]*>)")  # in a cell of figures, but before a bracket
GLUE = "\u00a0"  # a space at which no line breaks
LONGEST_FIGURE, LONGEST_LINE = 32, 44  # characters: a column beyond is text, or wraps
HREF = re.compile(r'<a href="(?!#|\w+:)([^"#]*)#?([^"]*)">(.*?)</a>', re.S)
KEYS = ("Model", "Method", "Variant", "What is kept", "Way", "Track")


@dataclass(frozen=True)
class Section:
    """A part of the page below one heading of the second level; the first has the title too."""

    name: str
    title: str
    html: str

    @property
    def folded(self) -> bool:
        """An appendix is opened by whoever wants it, and not printed."""
        return self.title.startswith(APPENDIX)


def export_page(executed: Path) -> bytes:
    """The page of an executed report notebook."""
    from nbconvert import TemplateExporter

    exporter = TemplateExporter(
        template_name=PAGE_FOLDER.name,
        template_file="index.html.j2",
        extra_template_basedirs=[str(PAGE_FOLDER.parent)],
        filters={"glue": glue, "markdown": render_markdown,
                 "dollars": dollar_signs, "picture": inline_picture,
                 "sections": split_sections, "untitled": cut_title},
    )  # fmt: skip
    made_by = ", ".join(f"{name} {version(name)}" for name in MAKERS)
    page = {
        "made_by": made_by,
        "style": (PAGE_FOLDER / "page.css").read_text(encoding="utf-8"),
        "script": (PAGE_FOLDER / "page.js").read_text(encoding="utf-8"),
        "light": palette_css(dark=False),
        "dark": palette_css(dark=True),
    }
    html, _ = exporter.from_filename(str(executed), resources={"page": page})
    return (html.strip() + "\n").encode()


def render_markdown(text: str) -> str:
    """Markdown as nbconvert renders it; HTML in it, but for dollars, is shown and not obeyed."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(escape=True, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(glue(text.replace(DOLLAR, r"\$")))


def glue(text: str) -> str:
    """Text in which a figure stays on one line with its unit and interval."""
    return TOGETHER.sub(GLUE, text)


def split_sections(html: str) -> list[Section]:
    """The sections of a page, headings with names of their own, tables made fit for a phone."""
    starts = [found.start() for found in HEADING.finditer(html) if found[1] == "2"]
    pieces = [html[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(html)], strict=True)]
    return [make_section(piece) for piece in pieces]


def make_section(html: str) -> Section:
    title = next(found[2] for found in HEADING.finditer(html) if found[1] == "2")
    name = slug(plain(title))
    parts, last, start = [], title, 0
    for found in [*HEADING.finditer(html), None]:
        end = found.start() if found else len(html)
        label = last if last == title else f"{title}: {last}"
        text = HREF.sub(turn_link, html[start:end])
        parts.append(TABLE.sub(partial(format_table, label), text))
        if found:
            level, last, start = found[1], found[2], found.end()
            term = slug(plain(last))  # a word is led to by its own name, as in REPORT.md
            own = {"1": "top", "2": name, "4": term}.get(level, f"{name}--{term}")
            parts.append(f'<h{level} id="{own}">{last}</h{level}>')
    return Section(name, title, "".join(parts))


def cut_title(html: str) -> str:
    """A section without its heading, which stands in the line that opens it."""
    return re.sub(r"<h2.*?</h2>", "", html, count=1)


def turn_link(found: re.Match[str]) -> str:
    """A link within the report leads to its place on the page; one to another file becomes text
    that names it, since the page may be read where the file is not."""
    path, heading, text = found.groups()
    places = {path_of(name): slug(title_of(name)) for name in TITLES}
    if path == REPORT:
        return f'<a href="#{heading}">{text}</a>'
    if path in places:
        return f'<a href="#{places[path]}{f"--{heading}" if heading else ""}">{text}</a>'
    return f'<span class="file" title="{path}">{text}</span>'


def plain(html: str) -> str:
    return unescape(TAG.sub("", html)).strip()


def format_table(label: str, found: re.Match[str]) -> str:
    """A table that becomes a card a row on a phone, where each figure stands beside its name.

    An empty first cell means the same as above, and carries it for where rows stand by themselves.
    """
    header, *rows = [[text for _, text in CELL.findall(row)] for row in ROW.findall(found[0])]
    names = [plain(title) for title in header]
    kinds = [column_kind([plain(row[i]) for row in rows]) for i in range(len(header))]
    kinds = ["" if (kind, name) == ("n", "Records") else kind
             for kind, name in zip(kinds, names, strict=True)]  # fmt: skip
    kinds[key_column(names)] += " key"
    head = "".join(f'<th scope="col"{css(k)}>{t}</th>' for k, t in zip(kinds, header, strict=True))
    body, above = [], ""
    for row in rows:
        marks = [f'{css(kind)} data-label="{escape(name)}"'
                 for kind, name in zip(kinds, names, strict=True)]  # fmt: skip
        above = row[0] or above
        if not row[0]:
            marks[0] += f' data-above="{escape(plain(above))}"'
        texts = [BREAK.sub(GLUE, t) if "n" in k.split() else t
                 for k, t in zip(kinds, row, strict=True)]  # fmt: skip
        cells = "".join(f"<td{m}>{text}</td>" for m, text in zip(marks, texts, strict=True))
        body.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="Table: {plain(label)}">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body) + "\n</tbody>\n</table></div>"
    )  # fmt: skip


def css(kind: str) -> str:
    return f' class="{kind.strip()}"' if kind.strip() else ""


def key_column(names: list[str]) -> int:
    """The column that names a row best: the last of the leading ones that name it."""
    leading = [i for i, name in enumerate(names[:3]) if name in KEYS]
    return leading[-1] if leading else 0


def column_kind(cells: list[str]) -> str:
    """`n`: figures, set to the right. `w`: long text, wrapped. Nothing: words on one line."""
    if any(len(cell) > LONGEST_LINE for cell in cells):
        return "w"
    figures = sum(bool(FIGURE.match(cell)) and len(cell) <= LONGEST_FIGURE for cell in cells)
    return "n" if 2 * figures >= len(cells) > 0 and figures else ""
