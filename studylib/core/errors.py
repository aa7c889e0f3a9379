"""The one way in which bad input is reported: the value, the rule it breaks, the remedy.

Texts of strangers (data, names of models, errors of libraries) are quoted in it. A terminal obeys
some characters: it moves, colours, renames its window, turns the direction of writing. Shown here,
they stand as what they are.

Not covered: bugs. A bug raises whatever it raises and is never turned into one of these. Markdown
and HTML in a text (studylib.reporting.blocks).
"""

import re
import unicodedata

UNSEEN = ("Cc", "Cf", "Cs", "Co")  # controls, marks that turn the direction of writing, halves
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class StudyError(Exception):
    """Bad input or a missing resource: the command line prints one message and exits with 2.

    What it quotes is a stranger's: a terminal obeys none of it.
    """

    exit_code = 2

    def __init__(self, value: object, rule: str, remedy: str):
        self.value, self.rule, self.remedy = map(show_plainly, (str(value), rule, remedy))
        super().__init__(f"{self.value}: {self.rule}. {self.remedy}")


class Unfit(StudyError):
    """A method that this model cannot take: no run of it can be made, and a plan refuses it."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def name_error(error: BaseException) -> str:
    """An error's kind and the first line of its text, for faults of others' code."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def show_plainly(text: str) -> str:
    """Text with every character that is obeyed and not seen spelled out, as \\x1b; lines stay."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in UNSEEN else ascii(c)[1:-1] for c in text
    )


def without_colours(text: str) -> str:
    """A library's text without the colours that it gave it, and nothing else in it to obey."""
    return show_plainly(COLOURS.sub("", text))
