"""COLUMNS='prompt=text answer=category': which columns of the reader's own data are which part.

Not covered: reading the rows (studylib.inputs.forms).
"""

from __future__ import annotations

import shlex

PARTS = ("prompt", "answer", "system", "text", "messages")
WHOLE = ({"prompt", "answer"}, {"prompt", "answer", "system"}, {"text"}, {"messages"})
EXAMPLE = "write prompt=COLUMN answer=COLUMN, or text=COLUMN, or messages=COLUMN"


def parse_columns(text: str | None) -> dict[str, str]:
    """Part of an example -> column, {} for None; ValueError with the rule where it is not that.

    A column's name that holds blanks stands in quotes: 'prompt="the text" answer=label'.
    """
    if text is None:
        return {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"columns has a stray quote ({error}): {EXAMPLE}") from None
    found: dict[str, str] = {}
    for word in words:
        part, equals, column = word.partition("=")
        if not equals or not column or part not in PARTS or part in found:
            raise ValueError(f"{word!r} is no part of columns: {EXAMPLE}")
        if column in found.values():
            raise ValueError(f"columns names {column!r} for two parts: {EXAMPLE}")
        found[part] = column
    if set(found) not in WHOLE:
        raise ValueError(f"columns names {', '.join(found) or 'nothing'}: {EXAMPLE}")
    return found
