"""Texts of strangers (data, names of models, errors of libraries), shown in a terminal.

A terminal obeys some characters: it moves, colours, renames its window, turns the direction of
writing. Shown here, they stand as what they are.

Not covered: Markdown and HTML (studylib.reporting.literal).
"""

from __future__ import annotations

import re
import unicodedata

UNSEEN = ("Cc", "Cf", "Cs", "Co")  # controls, marks that turn the direction of writing, halves
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def show_plainly(text: str) -> str:
    """Text with every character that is obeyed and not seen spelled out, as \\x1b; lines stay."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in UNSEEN else ascii(c)[1:-1] for c in text
    )


def without_colours(text: str) -> str:
    """A library's text without the colours that it gave it, and nothing else in it to obey."""
    return show_plainly(COLOURS.sub("", text))
