"""report.html: the report's blocks as one file for a browser.

Jinja2 fills a template of the study's own (page/): no script, font, style or picture comes from
elsewhere, and the same blocks give the same bytes. Text within a block is Markdown; HTML in it is
shown and not obeyed. A picture's colours become CSS variables, each with a lighter twin for a dark
page; the names of its parts are made unique on the page, its caption is the text alternative.

Not covered: what the blocks say (studylib.reporting.compose), what is drawn
(studylib.reporting.figures).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from importlib.metadata import version
from itertools import count, pairwise
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import to_rgb
from mistune import BlockState, HTMLRenderer, InlineParser

from studylib.reporting.appendix_files import TITLES, appendix_title, path_of, slug
from studylib.reporting.blocks import GLUE, Block, Heading, Items, Number, Picture, Table
from studylib.reporting.compose import Report
from studylib.reporting.made_from import PAGE_FOLDER, REPORT
from studylib.reporting.panels import BAND, CLAIM, COLOURS, FAINT, INK, tint

MAKERS = ("jinja2", "mistune", "matplotlib")  # on whose versions the bytes depend
TOGETHER = re.compile(r" (?=[±↓↑])|(?<=±) |(?<=\d) (?=(?:pp|%|×|[TGMk]B)(?!\w))|(?<=LoRA) (?=r=)")
BREAK = re.compile(r" (?![(\[])")  # in a cell of figures, but before a bracket
LONGEST_LINE = 44  # characters: a column beyond wraps
PAPER = "#ffffff"
DARK_PAPER, DARK_INK = "#14171b", "#e4e6e8"
# name -> colour on a light and on a dark page
PALETTE = {
    "paper": (PAPER, DARK_PAPER),
    "ink": (INK, DARK_INK),
    "faint": (FAINT, "#363c43"),
    "band": (BAND, "#4a3d17"),
    "claim": (CLAIM, "#d09a1f"),
    **{name: (shade, tint(shade, 0.35)) for name, shade in COLOURS.items()},
}

VARIABLE = {light: f"var(--{name})" for name, (light, _) in reversed(PALETTE.items())}
LEFT_OUT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.S)
ROOT = re.compile(
    r'<svg data-panels="(?P<ends>[\d. -]*)"[^>]*?'
    r'viewBox="0 0 (?P<width>[\d.]+) (?P<height>[\d.]+)"[^>]*>'
)
AXES = re.compile(r'<g id="[^"]*axes_\d+">')
ID = re.compile(r' id="([^"]+)"')
USE = re.compile(r'(xlink:href="#|url\(#)([^")]+)')
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
GLYPH = re.compile(r'<path id="([\w-]+)"( d="[^"]*" transform="scale\(0\.015625\)")/>')
PLACES = re.compile(r' (?:d|x|y)="[^"]*"|translate\([^)]*\)')
LONG_NUMBER = re.compile(r"(\.\d\d)\d+")
OUTLINE, STYLE = re.compile(r' d="([^"]*)"'), re.compile(r' style="([^"]*)"')
LONG_OUTLINE = 400  # characters; a tenth of a point is not seen in a line of so many corners


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
    glyphs: dict[str, str] = {}
    places = count()

    def draw(picture: Picture) -> Markup:
        svg = report.files[picture.path].decode()
        return Markup(inline_picture(svg, picture.caption, f"p{next(places)}", glyphs))

    html = page.get_template("index.html.j2").render(
        made_by=", ".join(f"{name} {version(name)}" for name in MAKERS),
        style=read("page.css"), script=read("page.js"),
        light=palette_css(dark=False), dark=palette_css(dark=True),
        sections=make_sections(report), draw=draw,
    )  # fmt: skip
    return html.encode()


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


def inline_picture(svg: str, caption: str, mark: str, glyphs: dict[str, str]) -> str:
    """The picture for the page: one `svg` a panel, side by side where there is room. mark: its own
    on the page, before the names of its parts. glyphs: the letters that the page has."""
    svg = share_glyphs(split_panels(LEFT_OUT.sub("", svg).strip()), glyphs)
    used, letters = dict.fromkeys(name for _, name in USE.findall(svg)), {*glyphs.values()}
    names = {name: name if name in letters else f"{mark}-{i}" for i, name in enumerate(used)}
    svg = ID.sub(lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", svg)
    svg = USE.sub(lambda m: m[1].removeprefix("xlink:") + names[m[2]], svg)
    svg = COLOUR.sub(lambda m: page_colour(m[0]), svg)
    svg = PLACES.sub(lambda m: LONG_NUMBER.sub(r"\1", m[0]), svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = OUTLINE.sub(lambda m: f' d="{shorten_outline(m[1])}"', svg)
    svg = STYLE.sub(lambda m: m[0].replace("; ", ";").replace(": ", ":"), svg)
    return f'<div class="panels" role="img" aria-label="{escape(caption)}">{svg}</div>'


def shorten_outline(outline: str) -> str:
    """The same line in fewer characters: by SVG's rules corners after the first need no letter."""
    if len(outline) > LONG_OUTLINE:
        outline = re.sub(r"(\.\d)\d", r"\1", outline)
    if not re.search("[^MLz\\d. -]", outline):
        outline = outline.replace(" L ", " ")
    return re.sub(r" ?([A-Za-z]) ?", r"\1", outline).replace(" -", "-")


