"""Texts of the reader's data are shown as they are: no tag, link, picture or formula of theirs."""

from __future__ import annotations

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from studylib.reporting.blocks import Table, show_literally, words
from studylib.reporting.page import inline

HOSTILE = (
    r"<script>alert(1)</script> ![x](http://evil/a.png) [l](javascript:alert) `code $y$` | a | b "
    r"$x^2$ $$y$$ \begin{a}z\end{a} \\(q\\) \| **bold** __b__ # h &amp; https://evil.example "
    r"<b>x</b> <!-- c --> [a]: http://x ~~s~~ me@x.org {{ 1 }}"
)


@pytest.mark.parametrize("reader", ["report.html", "REPORT.md"])
def test_marks_of_markdown_and_html_are_shown_and_not_obeyed(reader):
    text, after = show_literally(HOSTILE, 9999), "next"
    if reader == "report.html":
        cell = inline(text)
    else:
        table = Table(words("P", "A"), ((text, "next"),)).markdown()
        html = MarkdownIt("gfm-like", {"linkify": False}).render(table)
        cell, after = re.findall(r"<td>(.*?)</td>", html, re.S)
    assert re.findall(r"<[^>]*>", cell) == [] and after == "next"
    shown = unescape(cell).replace("\u00a0", " ")
    assert shown.replace("\\$", "$") == HOSTILE


def test_lines_controls_and_long_texts_are_one_short_line():
    assert show_literally("a\n\n b\tc\r\n", 99) == "a ⏎ b c"
    assert show_literally("\x1b[31mred ‮evil", 99) == r"�\[31mred �evil"
    assert show_literally("abcdef", 4) == "abc…" and show_literally("abcdef", 4, True) == "…def"
