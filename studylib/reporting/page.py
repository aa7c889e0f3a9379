"""report.html: the report's blocks as one file for a browser.

Jinja2 fills a template of the study's own (page/): no script, font, style or picture comes from
elsewhere, and the same blocks give the same bytes. Text within a block is Markdown; HTML in it is
shown and not obeyed.

Not covered: what the blocks say (studylib.reporting.compose), pictures (page_pictures).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import count, pairwise
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from mistune import BlockState, HTMLRenderer, InlineParser

from studylib.reporting.appendix_files import TITLES, appendix_title, path_of, slug
from studylib.reporting.blocks import GLUE, Block, Heading, Items, Number, Picture, Table
from studylib.reporting.compose import Report
from studylib.reporting.made_from import PAGE_FOLDER, REPORT, Files
from studylib.reporting.page_pictures import inline_picture, palette_css

MAKERS = ("jinja2", "mistune", "matplotlib")  # on whose versions the bytes depend
TOGETHER = re.compile(r" (?=[±↓↑])|(?<=±) |(?<=\d) (?=(?:pp|%|×|[TGMk]B)(?!\w))|(?<=LoRA) (?=r=)")
BREAK = re.compile(r" (?![(\[])")  # in a cell of figures, but before a bracket
LONGEST_LINE = 44  # characters: a column beyond wraps


@dataclass(frozen=True)
class Section:
    """A part of the page below one heading of the second level; the first has the title too.

    blocks: each with its mark, a heading's name in links and a table's for those who hear it.
    folded: an appendix, which is opened by whoever wants it, and not printed.
    """

    name: str
    title: str
    blocks: tuple[tuple[Block, str], ...]
    folded: bool


def render_page(report: Report) -> bytes:
    """The page of a report."""
    page = Environment(
        loader=FileSystemLoader(PAGE_FOLDER), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    page.filters |= {"inline": inline, "glue": glue, "plain": plain, "kinds": column_kinds}
    page.tests |= {kind.__name__.lower(): lambda block, kind=kind: isinstance(block, kind)
                   for kind in (Heading, Items, Number, Picture, Table)}  # fmt: skip
    html = page.get_template("index.html.j2").render(
        made_by=", ".join(f"{name} {version(name)}" for name in MAKERS),
        style=read("page.css"), script=read("page.js"),
        light=palette_css(dark=False), dark=palette_css(dark=True),
        sections=make_sections(report),
        draw=partial(draw_picture, report.files, {}, count()),
    )  # fmt: skip
    return html.encode()


def draw_picture(
    files: Files, glyphs: dict[str, str], places: Iterator[int], picture: Picture
) -> Markup:
    svg = files[picture.path].decode()
    return Markup(inline_picture(svg, picture.caption, f"p{next(places)}", glyphs))


def read(name: str) -> Markup:
    return Markup((PAGE_FOLDER / name).read_text(encoding="utf-8"))


def make_sections(report: Report) -> list[Section]:
    """The parts, divided at headings of the second level, then the appendices."""
    whole = [block for part in report.parts.values() for block in part]
    titles = {i: block.text for i, block in enumerate(whole)
              if isinstance(block, Heading) and block.level == 2}  # fmt: skip
    pieces = [whole[a:b] for a, b in pairwise([0, *[*titles][1:], len(whole)])]
    return [
        *map(make_section, titles.values(), pieces),
        *(make_section(appendix_title(name), blocks, folded=True)
          for name, blocks in report.appendices.items()),
    ]  # fmt: skip


def make_section(title: str, blocks: Iterable[Block], folded: bool = False) -> Section:
    name = slug(plain(title))
    return Section(name, title, tuple(mark_blocks(name, title, blocks)), folded)


def mark_blocks(name: str, title: str, blocks: Iterable[Block]) -> Iterator[tuple[Block, str]]:
    """Each block with its mark. A word is led to by its own name, as in REPORT.md."""
    last = title
    for block in blocks:
        if isinstance(block, Heading):
            last, term = block.text, slug(plain(block.text))
            own = {1: "top", 2: name, 4: term}.get(block.level, f"{name}--{term}")
            yield block, own
        else:
            yield block, plain(last if last == title else f"{title}: {last}")


# Text ---------------------------------------------------------------------------------------------


class Renderer(HTMLRenderer):
    """A link within the report leads to its place on the page; one to another file becomes text
    that names it, since the page may be read where the file is not. A picture that a record's words
    ask for is its name: nothing is fetched."""

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if re.match(r"#|\w+:", url):
            return super().link(text, url, title)
        path, _, heading = url.partition("#")
        places = {path_of(name): slug(appendix_title(name)) for name in TITLES}
        if path == REPORT:
            return super().link(text, f"#{heading}")
        if path in places:
            return super().link(text, f"#{places[path]}" + (f"--{heading}" if heading else ""))
        return f'<span class="file" title="{self.escape_attribute(path)}">{text}</span>'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text


RENDERER, PARSER = Renderer(), InlineParser()


@lru_cache(maxsize=10_000)
def parse_markdown(text: str) -> list[dict[str, Any]]:
    return PARSER(glue(text), {})


def inline(text: str, figures: bool = False) -> Markup:
    """Text within a block as HTML. figures: on one line, but before a bracket."""
    shown = BREAK.sub(GLUE, text) if figures else text
    return Markup(RENDERER.render_tokens(parse_markdown(shown), BlockState()))


def plain(text: str) -> str:
    """Text within a block without its marks."""
    return "".join(raw_texts(parse_markdown(text)))


def raw_texts(tokens: Iterable[dict[str, Any]]) -> Iterator[str]:
    for token in tokens:
        yield token.get("raw", "")
        yield from raw_texts(token.get("children", ()))


def glue(text: str) -> str:
    """Text in which a figure stays on one line with its unit and interval."""
    return TOGETHER.sub(GLUE, text)


# Tables -------------------------------------------------------------------------------------------


def column_kinds(table: Table) -> list[Markup]:
    """How each column is set, as an attribute. `n`: figures, to the right. `w`: long text, wrapped.
    `key`: names the row where a phone shows it as a card."""
    kinds = []
    for column, *cells in zip(table.columns, *table.rows, strict=True):
        long = any(len(plain(cell)) > LONGEST_LINE for cell in cells)
        kind = "w" if long else "n" if column.kind == "figures" else ""
        kind = f"{kind} key".strip() if column.kind == "key" else kind
        kinds.append(Markup(f' class="{kind}"' if kind else ""))
    return kinds