def share_glyphs(svg: str, glyphs: dict[str, str]) -> str:
    """The picture without the letters that another of the page has drawn already; it adds its own.
    glyphs: outline -> its name on the page."""
    names: dict[str, str] = {}

    def keep_new(found: re.Match[str]) -> str:
        known = found[2] in glyphs
        names[found[1]] = glyphs.setdefault(found[2], f"g{len(glyphs)}")
        return "" if known else f'<path id="{names[found[1]]}"{found[2]}/>'

    svg = re.sub(r"<defs>\s*</defs>", "", GLYPH.sub(keep_new, svg))
    return USE.sub(lambda m: m[1] + names.get(m[2], m[2]), svg)


def split_panels(svg: str) -> str:
    """Each panel as an `svg` of its own; what they share is in the first."""
    root = ROOT.search(svg)
    if root is None:
        raise ValueError("this is no picture of the study's")
    ends = [float(end) for end in root["ends"].split()]
    width, height = float(root["width"]), root["height"]
    body = svg[root.end() :].strip().removesuffix("</svg>")
    starts = [found.start() for found in AXES.finditer(body)]
    if len(starts) < 2 or 2 * len(starts) != len(ends):
        return f"{open_root(0, width, height)}{body}</svg>"
    close = body.rindex("</g>")  # of the whole picture; clipping paths follow
    shared = body[close + len("</g>") :]
    middles = [(a + b) / 2 for a, b in zip(ends[1::2], ends[2::2], strict=False)]
    cuts = [0.0, *middles, width]
    panels = [body[a:b] for a, b in zip(starts, [*starts[1:], close], strict=True)]
    panels[0] += shared
    return "".join(
        f"{open_root(left, right - left, height)}{panel}</svg>"
        for (left, right), panel in zip(pairwise(cuts), panels, strict=True)
    )


def open_root(left: float, width: float, height: str) -> str:
    """The opening tag. Points become pixels: a picture is at most as large as it was drawn."""
    pixels = round(width * 4 / 3)
    return (
        f'<svg viewBox="{left:.0f} 0 {width:.0f} {height}" '
        f'style="flex-basis:{pixels}px;max-width:{pixels}px" aria-hidden="true">'
    )


def page_colour(shade: str) -> str:
    """A colour of the palette, or a method's paled by the paper, as CSS; else as it is."""
    if shade in VARIABLE:
        return VARIABLE[shade]
    for name, full in COLOURS.items():
        red, own = to_rgb(shade)[0], to_rgb(full)[0]
        share = (red - own) / (1 - own)
        if 0 < share < 1 and is_close(tint(full, share), shade):
            return f"color-mix(in srgb, var(--{name}) {round(100 * (1 - share))}%, var(--paper))"
    return shade


def is_close(one: str, other: str) -> bool:
    return all(abs(a - b) < 0.01 for a, b in zip(to_rgb(one), to_rgb(other), strict=True))


def palette_css(dark: bool) -> str:
    """The palette as declarations of CSS variables."""
    return " ".join(f"--{name}: {shades[dark]};" for name, shades in PALETTE.items())
