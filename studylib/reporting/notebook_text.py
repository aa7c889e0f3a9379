"""Text as a notebook's Markdown takes it: dollars that are no formula.

Not covered: what the notebooks show (studylib.notebook_views.choose_views, report_views).
"""

from __future__ import annotations

import re

DOLLAR = "<span>&#36;</span>"
CODE_OR_DOLLAR = re.compile(r"(?<!\\)`[^`]*`|\\?\$")


def dollar_signs(text: str) -> str:
    """Dollars that a notebook does not take for the marks of a formula.

    JupyterLab looks for formulas before and after Markdown is rendered: an entity passes the
    first look, an element of its own the second.
    """
    return CODE_OR_DOLLAR.sub(lambda found: found[0] if found[0][0] == "`" else DOLLAR, text)
