"""The one way in which bad input is reported: the value, the rule it breaks, the remedy.

Not covered: bugs. A bug raises whatever it raises and is never turned into one of these.
"""

from studylib.core.plain import show_plainly


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
