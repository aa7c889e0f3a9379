"""What a report is made of: headings, paragraphs, lists, tables and pictures, in their order.

Text within a block is inline Markdown: bold, code, links. Here blocks become Markdown; notebooks
show them by studylib.notebook_views.report_views, report.html by studylib.reporting.page. Nobody
looks for a heading, a table or a picture in text. Texts of the reader's data and of models are
shown as they are and never obeyed: every mark that means something within a line is escaped, what
begins an address among them; bars are, by the table that they stand in.

Not covered: what the blocks say.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from studylib.core.errors import UNSEEN
from studylib.core.metrics import MISSING

GLUE = "\u00a0"  # a space at which no line breaks
Kind = Literal["key", "figures", "words"]
MARKS = re.compile(r"([\\`*_\[\]<>!~$&#{}@:]|(?<=www)\.)")
LINE_END = " ⏎ "


@dataclass(frozen=True)
class Heading:
    level: int
    text: str

    def markdown(self) -> str:
        return f"{'#' * self.level} {self.text}"


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str

    def markdown(self) -> str:
        return self.text


@dataclass(frozen=True)
class Items:
    """A list of one line each."""

    items: tuple[str, ...]
    numbered: bool = False

    def markdown(self) -> str:
        marks = (f"{i}." if self.numbered else "-" for i, _ in enumerate(self.items, 1))
        return "\n".join(f"{mark} {item}" for mark, item in zip(marks, self.items, strict=True))


@dataclass(frozen=True)
class Picture:
    """path: from the report's folder. The caption is also its text alternative."""

    caption: str
    path: str

    def markdown(self) -> str:
        return f"![{self.caption}]({self.path})\n\n*{self.caption}.*"


@dataclass(frozen=True)
class Column:
    """kind: `key` names a row, `figures` are compared down the column, `words` are read."""

    title: str
    kind: Kind


class Number(str):
    """A cell that shows a number: its text, with the value that a table is sorted by."""

    value: float

    def __new__(cls, text: str, value: float) -> Number:
        made = super().__new__(cls, text)
        made.value = float(value)
        return made


@dataclass(frozen=True)
class Table:
    """Rows of cells, texts or numbers; an empty first cell means the same as above it."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def header(self) -> tuple[str, ...]:
        return tuple(column.title for column in self.columns)

    def column(self, title: str) -> list[str]:
        """The cells below the first column whose title begins so. StopIteration: there is none."""
        at = next(i for i, name in enumerate(self.header) if name.startswith(title))
        return [row[at] for row in self.rows]

    def keep(self, *titles: str) -> Table:
        """The same with these columns alone."""
        at = [self.header.index(title) for title in titles]
        rows = tuple(tuple(row[i] for i in at) for row in self.rows)
        return Table(tuple(self.columns[i] for i in at), rows)

    def markdown(self) -> str:
        if not self.rows:
            return "Nothing was measured that belongs here."
        lines = [self.header, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join("| " + " | ".join(escape_cell(c) for c in row) + " |" for row in lines)


Block = Heading | Text | Items | Picture | Table


def escape_cell(cell: str) -> str:
    """One line without bars; a figure stays on one line with its unit and interval."""
    cell = cell.replace("|", "\\|").replace("\n", " ").replace(" ± ", f"{GLUE}±{GLUE}")
    return re.sub(r"(?<=\w) (?=(?:[TGMk]B|%)(?!\w))", GLUE, cell)


def cell_of(value: float | None, show: Callable[[float], str] = "{:,}".format) -> str:
    """A cell of a number as `show` writes it, or the word for a missing one."""
    return MISSING if value is None else Number(show(value), value)


def around(text: str, cell: str) -> str:
    """Text that holds what a cell shows, with the cell's value if it has one."""
    return Number(text, cell.value) if isinstance(cell, Number) else text


def named(title: str) -> Column:
    """The column that names a row."""
    return Column(title, "key")


def figures(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, "figures") for title in titles)


def words(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, "words") for title in titles)


NAMED = (*words("Model"), named("Method"))


def paragraph(*sentences: str) -> list[Block]:
    """One paragraph of what is said; nothing where nothing is."""
    said = " ".join(sentence for sentence in sentences if sentence)
    return [Text(said)] if said else []


def bullets(items: Iterable[str]) -> list[Block]:
    """A list; nothing where it has no items."""
    listed = tuple(items)
    return [Items(listed)] if listed else []


def titled(title: str, table: Table, before: str = "") -> list[Block]:
    """A table under its title and a sentence; nothing where it has no rows."""
    return [Heading(3, title), *paragraph(before), table] if table.rows else []


def to_markdown(blocks: Iterable[Block]) -> str:
    """Blocks with an empty line between them, and a line's end; nothing of none."""
    text = "\n\n".join(block.markdown() for block in blocks)
    return f"{text}\n" if text else ""


def show_literally(text: str, most: int, keep_end: bool = False) -> str:
    """Text in one line of Markdown, at most so many characters of it. keep_end: its end is shown
    where it is too long, not its beginning."""
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    line = LINE_END.join(part for part in lines if part)
    line = "".join("�" if unicodedata.category(c) in UNSEEN else c for c in line)
    if len(line) > most:
        line = f"…{line[-most + 1 :]}" if keep_end else f"{line[: most - 1]}…"
    return MARKS.sub(r"\\\1", line)
