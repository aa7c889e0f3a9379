"""A picture of the report as a part of report.html: readable on a dark page, named in words.

The page's palette is the pictures' own (studylib.reporting.panels), so that a method has one colour
in both; for a dark page each colour has a lighter twin. Colours become CSS variables, names of
parts are made unique on the page, the caption is the text alternative.

Not covered: what is drawn (studylib.reporting.figures), the rest of the page
(studylib.reporting.page).
"""

from __future__ import annotations

import re
from html import escape
from itertools import pairwise

from matplotlib.colors import to_rgb

from studylib.reporting.panels import BAND, CLAIM, COLOURS, FAINT, INK, tint

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
    return f'<div class="panels" role="img" aria-label="{escape(caption)}">{svg}</div>'


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
